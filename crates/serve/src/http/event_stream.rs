//! Server-sent events, as every route that streams writes them.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use serde::Serialize;

use super::error::{ApiError, ErrorStyle};

/// Events on their way to a client.
#[derive(Debug, Default)]
pub(super) struct Events {
    bytes: Vec<u8>,
}

impl Events {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds one.
    pub(super) fn push(&mut self, data: &impl Serialize) {
        self.bytes.extend_from_slice(b"data: ");
        // Strings and numbers cannot fail to become JSON; what had been written would still end with its line.
        drop(serde_json::to_writer(&mut self.bytes, data));
        self.bytes.extend_from_slice(b"\n\n");
    }

    /// Adds one whose JSON is there, put together from `parts`.
    pub(super) fn push_parts(&mut self, parts: [&[u8]; 3]) {
        self.bytes.extend_from_slice(b"data: ");
        parts.into_iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.bytes.extend_from_slice(b"\n\n");
    }

    /// Adds the error that ends a stream.
    pub(super) fn fail(&mut self, error: &ApiError, style: ErrorStyle, request_id: &str) {
        tracing::info!(request_id, reason = error.message, code = error.code.name(), "stream failed");
        self.push(&error.body(style, request_id));
    }

    /// Adds the word after which nothing follows.
    pub(super) fn last(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// What is to be sent; `None` where that is nothing.
    pub(super) fn into_bytes(self) -> Option<Bytes> {
        (!self.bytes.is_empty()).then(|| self.bytes.into())
    }
}

/// The reply whose body is a stream of events.
pub(super) fn reply(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
