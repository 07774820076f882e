//! Calls of coroutine functions, on their way to the event loop that runs them.
//!
//! A thread without Python takes calls from the queue and lets them land; the loop is woken through a socket,
//! so that nobody has to wait for the GIL.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use trustformers_batching::{InstanceId, Priority};
use trustformers_serve::hosted::{self, Calls, Full};

use super::ending::Running;

/// What the loop is to look at.
enum Event {
    Call(Running, u64),
    /// Nobody waits for the call of this number any more.
    Over(u64),
    /// The client of the call of this number has taken a piece.
    Room(u64),
    /// No more calls come.
    Closed,
}

/// Where calls land.
pub(super) struct Landing {
    calls: Arc<Calls>,
    model: Arc<str>,
    wake: UnixStream,
    wakes: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    events: Vec<Event>,
    /// Instances without a call.
    free: Vec<u32>,
    next_number: u64,
    /// Calls that landed and have not ended.
    in_flight: usize,
    closed: bool,
}

impl Landing {
    pub(super) fn new(calls: Arc<Calls>, model: Arc<str>, most: u32) -> std::io::Result<Arc<Self>> {
        let (wake, wakes) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        wakes.set_nonblocking(true)?;
        let free = (0..most).rev().collect();
        let state = State { events: Vec::new(), free, next_number: 0, in_flight: 0, closed: false };
        Ok(Arc::new(Self { calls, model, wake, wakes, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Takes calls until there are no more.
    pub(super) fn take_calls(self: &Arc<Self>) -> std::io::Result<()> {
        let landing = Arc::clone(self);
        let body = move || {
            loop {
                let instance = landing.free_instance();
                let Some(job) = landing.calls.next(instance) else { break };
                landing.land(Running::new(&landing.calls, &landing.model, instance, job), instance);
            }
            landing.push(Event::Closed);
            let mut state = landing.state.lock();
            state.closed = true;
            landing.changed.notify_all();
        };
        thread::Builder::new().name(format!("{}:calls", self.model)).spawn(body).map(drop)
    }

    fn free_instance(&self) -> InstanceId {
        let mut state = self.state.lock();
        loop {
            if let Some(instance) = state.free.pop() {
                return InstanceId(instance);
            }
            self.changed.wait(&mut state);
        }
    }

    fn land(self: &Arc<Self>, running: Running, instance: InstanceId) {
        let Some(call) = running.call().map(Arc::clone) else {
            running.finish();
            self.state.lock().free.push(instance.0);
            return;
        };
        let number = {
            let mut state = self.state.lock();
            state.next_number += 1;
            state.in_flight += 1;
            state.next_number
        };
        self.push(Event::Call(running, number));
        let landing = Arc::downgrade(self);
        call.watch(move || {
            if let Some(landing) = landing.upgrade() {
                landing.push(Event::Over(number));
            }
        });
    }

    fn push(&self, event: Event) {
        let first = {
            let mut state = self.state.lock();
            state.events.push(event);
            state.events.len() == 1
        };
        if first {
            // Fails only when the loop has not read for so long that it is awake anyway.
            drop((&self.wake).write(&[0]));
        }
    }

    fn ended(&self, InstanceId(instance): InstanceId) {
        let mut state = self.state.lock();
        state.free.push(instance);
        state.in_flight -= 1;
        self.changed.notify_all();
    }
}

/// What the server has of it.
pub(super) struct Handle(pub(super) Arc<Landing>);

impl hosted::Crew for Handle {
    fn close(&self) {}

    fn join(&self) {
        let mut state = self.0.state.lock();
        while !state.closed || state.in_flight > 0 {
            self.0.changed.wait(&mut state);
        }
    }
}

/// Where the calls of one model land, for the event loop that runs them.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Port(pub(super) Arc<Landing>);

/// What `take` says of each event: its kind, the number of the call, and of a new call itself and its item.
type Taken<'py> = (&'static str, u64, Option<AsyncCall>, Option<Bound<'py, PyAny>>);

#[pymethods]
impl Port {
    /// The socket that can be read when there is something to take.
    fn fileno(&self) -> i32 {
        self.0.wakes.as_raw_fd()
    }

    /// All that happened: "call", "over", "room" or "closed".
    fn take<'py>(&self, py: Python<'py>) -> Vec<Taken<'py>> {
        let mut bytes = [0; 64];
        // Before the events are taken, so that one that comes later wakes the loop again.
        while (&self.0.wakes).read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
        let events = std::mem::take(&mut self.0.state.lock().events);
        let mut taken = Vec::with_capacity(events.len());
        for event in events {
            match event {
                Event::Over(number) => taken.push(("over", number, None, None)),
                Event::Room(number) => taken.push(("room", number, None, None)),
                Event::Closed => taken.push(("closed", 0, None, None)),
                Event::Call(running, number) => {
                    let item = running.item(py);
                    let call = AsyncCall {
                        landing: Arc::clone(&self.0),
                        number,
                        state: Mutex::new(Some(running)),
                        piece: Mutex::new(None),
                    };
                    match item {
                        Ok(item) => taken.push(("call", number, Some(call), Some(item))),
                        Err(malformed) => call.end(|running| running.refuse(malformed)),
                    }
                }
            }
        }
        taken
    }
}

/// A call that an event loop runs.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct AsyncCall {
    landing: Arc<Landing>,
    number: u64,
    state: Mutex<Option<Running>>,
    /// One that there was no room for.
    piece: Mutex<Option<Vec<u8>>>,
}

impl AsyncCall {
    fn end(&self, how: impl FnOnce(Running) -> Duration) {
        let Some(running) = self.state.lock().take() else { return };
        let instance = running.instance();
        how(running);
        self.landing.ended(instance);
    }
}

#[pymethods]
impl AsyncCall {
    /// How urgent its request is.
    fn priority(&self) -> &'static str {
        let state = self.state.lock();
        let call = state.as_ref().and_then(Running::call);
        call.map_or(Priority::default(), |call| call.priority).name()
    }

    /// See `Worker.whole`.
    fn whole<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>,)> {
        self.state.lock().as_ref()?.whole(py).map(|whole| (whole,))
    }

    /// Ends the call with its result.
    fn complete(&self, result: &Bound<'_, PyAny>) {
        self.end(|running| running.complete(result));
    }

    /// Ends the call with what its function raised; where nobody waits any more, that is only that it was
    /// cancelled, and no failure of the model's.
    fn fail(&self, py: Python<'_>, raised: Py<PyAny>) {
        self.end(|running| match running.call().is_some_and(|call| call.is_over()) {
            true => running.finish(),
            false => running.fail(py, PyErr::from_value(raised.into_bound(py))),
        });
    }

    /// Ends a call whose pieces were its result.
    fn finish(&self) {
        self.end(Running::finish);
    }

    /// Sends a piece of the result, or again the one that there was no room for: "sent", "full" (a "room" says
    /// when to send again) or "left".
    #[pyo3(signature = (piece=None))]
    fn put(&self, piece: Option<&Bound<'_, PyAny>>) -> PyResult<&'static str> {
        let (bytes, call) = {
            let state = self.state.lock();
            let Some(running) = state.as_ref() else { return Ok("left") };
            let Some(call) = running.call() else { return Ok("left") };
            let bytes = match piece {
                Some(piece) => Some(running.piece(piece)?),
                None => self.piece.lock().take(),
            };
            (bytes, Arc::clone(call))
        };
        let (Some(bytes), Some(feed)) = (bytes, call.feed.as_ref()) else { return Ok("sent") };
        let (landing, number) = (Arc::downgrade(&self.landing), self.number);
        let room = move || {
            if let Some(landing) = landing.upgrade() {
                landing.push(Event::Room(number));
            }
        };
        Ok(match feed.try_put(bytes, room) {
            Ok(()) => "sent",
            Err(Full::Left) => "left",
            Err(Full::Now(bytes)) => {
                *self.piece.lock() = Some(bytes);
                "full"
            }
        })
    }
}
