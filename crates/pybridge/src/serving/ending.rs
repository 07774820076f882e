//! How a call ends: what Python returned or raised, as the queue is told it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use trustformers_batching::batcher::Job;
use trustformers_batching::{BatchError, InstanceId, ModelError};
use trustformers_serve::hosted::{Answer, Call, Calls};
use trustformers_serve::http::error::{ApiError, Code};

use super::decode::decode;
use super::encode::encode;
use crate::error;

/// A call that runs.
pub(super) struct Running {
    calls: Arc<Calls>,
    model: Arc<str>,
    instance: InstanceId,
    job: Job<Call>,
    started: Instant,
}

impl Running {
    pub(super) fn new(calls: &Arc<Calls>, model: &Arc<str>, instance: InstanceId, job: Job<Call>) -> Self {
        let (calls, model) = (Arc::clone(calls), Arc::clone(model));
        Self { calls, model, instance, job, started: Instant::now() }
    }

    /// The call; a job without one is none.
    pub(super) fn call(&self) -> Option<&Arc<Call>> {
        self.job.inputs.first()
    }

    pub(super) fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The item, or what is malformed in it.
    pub(super) fn item<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, ApiError> {
        match self.call() {
            Some(call) => decode(py, &call.item),
            None => Err(ApiError::malformed("there is no item")),
        }
    }

    /// The body that the item is the data of, if it is.
    pub(super) fn whole<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        decode(py, self.call()?.whole.as_ref()?).ok()
    }

    /// One piece of the result.
    ///
    /// # Errors
    /// `SerializationError`
    pub(super) fn piece(&self, piece: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let Some(call) = self.call() else { return Ok(Vec::new()) };
        encode(piece, call.reply, &self.model)
    }

    /// Ends it with what Python returned; says how long it took.
    pub(super) fn complete(self, result: &Bound<'_, PyAny>) -> Duration {
        match self.piece(result) {
            Ok(document) => self.end(Ok(Ok(document))),
            Err(unwritable) => self.fail(result.py(), unwritable),
        }
    }

    /// Ends it without a result: the pieces were it.
    pub(super) fn finish(self) -> Duration {
        self.end(Ok(Ok(Vec::new())))
    }

    /// Ends it with what Python raised.
    pub(super) fn fail(self, py: Python<'_>, raised: PyErr) -> Duration {
        let ending = match blameless(py, &raised) {
            Some(error) => Ok(Err(error)),
            None => Err(ModelError(words(py, &self.model, &raised))),
        };
        self.end(ending)
    }

    /// Ends it with an error that is no fault of the model's.
    pub(super) fn refuse(self, error: ApiError) -> Duration {
        self.end(Ok(Err(error)))
    }

    fn end(self, ending: Result<Answer, ModelError>) -> Duration {
        if let Some(call) = self.call() {
            call.unwatch();
        }
        let busy = self.started.elapsed();
        let results = match ending {
            Ok(answer) => Ok(vec![Ok(answer)]),
            Err(failure) => Err(BatchError::Failed(failure)),
        };
        self.calls.complete(self.instance, self.job, results, busy, None);
        busy
    }
}

/// Errors that a function may raise and that are not the model's failure.
const BLAMELESS: [Code; 6] = [
    Code::InvalidInput,
    Code::QueueFull,
    Code::Overloaded,
    Code::BreakerOpen,
    Code::DeadlineExceeded,
    Code::ShuttingDown,
];

/// The error reply that an exception stands for, where it is one of this package's own that was raised here;
/// one that came from another server has the id of a request.
fn blameless(py: Python<'_>, raised: &PyErr) -> Option<ApiError> {
    if !error::is_own(py, raised) {
        return None;
    }
    let value = raised.value(py);
    let code: String = value.getattr("code").ok()?.extract().ok()?;
    let code = BLAMELESS.into_iter().find(|known| known.name() == code)?;
    if !value.getattr("request_id").ok()?.is_none() {
        return None;
    }
    let mut error = ApiError::new(code, value.str().ok()?.to_string());
    let wait = value.getattr("retry_after").ok().and_then(|wait| wait.extract::<f64>().ok());
    let overloaded = matches!(code, Code::QueueFull | Code::Overloaded);
    let wait = wait.and_then(|wait| Duration::try_from_secs_f64(wait).ok());
    error.retry_after = wait.or_else(|| overloaded.then_some(Duration::ZERO));
    Some(error)
}

/// The message of a model that failed.
fn words(py: Python<'_>, model: &str, raised: &PyErr) -> String {
    let text = raised.value(py).str().map_or_else(|_| String::new(), |text| text.to_string());
    if error::names_model(py, raised) {
        return text;
    }
    let kind =
        raised.get_type(py).qualname().map_or_else(|_| "exception".to_owned(), |kind| kind.to_string());
    let text = if text.is_empty() { text } else { format!(": {text}") };
    format!("model \"{model}\" inference failed: {kind}{text}")
}
