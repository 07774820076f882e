//! The event loop that a stream belongs to, with its methods looked up once.

use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// One event loop of `asyncio`, or one that has its methods.
pub(super) struct EventLoop {
    event_loop: Py<PyAny>,
    running: Py<PyAny>,
    create_future: Py<PyAny>,
    call_soon: Py<PyAny>,
    call_later: Py<PyAny>,
}

impl EventLoop {
    pub(super) fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let running = event_loop.py().import("asyncio")?.getattr("_get_running_loop")?;
        Ok(Self {
            event_loop: event_loop.clone().unbind(),
            running: running.unbind(),
            create_future: event_loop.getattr("create_future")?.unbind(),
            call_soon: event_loop.getattr("call_soon")?.unbind(),
            call_later: event_loop.getattr("call_later")?.unbind(),
        })
    }

    /// # Errors
    /// `RuntimeError` where another event loop runs, or none: only this one may touch its futures.
    pub(super) fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.running.call0(py)?.is(&self.event_loop) {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "the batcher belongs to another event loop: it can be used on the one on which it was started",
        ))
    }

    pub(super) fn future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.create_future.bind(py).call0()
    }

    pub(super) fn soon(&self, callback: &Bound<'_, PyAny>) -> PyResult<()> {
        self.call_soon.call1(callback.py(), (callback,)).map(drop)
    }

    /// Calls `callback(True)` after a while.
    pub(super) fn later(&self, callback: &Bound<'_, PyAny>, delay: Duration) -> PyResult<()> {
        self.call_later.call1(callback.py(), (delay.as_secs_f64(), callback, true)).map(drop)
    }

    pub(super) fn objects(&self) -> [&Py<PyAny>; 5] {
        [&self.event_loop, &self.running, &self.create_future, &self.call_soon, &self.call_later]
    }
}
