//! Waiting for Rust without the GIL, and with Python's signal handlers still served.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// The longest that Ctrl-C waits for its handler.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own and waits for it, while the calling thread serves signals.
///
/// # Errors
/// What a signal handler raised (`KeyboardInterrupt`); `work` then goes on, unobserved.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = sync_channel(1);
    let worker = thread::Builder::new().name("ts-python-wait".into()).spawn(move || {
        // The receiver is gone when a signal ended the wait: nobody wants the answer then.
        let _ = sender.send(work());
    })?;
    loop {
        // Borrowed mutably because a receiver may be sent to another thread but not shared with one.
        let answers = &mut receiver;
        match py.detach(move || answers.recv_timeout(POLL)) {
            Ok(answer) => {
                // Joined, so that no thread outlives the call that made it.
                py.detach(|| worker.join())
                    .map_err(|_| PyRuntimeError::new_err("a waiting thread panicked"))?;
                return Ok(answer);
            }
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("the server panicked; its log says where"));
            }
        }
    }
}

/// Longer than anyone waits, and short enough to be added to any instant.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Seconds from Python as a duration, at most ten years.
///
/// # Errors
/// `ValueError` when it is negative or not a number.
pub(crate) fn seconds(value: f64) -> PyResult<Duration> {
    if value >= LONGEST.as_secs_f64() {
        return Ok(LONGEST);
    }
    Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(format!("{value} s: {error}")))
}
