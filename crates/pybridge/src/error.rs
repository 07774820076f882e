//! The Python exception of each Rust error. The classes are Python's own, so that one hierarchy
//! covers the client, the configuration and the server.

use std::fmt::Display;

use pyo3::prelude::*;
use trustformers_serve::http::error::Code;

/// The imported classes; the macro that makes them cannot document them one by one.
mod class {
    pyo3::import_exception!(trustformers_serve.errors, BatcherClosedError);
    pyo3::import_exception!(trustformers_serve.errors, BatchResultsError);
    pyo3::import_exception!(trustformers_serve.errors, ConfigError);
    pyo3::import_exception!(trustformers_serve.errors, ExecutorError);
    pyo3::import_exception!(trustformers_serve.errors, QueueFullError);
    pyo3::import_exception!(trustformers_serve.errors, ServerNotReadyError);
    pyo3::import_exception!(trustformers_serve.errors, ServerStartError);
}

/// A configuration that the server refuses.
pub(crate) fn config(message: impl Display) -> PyErr {
    class::ConfigError::new_err(message.to_string())
}

/// A server that could not start: its address is taken, say, or its device is absent.
pub(crate) fn start(message: impl Display) -> PyErr {
    class::ServerStartError::new_err(message.to_string())
}

/// A server that runs, with models that failed to load or still load.
pub(crate) fn not_ready(message: impl Display) -> PyErr {
    class::ServerNotReadyError::new_err(message.to_string())
}

/// A batcher that takes nothing more, or ended before the item ran.
pub(crate) fn closed(message: impl Display) -> PyErr {
    class::BatcherClosedError::new_err(message.to_string())
}

/// An executor that failed its whole batch, or is called in a way that would wait for itself.
pub(crate) fn executor(message: impl Display) -> PyErr {
    class::ExecutorError::new_err(message.to_string())
}

/// A function that returned what is no list of as many results as it was given records.
pub(crate) fn results(message: impl Display) -> PyErr {
    class::BatchResultsError::new_err(message.to_string())
}

/// A queue that has no place for an item that does not wait for one.
pub(crate) fn queue_full(message: impl Display) -> PyErr {
    class::QueueFullError::new_err(message.to_string())
}

/// Every code that an error of the server can have, with its HTTP status.
#[pyfunction]
pub(crate) fn error_codes() -> Vec<(&'static str, u16)> {
    Code::ALL.iter().map(|code| code.on_the_wire()).map(|(name, status)| (name, status.as_u16())).collect()
}
