//! The HTTP surface: routes, and the outer service that every request passes.

mod admin;
mod body;
pub mod client_id;
mod completions;
pub(crate) mod connection;
pub mod error;
mod event_stream;
mod health;
mod hosted;
mod hosted_stream;
mod infer;
mod models;
pub(crate) use self::models::describe;
mod openai;
mod openapi;
mod predict;
pub mod request_id;
mod tokenising;
mod tokens;
pub mod wire;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::ALLOW;
use axum::http::{HeaderValue, Method, Request, Response, Uri};
use axum::routing::{get, post};
use hyper::body::Incoming;
use tower::{Service, ServiceExt};

use self::body::Watched;
use self::error::{ApiError, Code, ErrorStyle};
use self::request_id::RequestId;
use crate::app::App;

/// All routes with their methods, for the start-up message and the tests.
pub const ROUTES: &[(&str, &str)] = &[
    ("POST", "/models/{name}/predict"),
    ("POST", "/v1/inference"),
    ("POST", "/v1/inference/batch"),
    ("POST", "/v1/inference/stream"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/models"),
    ("GET", "/models/{name}"),
    ("POST", "/admin/models/{name}/reset_breaker"),
    ("POST", "/models/{name}/load"),
    ("POST", "/models/{name}/unload"),
    ("GET", "/admin/models"),
    ("GET", "/admin/stats"),
    ("GET", "/admin/trace"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
];

/// The routes over one server's state.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/models/{name}/predict", post(predict::by_path))
        .route("/v1/inference", post(predict::by_body))
        .route("/v1/inference/batch", post(predict::by_body_many))
        .route("/v1/inference/stream", post(completions::inference::stream))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(completions::chats))
        .route("/v1/responses", post(completions::responses))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::tokenizer_info))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{name}", get(openai::model))
        .route("/models", get(models::list))
        .route("/models/{name}", get(models::one))
        .route("/models/{name}/load", post(models::load))
        .route("/models/{name}/unload", post(models::unload))
        .route("/admin/models", get(models::list))
        .route("/admin/stats", get(admin::stats))
        .route("/admin/trace", get(admin::trace))
        .route("/admin/models/{name}/reset_breaker", post(admin::reset_breaker))
        .route("/health", get(health::summary))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(admin::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(async |request: axum::extract::Request| {
            ApiError::new(Code::RouteNotFound, format!("no route {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: axum::extract::Request| {
            let message = format!("{} has no method {}", request.uri().path(), request.method());
            ApiError::new(Code::MethodNotAllowed, message)
        })
        .with_state(app)
}

/// What every connection calls: names the request, routes it, and gives errors their body.
#[derive(Clone)]
pub struct Outer {
    app: Arc<App>,
    router: Router,
}

impl Outer {
    /// The service of one server.
    pub fn new(app: Arc<App>) -> Self {
        Self { router: router(Arc::clone(&app)), app }
    }
}

impl hyper::service::Service<Request<Incoming>> for Outer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Outer { app, router } = self.clone();
        Box::pin(async move { Ok(answer(&app, router, request).await) })
    }
}

async fn answer(app: &App, mut router: Router, request: Request<Incoming>) -> Response<Body> {
    let _in_flight = app.in_flight.enter();
    let mut line = Line::begin(&request);
    let mut request = Watched::wrap(request);
    request.extensions_mut().insert(line.id.clone());
    let routed = match router.as_service::<Watched>().ready().await {
        Ok(ready) => ready.call(request).await,
        Err(never) => Err(never),
    };
    let mut response = match routed {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if let Some(mut error) = error_of(&mut response).await {
        if error.code == Code::ModelNotReady && app.is_draining() {
            error = ApiError::new(Code::ShuttingDown, "the server is shutting down");
        }
        if !error.counted {
            app.metrics.failed_without_model(error.code.name());
        }
        line.failed(&error);
        let allow = response.headers_mut().remove(ALLOW);
        response = error.into_reply(line.style(), line.id.as_str());
        if let Some(allow) = allow {
            response.headers_mut().insert(ALLOW, allow);
        }
    }
    line.answered(&response);
    if let Ok(value) = HeaderValue::from_str(line.id.as_str()) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// What log lines say of a request. One that is dropped unanswered belonged to a client who left.
struct Line {
    id: RequestId,
    method: Method,
    uri: Uri,
    started: Instant,
    answered: bool,
}

impl Line {
    fn begin(request: &Request<Incoming>) -> Self {
        Self {
            id: RequestId::of(request.headers()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            started: Instant::now(),
            answered: false,
        }
    }

    fn style(&self) -> ErrorStyle {
        let path = self.uri.path();
        let openai = (path.starts_with("/v1/") && !path.starts_with("/v1/inference"))
            || ["/tokenize", "/detokenize", "/tokenizer_info"].contains(&path);
        if openai { ErrorStyle::OpenAi } else { ErrorStyle::Own }
    }

    fn failed(&self, error: &ApiError) {
        let (code, status) = error.code.on_the_wire();
        let (id, method, path) = (&self.id, &self.method, self.uri.path());
        // As a quoted field: a client's words must not look like log lines of their own.
        let reason = error.message.as_str();
        if status.is_server_error() {
            tracing::warn!(request_id = %id, %method, path, code, reason, "request failed");
        } else {
            tracing::info!(request_id = %id, %method, path, code, reason, "request refused");
        }
    }

    fn answered(&mut self, response: &Response<Body>) {
        self.answered = true;
        let (status, seconds) = (response.status().as_u16(), self.started.elapsed().as_secs_f64());
        tracing::debug!(
            request_id = %self.id, method = %self.method, path = self.uri.path(), status, seconds, "request"
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.answered {
            let seconds = self.started.elapsed().as_secs_f64();
            tracing::info!(
                request_id = %self.id, method = %self.method, path = self.uri.path(), seconds, "client left"
            );
        }
    }
}

/// The error that a handler left for the outer service, or what an extractor refused in its own words.
async fn error_of(response: &mut Response<Body>) -> Option<ApiError> {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        return Some(error);
    }
    if !response.status().is_client_error() {
        return None;
    }
    let body = std::mem::take(response.body_mut());
    let text = to_bytes(body, 4096).await.unwrap_or_default();
    Some(ApiError::malformed(String::from_utf8_lossy(&text)))
}
