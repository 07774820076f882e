//! `/v1/inference/stream` of models that the program around the server runs: each piece is an event.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use hyper::body::Frame;
use trustformers_batching::{Failure, Rejection};

use super::body::Asked;
use super::error::{ApiError, Code, ErrorStyle};
use super::event_stream::{Events, reply};
use super::hosted;
use super::infer::{MOST_RELOADS, Urgency, counted, explain, ready};
use super::wire::{Format, Target};
use crate::app::{App, Flight};
use crate::hosted::{Answer, Next};
use crate::registry::{Origin, Piecewise, Terms, Unanswered, Version};

/// The reply, where the body names a hosted model; `None` where it does not.
pub(super) async fn begin(app: &App, asked: &Asked) -> Option<Result<Response<Body>, ApiError>> {
    if !app.registry.versions().any(|version| is_hosted(version)) {
        // The body need not be looked into.
        return None;
    }
    // A body that is no object is for others to refuse.
    let (model, version) = Format::Json.parse_target(&asked.body).ok()?;
    let model = app.registry.model(model.as_deref()?).ok()?;
    let version = match model.version(version.as_deref()) {
        Ok(version) => Arc::clone(version),
        Err(unknown) => {
            let hosted = model.versions().iter().any(|version| is_hosted(version));
            return hosted.then(|| Err(unknown.into()));
        }
    };
    if !is_hosted(&version) {
        return None;
    }
    Some(counted(&version, stream(app, &version, asked).await))
}

fn is_hosted(version: &Version) -> bool {
    matches!(version.source().origin, Origin::Hosted(_))
}

async fn stream(app: &App, version: &Arc<Version>, asked: &Asked) -> Result<Response<Body>, ApiError> {
    let call = hosted::read(version, false, Format::Json, &asked.body, Target::Body, 1)?;
    if call.many {
        return Err(ApiError::malformed("this route takes one item in \"data\""));
    }
    let (headers, arrived) = (&asked.headers, asked.arrived);
    let urgency = Urgency { headers, priority: call.priority, timeout_ms: call.timeout_ms, arrived };
    let (terms, timed) = (urgency.terms(app, version)?, urgency.is_timed());
    let item = hosted::items(call, &asked.body, Format::Json).pop();
    let item = item.unwrap_or_else(|| Err(ApiError::malformed("the body has no item")))?;
    let mut pieces = submit(version, &item, terms, timed)?;
    let first =
        tokio::time::timeout_at(terms.deadline.into(), poll_fn(|context| pieces.stream.poll_next(context)));
    // Waited for, so that an error before it has a status of its own.
    let first = match first.await {
        Ok(Next::End(Err(failure))) => return Err(failure.into()),
        Ok(Next::End(Ok(Err(error)))) => return Err(error),
        Ok(first) => first,
        Err(_) => return Err(Failure::ExpiredRunning.into()),
    };
    let pieces = Stream {
        pieces,
        first: Some(first),
        ended: false,
        version: Arc::clone(version),
        arrived,
        request_id: asked.id.to_string(),
        _flight: app.in_flight.enter(),
    };
    Ok(reply(Body::new(pieces)))
}

fn submit(
    version: &Version,
    item: &crate::registry::Asked,
    terms: Terms,
    timed: bool,
) -> Result<Piecewise, ApiError> {
    let mut running = ready(version)?;
    for _ in 0..MOST_RELOADS {
        let Some(hosting) = running.hosting() else { break };
        if !hosting.interface().streaming {
            return Err(ApiError::invalid(format!(
                "model \"{0}\" answers all at once: ask /models/{0}/predict",
                version.model()
            )));
        }
        let refused = match hosting.stream(item, terms, timed) {
            Ok(pieces) => return Ok(pieces),
            Err(refused) => refused,
        };
        let replacement = version.ready().filter(|now| !Arc::ptr_eq(now, &running));
        match (&refused, replacement) {
            (Unanswered::Rejected(Rejection::Draining, _), Some(replacement)) => running = replacement,
            _ => return Err(explain(version, refused)),
        }
    }
    Err(ApiError::new(Code::ModelNotReady, "the model is reloading"))
}

/// The body of a stream. A client who leaves drops it, and with it the call.
struct Stream {
    pieces: Piecewise,
    first: Option<Next>,
    ended: bool,
    version: Arc<Version>,
    arrived: Instant,
    request_id: String,
    /// The server waits for it when it stops.
    _flight: Flight,
}

impl Stream {
    fn end(&mut self, end: Result<Answer, Failure>, events: &mut Events) {
        self.ended = true;
        let error = match end {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error),
            Err(failure) => Some(failure.into()),
        };
        self.version.metrics().ended(error.as_ref().map(|error: &ApiError| error.code.name()));
        self.version.metrics().call_took(self.arrived.elapsed());
        if let Some(error) = error {
            events.fail(&error, ErrorStyle::Own, &self.request_id);
        }
        events.last();
    }
}

impl hyper::body::Body for Stream {
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
            let next = match this.first.take() {
                Some(first) => Poll::Ready(first),
                None => this.pieces.stream.poll_next(context),
            };
            match next {
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Next::Piece(piece)) => events.push_parts([b"{\"data\":", &piece, b"}"]),
                Poll::Ready(Next::End(end)) => this.end(end, &mut events),
            }
        }
        Poll::Ready(events.into_bytes().map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            self.version.metrics().ended(Some("cancelled"));
        }
    }
}
