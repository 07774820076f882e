//! Reads a request's body within its limits of size and time.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::timeout_at;

use super::error::{ApiError, Code};

/// How long a body that is too large is read on and thrown away, so that its client sees the reply
/// instead of a broken connection.
const LINGER: Duration = Duration::from_secs(2);

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
        linger(body).await;
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
            linger(body).await;
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

async fn linger(mut body: Body) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    drop(tokio::time::timeout(LINGER, rest).await);
}
