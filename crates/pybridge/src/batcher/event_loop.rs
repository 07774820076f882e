//! Answers on their way to an event loop: one call into the loop for all that a batch has for it.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::executor::failure;
use super::item::Answer;

/// Where the answers for one event loop land.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct LoopPort {
    call_soon_threadsafe: Py<PyAny>,
    landed: Mutex<Vec<(Py<PyAny>, Answer)>>,
}

impl LoopPort {
    /// Leaves an answer; true for the first since the loop last took them, which has to call it.
    pub(super) fn leave(&self, future: Py<PyAny>, answer: Answer) -> bool {
        let mut landed = self.landed.lock();
        landed.push((future, answer));
        landed.len() == 1
    }

    /// Has the loop take what landed; a closed loop has nobody left who waits.
    pub(super) fn call(this: &Bound<'_, Self>) {
        let port = this.get();
        if port.call_soon_threadsafe.call1(this.py(), (this,)).is_err() {
            let lost = std::mem::take(&mut *port.landed.lock());
            drop(lost);
        }
    }
}

#[pymethods]
impl LoopPort {
    #[new]
    fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let call_soon_threadsafe = event_loop.getattr("call_soon_threadsafe")?.unbind();
        Ok(Self { call_soon_threadsafe, landed: Mutex::new(Vec::new()) })
    }

    /// Hands every answer that landed to its future; called by the loop.
    fn __call__(&self, py: Python<'_>) {
        let landed = std::mem::take(&mut *self.landed.lock());
        hand_on(py, landed);
    }
}

/// Hands answers to futures of the running loop.
pub(super) fn hand_on(py: Python<'_>, landed: Vec<(Py<PyAny>, Answer)>) {
    for (future, answer) in landed {
        // Fails where it was cancelled meanwhile: then nobody waits.
        drop(settle(future.bind(py), answer));
    }
}

/// Ends a future, of `asyncio` or of `concurrent.futures`.
pub(crate) fn settle(future: &Bound<'_, PyAny>, answer: Answer) -> PyResult<()> {
    let py = future.py();
    match answer {
        Answer::Result(value) => future.call_method1(pyo3::intern!(py, "set_result"), (value,))?,
        Answer::Error(error) => {
            let set = pyo3::intern!(py, "set_exception");
            let done = future.call_method1(set, (error.clone_ref(py),));
            // A future of asyncio takes no StopIteration.
            done.or_else(|refused| {
                if !refused.is_instance_of::<pyo3::exceptions::PyTypeError>(py) {
                    return Err(refused);
                }
                future.call_method1(set, (failure(py, "the item failed with StopIteration", Some(&error)),))
            })?
        }
    };
    Ok(())
}
