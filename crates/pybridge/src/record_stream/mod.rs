//! `RecordStream`: the scheduler driven by one event loop of Python's.
//!
//! Invariants, those about absences first:
//! - No thread, and no waiting: everything happens in calls on the event loop's thread. The loop calls the
//!   stream itself, soon after a batch can start, and later when the window of one ends.
//! - No lock is held while Python code runs.
//! - Nothing is called for each record but what makes its future and what ends it.
//!
//! Code map:
//! - `cost`: what a record costs; `event_loop`: the methods of the loop

mod cost;
mod event_loop;

use std::collections::VecDeque;

use parking_lot::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use trustformers_batching::time::Clock;
use trustformers_batching::{MonotonicClock, Outcome, Stream, StreamConfig, Time};

use self::cost::Costs;
use self::event_loop::EventLoop;
use crate::batcher::{Answer, answers, settle};
use crate::error;
use crate::interrupt::seconds;

/// A record with the future of its result.
struct Record {
    value: Py<PyAny>,
    future: Py<PyAny>,
    cost: u64,
}

/// A record whose caller waits for a place.
struct Waiter {
    value: Py<PyAny>,
    cost: u64,
    /// Ends with the future of the record once that has its place.
    gate: Py<PyAny>,
}

/// What a batch that runs was given.
#[derive(Default)]
struct Running {
    records: Vec<Record>,
    cost: u64,
}

impl Running {
    /// Each member gets an exception of its own: raised by many, one would collect the tracebacks of all.
    fn fail(&self, py: Python<'_>, error: impl Fn() -> Py<PyAny>) {
        for record in &self.records {
            // Fails where the caller left meanwhile.
            drop(settle(record.future.bind(py), Answer::Error(error())));
        }
    }
}

struct State {
    stream: Stream<Record>,
    /// In order of arrival.
    waiters: VecDeque<Waiter>,
    running: Running,
    /// Whether the loop will call soon, and the time at which it will call later.
    soon: bool,
    later: Option<Time>,
    open: bool,
    /// Ends with the last record of a stream that is closed.
    drained: Option<Py<PyAny>>,
}

/// What the loop is to be asked for.
#[derive(Default)]
struct Wanted {
    soon: bool,
    later: Option<Time>,
}

impl State {
    /// Notes what the loop will be asked for, which it must then be.
    fn wanted(&mut self) -> Wanted {
        let soon = !self.soon && self.stream.is_startable();
        self.soon |= soon;
        let due = self.stream.due().filter(|&due| self.later.is_none_or(|later| due < later));
        self.later = due.or(self.later);
        Wanted { soon, later: due }
    }

    fn is_drained(&self) -> bool {
        !self.open && self.waiters.is_empty() && self.stream.is_idle()
    }
}

/// Where a record waits whose caller found the queue full.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Place {
    /// A future, whose result is the future of the record's.
    #[pyo3(get)]
    gate: Py<PyAny>,
}

/// The records of one event loop on their way through one function.
#[pyclass(frozen, weakref, module = "trustformers_serve._core")]
pub(crate) struct RecordStream {
    state: Mutex<State>,
    clock: MonotonicClock,
    costs: Costs,
    event_loop: EventLoop,
    /// What runs batches, for messages; `begin` knows how to call it.
    function: Py<PyAny>,
    /// Begins to run a batch; `complete` or `fail` is to be called when it has ended.
    begin: Py<PyAny>,
}

#[pymethods]
impl RecordStream {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "one for each limit, all by name")]
    #[pyo3(signature = (event_loop, function, begin, *, estimator, default_cost, target_cost, max_batch_size,
        min_batch_size, max_wait_seconds, max_queue_size, prefetch_batches))]
    fn new(
        event_loop: &Bound<'_, PyAny>,
        function: Py<PyAny>,
        begin: Py<PyAny>,
        estimator: Option<Py<PyAny>>,
        default_cost: u64,
        target_cost: u32,
        max_batch_size: u32,
        min_batch_size: u32,
        max_wait_seconds: f64,
        max_queue_size: u32,
        prefetch_batches: u32,
    ) -> PyResult<Self> {
        let mut stream = Stream::new(StreamConfig {
            target_cost,
            max_batch_size,
            min_batch_size,
            max_wait: seconds(max_wait_seconds)?,
            max_queue_size,
            prefetch_batches,
        });
        let clock = MonotonicClock::default();
        stream.open(clock.now());
        let state = State {
            stream,
            waiters: VecDeque::new(),
            running: Running::default(),
            soon: false,
            later: None,
            open: true,
            drained: None,
        };
        Ok(Self {
            state: Mutex::new(state),
            clock,
            costs: Costs::new(estimator, default_cost),
            event_loop: EventLoop::new(event_loop)?,
            function,
            begin,
        })
    }

    /// Brings a record; returns the future of its result, or the place where it waits for one in the queue.
    #[pyo3(signature = (record, cost=None))]
    fn submit<'py>(
        this: &Bound<'py, Self>,
        record: Bound<'py, PyAny>,
        cost: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, stream) = (this.py(), this.get());
        stream.event_loop.check(py)?;
        let cost = stream.costs.of(&record, cost)?;
        let future = stream.event_loop.future(py)?;
        let now = stream.clock.now();
        let mut state = stream.state.lock();
        if !state.open {
            drop(state);
            return Err(error::closed("the batcher is not running: it was stopped"));
        }
        let entering = Record { value: record.unbind(), future: future.clone().unbind(), cost };
        let refused = match state.waiters.is_empty() {
            true => state.stream.submit(now, clamped(cost), entering).err(),
            // Not past those who wait already.
            false => Some(entering),
        };
        if let Some(Record { value, future: gate, cost }) = refused {
            let place = Place { gate: gate.clone_ref(py) };
            state.waiters.push_back(Waiter { value, cost, gate });
            drop(state);
            return Ok(Bound::new(py, place)?.into_any());
        }
        let wanted = state.wanted();
        drop(state);
        Self::ask(this, &wanted, now)?;
        Ok(future)
    }

    /// Runs what can run; called by the event loop, with true where that had been asked to call later.
    #[pyo3(signature = (later=false))]
    fn __call__(this: &Bound<'_, Self>, later: bool) -> PyResult<()> {
        let stream = this.get();
        let now = stream.clock.now();
        let mut state = stream.state.lock();
        match later {
            true => state.later = None,
            false => state.soon = false,
        }
        state.stream.assemble(now);
        drop(state);
        Self::advance(this)
    }

    /// Ends the batch that runs with what the function returned.
    fn complete(this: &Bound<'_, Self>, results: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, stream) = (this.py(), this.get());
        let running = std::mem::take(&mut stream.state.lock().running);
        match answers(stream.function.bind(py), results, running.records.len()) {
            Ok(answers) => {
                let went_on = Self::end(this, Outcome::Completed, &running);
                for (record, answer) in running.records.iter().zip(answers) {
                    // Fails where the caller left meanwhile.
                    drop(settle(record.future.bind(py), answer));
                }
                went_on
            }
            Err(message) => {
                let error = || error::results(message.clone()).into_value(py).into_any();
                Self::end_failed(this, &running, error)
            }
        }
    }

    /// Ends the batch that runs with exceptions, which `make` makes one by one.
    fn fail(this: &Bound<'_, Self>, make: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = this.py();
        let running = std::mem::take(&mut this.get().state.lock().running);
        let error = || match make.call0() {
            Ok(error) => error.unbind(),
            Err(error) => error.into_value(py).into_any(),
        };
        Self::end_failed(this, &running, error)
    }

    /// Takes nothing new and lets what is here run without waiting for company; a future that ends with the
    /// last of it.
    fn drain<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, stream) = (this.py(), this.get());
        stream.event_loop.check(py)?;
        let drained = stream.state.lock().drained.as_ref().map(|drained| drained.clone_ref(py));
        if let Some(drained) = drained {
            return Ok(drained.into_bound(py));
        }
        let drained = stream.event_loop.future(py)?;
        let mut state = stream.state.lock();
        state.open = false;
        state.drained = Some(drained.clone().unbind());
        state.stream.drain(stream.clock.now());
        drop(state);
        Self::advance(this)?;
        Ok(drained)
    }

    /// Gives everything up: who waits is told that the batcher was closed, and what runs has no callers.
    fn abandon(this: &Bound<'_, Self>) {
        let (py, stream) = (this.py(), this.get());
        let mut state = stream.state.lock();
        state.open = false;
        let mut left = state.stream.abandon(stream.clock.now());
        left.append(&mut state.running.records);
        let waiters = std::mem::take(&mut state.waiters);
        let drained = state.drained.take();
        drop(state);
        let futures =
            left.iter().map(|record| &record.future).chain(waiters.iter().map(|waiter| &waiter.gate));
        for future in futures {
            let future = future.bind(py);
            drop(settle(future, Answer::Error(lost(py))));
            // Looked at, or a future that nobody awaits would be complained of.
            drop(future.call_method0(intern!(py, "exception")));
        }
        if let Some(drained) = drained {
            drop(settle(drained.bind(py), Answer::Result(py.None())));
        }
    }

    /// Whether it takes records.
    fn is_open(&self) -> bool {
        self.state.lock().open
    }

    /// Whether nothing new is taken and nothing is left.
    fn is_drained(&self) -> bool {
        self.state.lock().is_drained()
    }

    /// Records let in and run, batches, their cost, and seconds busy and idle.
    fn stats(&self) -> (u64, u64, u64, u64, f64, f64) {
        let stats = self.state.lock().stream.stats(self.clock.now());
        let (busy, idle) = (stats.busy.as_secs_f64(), stats.idle.as_secs_f64());
        (stats.submitted, stats.completed, stats.batches, stats.cost, busy, idle)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let objects = self.event_loop.objects().into_iter().chain(self.costs.objects());
        for object in objects.chain([&self.function, &self.begin]) {
            visit.call(object)?;
        }
        Ok(())
    }
}

impl RecordStream {
    fn ask(this: &Bound<'_, Self>, wanted: &Wanted, now: Time) -> PyResult<()> {
        let event_loop = &this.get().event_loop;
        if wanted.soon {
            event_loop.soon(this.as_any())?;
        }
        match wanted.later {
            Some(at) => event_loop.later(this.as_any(), at.since(now)),
            None => Ok(()),
        }
    }

    /// Admits who waits, begins the next batch if none runs, and asks the loop for what comes after.
    fn advance(this: &Bound<'_, Self>) -> PyResult<()> {
        let (py, stream) = (this.py(), this.get());
        Self::admit(this)?;
        while let Some(records) = stream.started() {
            if Self::begin(this, records)? {
                break;
            }
            Self::admit(this)?;
        }
        Self::admit(this)?;
        let now = stream.clock.now();
        let mut state = stream.state.lock();
        let drained = if state.is_drained() {
            state.stream.close(now);
            state.drained.as_ref().map(|drained| drained.clone_ref(py))
        } else {
            None
        };
        let wanted = state.wanted();
        drop(state);
        if let Some(drained) = drained {
            // Fails where it was told before.
            drop(settle(drained.bind(py), Answer::Result(py.None())));
        }
        Self::ask(this, &wanted, now)
    }

    /// Has a batch run; false where it ended at once, because nobody wants it or it cannot be begun.
    fn begin(this: &Bound<'_, Self>, records: Vec<Record>) -> PyResult<bool> {
        let (py, stream) = (this.py(), this.get());
        let (wanted, unwanted) = split(py, records);
        drop(unwanted);
        let end = |outcome, records, cost| {
            stream.state.lock().stream.complete(stream.clock.now(), outcome, records, cost);
        };
        if wanted.is_empty() {
            end(Outcome::Completed, 0, 0);
            return Ok(false);
        }
        let values = PyList::new(py, wanted.iter().map(|record| &record.value))?;
        let cost = wanted.iter().fold(0, |sum: u64, record| sum.saturating_add(record.cost));
        stream.state.lock().running = Running { records: wanted, cost };
        let Err(error) = stream.begin.call1(py, (this, values)) else { return Ok(true) };
        let running = std::mem::take(&mut stream.state.lock().running);
        end(Outcome::Failed, running.records.len() as u64, running.cost);
        let error = error.into_value(py).into_any();
        running.fail(py, || error.clone_ref(py));
        Ok(false)
    }

    fn started(&self) -> Option<Vec<Record>> {
        let now = self.clock.now();
        self.state.lock().stream.start(now)
    }

    /// Lets those in who wait for a place, as far as there are any.
    fn admit(this: &Bound<'_, Self>) -> PyResult<()> {
        let (py, stream) = (this.py(), this.get());
        loop {
            let mut state = stream.state.lock();
            if state.waiters.is_empty() || !state.stream.has_room() {
                return Ok(());
            }
            let Some(Waiter { value, cost, gate }) = state.waiters.pop_front() else { return Ok(()) };
            drop(state);
            let gate = gate.bind(py);
            if is_done(gate) {
                continue;
            }
            let future = stream.event_loop.future(py)?;
            let record = Record { value, future: future.clone().unbind(), cost };
            let refused =
                stream.state.lock().stream.submit(stream.clock.now(), clamped(cost), record).is_err();
            // There was room, and nothing else runs on this thread.
            debug_assert!(!refused);
            drop(settle(gate, Answer::Result(future.into_any().unbind())));
        }
    }

    /// Ends the batch in the stream, and begins the next before anybody is told.
    fn end(this: &Bound<'_, Self>, outcome: Outcome, running: &Running) -> PyResult<()> {
        let stream = this.get();
        let (now, records) = (stream.clock.now(), running.records.len() as u64);
        stream.state.lock().stream.complete(now, outcome, records, running.cost);
        Self::advance(this)
    }

    fn end_failed(this: &Bound<'_, Self>, running: &Running, error: impl Fn() -> Py<PyAny>) -> PyResult<()> {
        let py = this.py();
        let went_on = Self::end(this, Outcome::Failed, running);
        running.fail(py, error);
        went_on
    }
}

/// Those whose callers still wait, and those whose callers left.
fn split(py: Python<'_>, records: Vec<Record>) -> (Vec<Record>, Vec<Record>) {
    records.into_iter().partition(|record| !is_done(record.future.bind(py)))
}

fn is_done(future: &Bound<'_, PyAny>) -> bool {
    let done = future.call_method0(intern!(future.py(), "done"));
    done.and_then(|done| done.is_truthy()).unwrap_or(true)
}

fn clamped(cost: u64) -> u32 {
    u32::try_from(cost).unwrap_or(u32::MAX)
}

fn lost(py: Python<'_>) -> Py<PyAny> {
    error::closed("the batcher was closed before the record was done").into_value(py).into_any()
}
