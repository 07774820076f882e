//! The Python exception of each Rust error. The classes are Python's own, so that one hierarchy
//! covers the client, the configuration and the server.

use std::fmt::Display;
use std::time::Duration;

use pyo3::prelude::*;
use trustformers_batching::Rejection;
use trustformers_serve::http::error::Code;

/// The imported classes; the macro that makes them cannot document them one by one.
mod class {
    pyo3::import_exception!(trustformers_serve.errors, BatcherClosedError);
    pyo3::import_exception!(trustformers_serve.errors, BreakerOpenError);
    pyo3::import_exception!(trustformers_serve.errors, BatchResultsError);
    pyo3::import_exception!(trustformers_serve.errors, ConfigError);
    pyo3::import_exception!(trustformers_serve.errors, ExecutorError);
    pyo3::import_exception!(trustformers_serve.errors, InferenceError);
    pyo3::import_exception!(trustformers_serve.errors, OverloadedError);
    pyo3::import_exception!(trustformers_serve.errors, QueueFullError);
    pyo3::import_exception!(trustformers_serve.errors, SerializationError);
    pyo3::import_exception!(trustformers_serve.errors, ServerNotReadyError);
    pyo3::import_exception!(trustformers_serve.errors, ServerStartError);
    pyo3::import_exception!(trustformers_serve.errors, TrustformersError);
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

/// A result that neither JSON nor MessagePack can carry.
pub(crate) fn serialization(message: impl Display) -> PyErr {
    class::SerializationError::new_err(message.to_string())
}

/// Whether an exception is one of this package.
pub(crate) fn is_own(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<class::TrustformersError>(py)
}

/// Whether an exception's own message says which model failed.
pub(crate) fn names_model(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<class::InferenceError>(py) || error.is_instance_of::<class::SerializationError>(py)
}

/// An item that was not admitted, for another reason than that its batcher is closed.
pub(crate) fn rejected(py: Python<'_>, rejection: &Rejection) -> PyErr {
    let message = rejection.to_string();
    let (error, retry_after) = match rejection {
        Rejection::Overloaded { predicted, limit } => {
            (class::OverloadedError::new_err(message), Some(predicted.saturating_sub(*limit)))
        }
        Rejection::BreakerOpen { retry_after } => {
            (class::BreakerOpenError::new_err(message), Some(*retry_after))
        }
        _ => (queue_full(message), None),
    };
    if let Some(seconds) = retry_after.as_ref().map(Duration::as_secs_f64) {
        // Without it the message still says what happened.
        drop(error.value(py).setattr(pyo3::intern!(py, "retry_after"), seconds));
    }
    error
}

/// Every code that an error of the server can have, with its HTTP status.
#[pyfunction]
pub(crate) fn error_codes() -> Vec<(&'static str, u16)> {
    Code::ALL.iter().map(|code| code.on_the_wire()).map(|(name, status)| (name, status.as_u16())).collect()
}
