//! Every error a client can cause: one table of codes and statuses, two bodies.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trustformers_batching::{Failure, Rejection};

/// What went wrong, as clients see it in `error.code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the table below says what each is
pub enum Code {
    MalformedRequest,
    PriorityNotAllowed,
    ModelNotFound,
    VersionNotFound,
    RouteNotFound,
    MethodNotAllowed,
    RequestTimeout,
    BodyTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    InvalidInput,
    QueueFull,
    Overloaded,
    HeadersTooLarge,
    ModelFailed,
    BreakerOpen,
    ModelNotReady,
    ShuttingDown,
    DeadlineExceeded,
}

impl Code {
    /// All codes, for tests and documentation.
    pub const ALL: [Code; 19] = [
        Code::MalformedRequest,
        Code::PriorityNotAllowed,
        Code::ModelNotFound,
        Code::VersionNotFound,
        Code::RouteNotFound,
        Code::MethodNotAllowed,
        Code::RequestTimeout,
        Code::BodyTooLarge,
        Code::UriTooLong,
        Code::UnsupportedMediaType,
        Code::InvalidInput,
        Code::QueueFull,
        Code::Overloaded,
        Code::HeadersTooLarge,
        Code::ModelFailed,
        Code::BreakerOpen,
        Code::ModelNotReady,
        Code::ShuttingDown,
        Code::DeadlineExceeded,
    ];

    /// The name on the wire, and the HTTP status.
    pub const fn on_the_wire(self) -> (&'static str, StatusCode) {
        match self {
            Code::MalformedRequest => ("malformed_request", StatusCode::BAD_REQUEST),
            Code::PriorityNotAllowed => ("priority_not_allowed", StatusCode::FORBIDDEN),
            Code::ModelNotFound => ("model_not_found", StatusCode::NOT_FOUND),
            Code::VersionNotFound => ("version_not_found", StatusCode::NOT_FOUND),
            Code::RouteNotFound => ("route_not_found", StatusCode::NOT_FOUND),
            Code::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
            Code::RequestTimeout => ("request_timeout", StatusCode::REQUEST_TIMEOUT),
            Code::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE),
            Code::UriTooLong => ("uri_too_long", StatusCode::URI_TOO_LONG),
            Code::UnsupportedMediaType => ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Code::InvalidInput => ("invalid_input", StatusCode::UNPROCESSABLE_ENTITY),
            Code::QueueFull => ("queue_full", StatusCode::TOO_MANY_REQUESTS),
            Code::Overloaded => ("overloaded", StatusCode::TOO_MANY_REQUESTS),
            Code::BreakerOpen => ("breaker_open", StatusCode::SERVICE_UNAVAILABLE),
            Code::HeadersTooLarge => ("headers_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Code::ModelFailed => ("model_failed", StatusCode::INTERNAL_SERVER_ERROR),
            Code::ModelNotReady => ("model_not_ready", StatusCode::SERVICE_UNAVAILABLE),
            Code::ShuttingDown => ("shutting_down", StatusCode::SERVICE_UNAVAILABLE),
            Code::DeadlineExceeded => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
        }
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        self.on_the_wire().0
    }
}

/// An error on its way to a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Decides the status.
    pub code: Code,
    /// For people.
    pub message: String,
    /// When it is worth trying again; becomes `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Whether a model's own counter has it already.
    pub counted: bool,
    /// Which field of the request it is about, where the reply has a place for that.
    pub param: Option<&'static str>,
    /// What OpenAI calls it, where its clients go by that.
    pub openai_code: Option<&'static str>,
}

impl ApiError {
    /// An error with a message for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
            counted: false,
            param: None,
            openai_code: None,
        }
    }

    /// A prompt or a text that is too long for the model, by the fault of one field.
    pub fn beyond_context(field: &'static str, message: impl Into<String>) -> Self {
        Self { openai_code: Some("context_length_exceeded"), ..Self::of_field(field, message) }
    }

    /// A request that could not be parsed.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Code::MalformedRequest, message)
    }

    /// A request that does not fit the model.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidInput, message)
    }

    /// The same because of one field of its body.
    pub fn of_field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::invalid(message) }
    }

    /// What a refused submission tells its client; `drain` is how long the queue will take.
    pub fn rejected(rejection: &Rejection, drain: Option<Duration>) -> Self {
        let code = match rejection {
            Rejection::QueueFull { .. }
            | Rejection::QueueCostFull { .. }
            | Rejection::QueueBytesFull { .. } => Code::QueueFull,
            Rejection::Overloaded { .. } => Code::Overloaded,
            Rejection::NeverFits { .. } | Rejection::NeverFitsMemory { .. } => Code::InvalidInput,
            Rejection::DeadlinePassed | Rejection::DeadlineUnmeetable { .. } => Code::DeadlineExceeded,
            Rejection::BreakerOpen { .. } => Code::BreakerOpen,
            Rejection::Draining => Code::ModelNotReady,
        };
        let mut error = Self::new(code, rejection.to_string());
        error.retry_after = match rejection {
            Rejection::BreakerOpen { retry_after } => Some(*retry_after),
            _ if code == Code::QueueFull || code == Code::Overloaded => Some(drain.unwrap_or_default()),
            _ => None,
        };
        error
    }

    /// The status that `style` has for it.
    fn status(&self, style: ErrorStyle) -> StatusCode {
        match (style, self.code.on_the_wire().1) {
            (ErrorStyle::OpenAi, StatusCode::UNPROCESSABLE_ENTITY) => StatusCode::BAD_REQUEST,
            (_, status) => status,
        }
    }

    /// The body that `style` has, naming the request.
    pub(super) fn body(&self, style: ErrorStyle, request_id: &str) -> Value {
        let (code, message) = (self.code.name(), &self.message);
        match style {
            ErrorStyle::Own => {
                json!({ "error": { "code": code, "message": message, "request_id": request_id } })
            }
            ErrorStyle::OpenAi => {
                let kind = match self.status(style).as_u16() {
                    429 => "rate_limit_error",
                    400..=499 => "invalid_request_error",
                    _ => "server_error",
                };
                let code = self.openai_code.unwrap_or(code);
                json!({ "error": { "message": message, "type": kind, "param": self.param, "code": code } })
            }
        }
    }

    /// The reply in the body that `style` has, naming the request.
    pub fn into_reply(self, style: ErrorStyle, request_id: &str) -> Response {
        let (status, body) = (self.status(style), self.body(style, request_id).to_string());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up, at least one: the header has no fractions.
            let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let code = match failure {
            Failure::NeverFits => Code::InvalidInput,
            Failure::ExpiredInQueue | Failure::GivenUp | Failure::ExpiredRunning => Code::DeadlineExceeded,
            // Not `ShuttingDown`, which says that trying again is safe: the model may have done its work.
            Failure::Model(_) | Failure::ClosedRunning => Code::ModelFailed,
            Failure::ClosedInQueue => Code::ShuttingDown,
        };
        Self::new(code, failure.to_string())
    }
}

/// The outer service turns the error into a body, because only it knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.on_the_wire().1.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whose shape an error body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `{"error": {"code", "message", "request_id"}}`
    Own,
    /// `{"error": {"message", "type", "param", "code"}}`, and 400 for what does not fit.
    OpenAi,
}
