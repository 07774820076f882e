//! Executors: what runs a batch, told apart so that no two share one, and what they may return.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PySequence, PyString, PyTuple, PyType};

use super::item::Answer;
use crate::error;

/// A callable with items in flight.
pub(super) struct Executor {
    pub(super) callable: Py<PyAny>,
    /// Unlike that of any other executor with items in flight.
    pub(super) number: u64,
}

/// Addresses that name a callable for as long as it lives: its own, or those of a method's object and
/// function, because every access makes another method object.
type Identity = (usize, usize);

/// Who was last known by an identity.
struct Seen {
    executor: Weak<Executor>,
    /// Given again to who has that identity next: for a new one at every pause, the scheduler would learn a
    /// new group.
    number: u64,
}

#[derive(Default)]
struct Known {
    executors: HashMap<Identity, Seen>,
    next_number: u64,
    /// Forget those without items in flight when there are more than this.
    sweep_above: usize,
}

/// The executors with items in flight.
#[derive(Default)]
pub(super) struct Executors(Mutex<Known>);

/// Below this many executors none is looked for that could be forgotten.
const FEW: usize = 64;

impl Executors {
    /// The executor that `callable` is.
    ///
    /// # Errors
    /// `TypeError` naming it when it is not callable, a coroutine function or a generator function.
    pub(super) fn of(&self, callable: &Bound<'_, PyAny>) -> PyResult<Arc<Executor>> {
        let identity = identity(callable)?;
        if let Some(known) = self.0.lock().executors.get(&identity).and_then(|seen| seen.executor.upgrade()) {
            return Ok(known);
        }
        check(callable)?;
        let mut known = self.0.lock();
        let number = known.executors.get(&identity).map_or(known.next_number, |seen| seen.number);
        known.next_number = known.next_number.max(number + 1);
        let executor = Arc::new(Executor { callable: callable.clone().unbind(), number });
        // Alive in the table means that it holds its callable, so that no other has its address.
        known.executors.insert(identity, Seen { executor: Arc::downgrade(&executor), number });
        if known.executors.len() > known.sweep_above.max(FEW) {
            known.executors.retain(|_, seen| seen.executor.strong_count() > 0);
            known.sweep_above = 2 * known.executors.len();
        }
        Ok(executor)
    }
}

fn identity(callable: &Bound<'_, PyAny>) -> PyResult<Identity> {
    static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = callable.py();
    if callable.get_type().is(METHOD.import(py, "types", "MethodType")?) {
        let of = callable.getattr(pyo3::intern!(py, "__self__"))?.as_ptr() as usize;
        return Ok((of, callable.getattr(pyo3::intern!(py, "__func__"))?.as_ptr() as usize));
    }
    Ok((callable.as_ptr() as usize, 0))
}

/// The flags of code that does not run when it is called: generators, coroutines and both in one.
const NOT_PLAIN: u32 = 0x20 | 0x80 | 0x200;

fn check(callable: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = callable.py();
    if !callable.is_callable() {
        let text = format!("an executor must be callable, not {}", callable.repr()?);
        return Err(PyTypeError::new_err(text));
    }
    let flags = code(callable).and_then(|code| code.getattr(pyo3::intern!(py, "co_flags"))?.extract::<u32>());
    if flags.is_ok_and(|flags| flags & NOT_PLAIN != 0) {
        let text =
            format!("{} is a coroutine or generator function; an executor returns a list", name(callable));
        return Err(PyTypeError::new_err(text));
    }
    Ok(())
}

/// The code that runs when it is called: of what a partial function calls, and of an object's `__call__`.
fn code<'py>(callable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static PARTIAL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let (py, mut function) = (callable.py(), callable.clone());
    let name = pyo3::intern!(py, "__code__");
    if let Ok(code) = function.getattr(name) {
        return Ok(code);
    }
    let partial = PARTIAL.import(py, "functools", "partial")?;
    while function.is_instance(partial)? {
        function = function.getattr(pyo3::intern!(py, "func"))?;
    }
    function
        .getattr(name)
        .or_else(|_| function.get_type().getattr(pyo3::intern!(py, "__call__"))?.getattr(name))
}

/// What a message calls it.
pub(super) fn name(callable: &Bound<'_, PyAny>) -> String {
    let py = callable.py();
    let function = callable.getattr(pyo3::intern!(py, "func")).unwrap_or_else(|_| callable.clone());
    let named = function.getattr(pyo3::intern!(py, "__qualname__")).and_then(|name| name.extract::<String>());
    named.unwrap_or_else(|_| {
        function.get_type().qualname().map_or_else(|_| "the executor".to_owned(), |name| name.to_string())
    })
}

/// The answers in what an executor returned for `count` items: an exception among them is its item's alone.
///
/// # Errors
/// What is wrong with it, in words that name the executor.
pub(crate) fn answers(
    executor: &Bound<'_, PyAny>,
    results: &Bound<'_, PyAny>,
    count: usize,
) -> Result<Vec<Answer>, String> {
    let wrong = |given: &str| {
        let name = name(executor);
        format!(
            "{name} returned {given} for a batch of {count}; an executor returns a list, one result an item"
        )
    };
    let found: Vec<Answer> = if let Ok(list) = results.cast::<PyList>() {
        list.iter().map(answer).collect()
    } else if let Ok(tuple) = results.cast::<PyTuple>() {
        tuple.iter().map(answer).collect()
    } else {
        let text = results.is_instance_of::<PyString>()
            || results.is_instance_of::<PyBytes>()
            || results.is_instance_of::<PyByteArray>();
        let sequence = results.cast::<PySequence>().ok().filter(|_| !text);
        let rows = results.hasattr("__getitem__").unwrap_or(false) && results.len().is_ok();
        let mapping = results.hasattr("keys").unwrap_or(true);
        if sequence.is_none() && (text || mapping || !rows) {
            close(results);
            let kind = results.get_type().qualname().map_or_else(|_| "?".to_owned(), |kind| kind.to_string());
            return Err(wrong(if results.is_none() { "None" } else { &kind }));
        }
        let rows = results.try_iter().and_then(|rows| rows.map(|row| row.map(answer)).collect());
        rows.map_err(|error| wrong(&format!("what cannot be read ({error})")))?
    };
    if found.len() == count { Ok(found) } else { Err(wrong(&format!("{} results", found.len()))) }
}

fn answer(result: Bound<'_, PyAny>) -> Answer {
    if result.is_instance_of::<PyException>() {
        return Answer::Error(result.unbind());
    }
    Answer::Result(result.unbind())
}

/// A coroutine that nobody will await says so when it is collected; one that is closed does not.
fn close(results: &Bound<'_, PyAny>) {
    let kind = results.get_type().qualname().map_or_else(|_| String::new(), |kind| kind.to_string());
    if kind == "coroutine" || kind == "generator" {
        // It never ran, so closing it runs nothing that could fail.
        drop(results.call_method0("close"));
    }
}

/// The message for the callers of a batch whose executor raised.
pub(super) fn raised(executor: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>) -> String {
    let kind =
        error.get_type().qualname().map_or_else(|_| "an exception".to_owned(), |kind| kind.to_string());
    let text = error.str().map_or_else(|_| String::new(), |text| format!(": {text}"));
    format!("{} raised {kind}{text}", name(executor))
}

/// A new `ExecutorError` with the exception that it comes from, if there is one.
pub(super) fn failure(py: Python<'_>, message: &str, cause: Option<&Py<PyAny>>) -> Py<PyAny> {
    let value = error::executor(message).into_value(py).into_any();
    if let Some(cause) = cause {
        // Any exception takes a cause; without it the message still says what happened.
        drop(value.setattr(py, pyo3::intern!(py, "__cause__"), cause));
    }
    value
}
