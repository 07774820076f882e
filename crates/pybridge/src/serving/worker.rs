//! `Worker`: a thread of Python's that takes a model's calls.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use trustformers_batching::InstanceId;
use trustformers_serve::hosted::Calls;

use super::crew::Crew;
use super::ending::Running;

/// What one thread takes calls with.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Worker {
    calls: Arc<Calls>,
    crew: Arc<Crew>,
    model: Arc<str>,
    instance: InstanceId,
    /// Starts a thread with another worker.
    start: Py<PyAny>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether the crew counts it among those that take calls.
    active: bool,
    running: Option<Running>,
}

impl Worker {
    /// Starts threads as long as the crew wants more.
    pub(super) fn start_wanted(
        py: Python<'_>,
        calls: &Arc<Calls>,
        crew: &Arc<Crew>,
        model: &Arc<str>,
        start: &Py<PyAny>,
    ) -> PyResult<()> {
        while let Some(number) = crew.wants_thread() {
            let worker = Worker {
                calls: Arc::clone(calls),
                crew: Arc::clone(crew),
                model: Arc::clone(model),
                instance: InstanceId(number),
                start: start.clone_ref(py),
                state: Mutex::default(),
            };
            start.call1(py, (worker,)).inspect_err(|_| crew.lost_thread())?;
        }
        Ok(())
    }

    fn take(&self) -> Option<Running> {
        self.state.lock().running.take()
    }

    /// Tells the crew that a call ended.
    fn ended(&self, busy: std::time::Duration) {
        let stays = self.crew.ended(busy);
        self.state.lock().active = stays;
    }
}

#[pymethods]
impl Worker {
    /// Waits for the next call: a tuple of its item; `None` when there will be no more.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        loop {
            let active = std::mem::replace(&mut self.state.lock().active, true);
            let job = py.detach(|| {
                if !active {
                    self.crew.enter();
                }
                let job = self.calls.next(self.instance);
                if job.is_some() {
                    self.crew.begins();
                }
                job
            });
            let Some(job) = job else {
                self.crew.leave();
                return Ok(None);
            };
            // Without another thread calls may wait longer, which is no reason to fail this one.
            drop(Self::start_wanted(py, &self.calls, &self.crew, &self.model, &self.start));
            let running = Running::new(&self.calls, &self.model, self.instance, job);
            if running.call().is_none_or(|call| call.is_over()) {
                self.ended(running.finish());
                continue;
            }
            match running.item(py) {
                Ok(item) => {
                    self.state.lock().running = Some(running);
                    return Ok(Some((item,)));
                }
                Err(malformed) => self.ended(running.refuse(malformed)),
            }
        }
    }

    /// The body that the item is the `data` of, in a tuple; `None` where it is not.
    fn whole<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>,)> {
        self.state.lock().running.as_ref()?.whole(py).map(|whole| (whole,))
    }

    /// Ends the call with its result.
    fn complete(&self, result: &Bound<'_, PyAny>) {
        if let Some(running) = self.take() {
            self.ended(running.complete(result));
        }
    }

    /// Ends the call with what its function raised.
    fn fail(&self, py: Python<'_>, raised: Py<PyAny>) {
        if let Some(running) = self.take() {
            self.ended(running.fail(py, PyErr::from_value(raised.into_bound(py))));
        }
    }

    /// Sends a piece of the result, and waits for the client to take it. False when it has left.
    fn put(&self, py: Python<'_>, piece: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (bytes, call) = {
            let state = self.state.lock();
            let Some(running) = state.running.as_ref() else { return Ok(false) };
            let Some(call) = running.call() else { return Ok(false) };
            (running.piece(piece)?, Arc::clone(call))
        };
        Ok(py.detach(|| call.feed.as_ref().is_some_and(|feed| !call.is_over() && feed.put(bytes))))
    }

    /// Ends a call whose pieces were its result.
    fn finish(&self) {
        if let Some(running) = self.take() {
            self.ended(running.finish());
        }
    }
}
