//! Reads a request's body within its limits of size and time, and sees off what nobody read.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, Request};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout_at;

use super::error::{ApiError, Code};
use super::request_id::RequestId;
use super::wire::Format;
use crate::app::App;

/// How long a body that nobody read is read on and thrown away, so that a client who is still sending it
/// sees the reply instead of a broken connection.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// A request's body; what is left of it when it is dropped is read for [`LINGER`].
pub(super) struct Watched {
    /// `None` only while it is dropped.
    body: Option<Incoming>,
    /// The client waits for a "100 Continue", which hyper sends with the first read: a body that is
    /// refused unread must stay so.
    waits: bool,
}

impl Watched {
    /// `request` with its body watched.
    pub(super) fn wrap(request: Request<Incoming>) -> Request<Watched> {
        let waits = request.headers().contains_key(EXPECT);
        request.map(|body| Watched { body: Some(body), waits })
    }
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = Handle::try_current() {
            let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(tokio::time::timeout(LINGER, rest));
        }
    }
}

/// A request whose body has arrived.
pub(super) struct Asked {
    pub(super) id: RequestId,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) arrived: Instant,
}

impl Asked {
    /// Reads a body of JSON. 415 where it is said to be anything else.
    pub(super) async fn json(app: &App, request: Request<Body>) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let id = parts.extensions.remove().unwrap_or_else(|| RequestId::of(&parts.headers));
        if Format::of_request(&parts.headers)? != Format::Json {
            return Err(ApiError::new(Code::UnsupportedMediaType, "this route takes application/json"));
        }
        let deadline = arrived + app.settings.request_timeout;
        let body = read(&parts.headers, body, app.settings.max_body_size, deadline).await?;
        Ok(Self { id, headers: parts.headers, body, arrived })
    }
}

/// The whole body. 413 when it is over `limit` bytes, 408 when it is not there by `deadline`.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: u64,
    deadline: Instant,
) -> Result<Bytes, ApiError> {
    let declared: Option<u64> = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(limit));
    }
    let mut first = Bytes::new();
    let mut whole: Option<BytesMut> = None;
    let mut length = 0;
    loop {
        let frame = match timeout_at(deadline.into(), body.frame()).await {
            Err(_) => return Err(ApiError::new(Code::RequestTimeout, "the body did not arrive in time")),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(ApiError::malformed(format!("the body broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        if length > limit {
            return Err(too_large(limit));
        }
        // Nearly every body is one frame, which needs no copy.
        match &mut whole {
            Some(whole) => whole.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::with_capacity(declared.unwrap_or(0).max(length) as usize);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                whole = Some(joined);
            }
        }
    }
    Ok(whole.map_or(first, BytesMut::freeze))
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(Code::BodyTooLarge, format!("the body is over the limit of {limit} bytes"))
}

/// Bodies over this are parsed and replies over this are written beside the async workers.
const LARGE_BYTES: usize = 256 << 10;

/// Runs `work` on `bytes` bytes; when they are many, other requests' tasks move to another thread meanwhile.
pub(super) fn beside_others<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > LARGE_BYTES { tokio::task::block_in_place(work) } else { work() }
}
