//! One client's connection: its requests go to the outer service, and what is no request is answered here.
//!
//! A head that hyper cannot parse never reaches the service: hyper writes a bare reply of its own, or for a
//! head that stops half-way nothing, and ends the connection. Here its bare reply is held back, and once hyper
//! has ended, the client is told what every other error tells: code, message and id, in header and body.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::body::to_bytes;
use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Outer;
use super::body::LINGER;
use super::error::{ApiError, Code, ErrorStyle};
use super::request_id::RequestId;

/// Serves requests until the client leaves, one of its requests is no HTTP, or `stopping` changes; then what is
/// in flight is answered first.
pub(crate) async fn serve(stream: TcpStream, service: Outer, mut stopping: watch::Receiver<()>) {
    // Small replies must not wait for more; where it cannot be set they are slower and still right.
    drop(stream.set_nodelay(true));
    let app = service.app.clone();
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.request_timeout)
        .serve_connection(TokioIo::new(Wire::new(stream)), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopping.changed() => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    // A connection ends by its client's leaving as often as not; there is nobody to tell.
    let Err(error) = ended else { return };
    let parts = connection.into_parts();
    let wire = parts.io.into_inner();
    let Some(refusal) = refusal(&error, &parts.read_buf, wire.held_back) else { return };
    let id = RequestId::new();
    let code = refusal.code.name();
    app.metrics.failed_without_model(code);
    tracing::info!(request_id = %id, code, reason = refusal.message, "request refused");
    // Where hyper's own reply is on its way already, behind one that the client is slow to read, it stays alone.
    let answered = error.is_parse() && !error.is_parse_version_h2() && wire.held_back.is_none();
    if !answered {
        // Fails for a client who has left, which is its right.
        drop(timeout(LINGER, reply(wire.stream, refusal, &id)).await);
    }
}

/// What to tell a client of the end of its connection; `None` when it only left, or said nothing for too long.
/// `unread` is what came of a request, and `held_back` the status that hyper would have answered with.
fn refusal(error: &hyper::Error, unread: &[u8], held_back: Option<StatusCode>) -> Option<ApiError> {
    // What hyper skips between two requests does not begin one.
    let begun = unread.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
    if error.is_timeout() {
        return begun
            .then(|| ApiError::new(Code::RequestTimeout, "the request's head did not arrive in time"));
    }
    if !error.is_parse() {
        return None;
    }
    if error.is_parse_version_h2() {
        return Some(ApiError::malformed("HTTP/2 is not spoken here: use HTTP/1.1"));
    }
    // Hyper gives up on a head that is too long wherever it is, also before the end of its first line.
    if held_back == Some(StatusCode::URI_TOO_LONG) || error.is_parse_too_large() && !unread.contains(&b'\n') {
        return Some(ApiError::new(Code::UriTooLong, "the request's URI is too long"));
    }
    if error.is_parse_too_large() {
        return Some(ApiError::new(Code::HeadersTooLarge, "the request's headers are too many or too long"));
    }
    Some(ApiError::malformed(format!("the request is not HTTP/1.1: {error}")))
}

/// Writes the error and hangs up, when the client has read it: closing a socket with unread bytes in it would
/// reset the connection, and the client might never see the reply.
async fn reply(mut stream: TcpStream, error: ApiError, id: &RequestId) -> io::Result<()> {
    let (head, body) = error.into_reply(ErrorStyle::Own, id.as_str()).into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut reply = Vec::with_capacity(512);
    write!(reply, "HTTP/1.1 {}\r\n", head.status)?;
    for (name, value) in &head.headers {
        write!(reply, "{name}: ")?;
        reply.extend_from_slice(value.as_bytes());
        reply.extend_from_slice(b"\r\n");
    }
    let date = httpdate::fmt_http_date(SystemTime::now());
    write!(reply, "x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len())?;
    write!(reply, "date: {date}\r\n\r\n")?;
    reply.extend_from_slice(&body);
    stream.write_all(&reply).await?;
    stream.shutdown().await?;
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// The socket, without the replies that hyper makes up itself.
struct Wire {
    stream: TcpStream,
    /// Everything written so far is flushed, so what is written next begins a reply, or a chunk of one.
    between_replies: bool,
    /// The status of hyper's own reply, once it was held back. Hyper ends the connection after it.
    held_back: Option<StatusCode>,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        Self { stream, between_replies: true, held_back: None }
    }

    /// Whether `bytes`, with nothing behind them, are a reply of hyper's own, which is then held back.
    fn holds_back(&mut self, bytes: &[u8]) -> bool {
        if !std::mem::replace(&mut self.between_replies, false) {
            return false;
        }
        self.held_back = status_of_hypers_own(bytes);
        self.held_back.is_some()
    }
}

/// The status of an error reply that has no body and no id. The outer service gives an id to each of its own.
fn status_of_hypers_own(bytes: &[u8]) -> Option<StatusCode> {
    let head = bytes.strip_suffix(END)?;
    let line = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let status = StatusCode::from_bytes(line.get(..3)?).ok()?;
    let has = |words: &[u8]| head.windows(words.len()).any(|window| window == words);
    let own = status.is_client_error() && !has(END) && !has(b"\r\nx-request-id: ");
    own.then_some(status)
}

/// Of a reply's head.
const END: &[u8] = b"\r\n\r\n";

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.holds_back(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Hyper's own replies are a head alone; what has more goes the usual way.
        let first = if let [only] = slices { only } else { &[][..] };
        if self.holds_back(first) {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.between_replies = true;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Hyper's last act, after which the error may still have to be told: [`serve`] closes the socket.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
