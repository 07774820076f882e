//! Server-sent events: a body that grows with the texts.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use hyper::body::Frame;

use super::texts::{Texts, Update, Usage};
use crate::app::Flight;
use crate::http::error::ErrorStyle;
use crate::http::event_stream::{Events, reply};

/// How one of the APIs writes a stream.
pub(in crate::http) trait Dialect: Send + Unpin + 'static {
    /// What is said of an update.
    fn update(&mut self, update: Update, events: &mut Events);

    /// What is said at the end, before the stream's last word.
    fn end(&mut self, usage: Usage, events: &mut Events);

    /// Whose shape errors have.
    fn error_style(&self) -> ErrorStyle;
}

/// The body of a stream. A client who leaves drops it, and with it the texts.
struct Stream<D> {
    texts: Texts,
    dialect: D,
    ended: bool,
    request_id: String,
    /// The server waits for it when it stops.
    _flight: Flight,
}

impl<D: Dialect> hyper::body::Body for Stream<D> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut events = Events::default();
        // All that is there goes out together.
        while !this.ended {
            match this.texts.poll_next(context) {
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(update))) => this.dialect.update(update, &mut events),
                Poll::Ready(Some(Err(error))) => {
                    events.fail(&error, this.dialect.error_style(), &this.request_id);
                    events.last();
                    this.ended = true;
                }
                Poll::Ready(None) => {
                    this.dialect.end(this.texts.usage(), &mut events);
                    events.last();
                    this.ended = true;
                }
            }
        }
        Poll::Ready(events.into_bytes().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The reply whose body is the stream of `texts`.
pub(in crate::http) fn stream(
    texts: Texts,
    dialect: impl Dialect,
    request_id: String,
    flight: Flight,
) -> Response<Body> {
    reply(Body::new(Stream { texts, dialect, ended: false, request_id, _flight: flight }))
}
