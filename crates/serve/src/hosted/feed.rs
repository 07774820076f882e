//! Results that come piece by piece: from a host to the body of a reply.

use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use trustformers_batching::Failure;

use super::call::Answer;

/// Pieces that may wait for a client who reads slowly; with so many, its model waits.
const PIECES: usize = 16;

/// Where a host puts the pieces of one call's result.
pub struct Feed {
    pieces: mpsc::Sender<Vec<u8>>,
    room: Arc<Room>,
}

/// Who is to be called when a piece was taken.
type Room = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// Why a piece was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Full {
    /// The client reads slowly: later. This is the piece.
    Now(Vec<u8>),
    /// The client has left.
    Left,
}

impl Feed {
    /// Puts a piece, and waits where there is no room for it. False when the client has left.
    pub fn put(&self, piece: Vec<u8>) -> bool {
        self.pieces.blocking_send(piece).is_ok()
    }

    /// Puts a piece if there is room for it.
    ///
    /// # Errors
    /// Why not. `room` is called when there is again, if that is what was missing.
    pub fn try_put(&self, piece: Vec<u8>, room: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let piece = match self.pieces.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(Full::Left),
            Err(TrySendError::Full(piece)) => piece,
        };
        *self.room.lock() = Some(Box::new(room));
        // What was taken before `room` stood there called nobody.
        match self.pieces.try_send(piece) {
            Ok(()) => {
                self.room.lock().take();
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(Full::Left),
            Err(TrySendError::Full(piece)) => Err(Full::Now(piece)),
        }
    }
}

/// The reading end of a feed.
pub struct Stream {
    pieces: mpsc::Receiver<Vec<u8>>,
    room: Arc<Room>,
    end: oneshot::Receiver<Result<Answer, Failure>>,
    ended: Option<Result<Answer, Failure>>,
}

/// How a call that feeds tells its end.
pub(crate) type End = oneshot::Sender<Result<Answer, Failure>>;

/// Both ends of a feed, and how its call tells its end.
pub(crate) fn feed() -> (Feed, End, Stream) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let (tell, end) = oneshot::channel();
    let room = Arc::new(Room::default());
    let stream = Stream { pieces, room: Arc::clone(&room), end, ended: None };
    (Feed { pieces: sender, room }, tell, stream)
}

/// What a stream has next.
pub(crate) enum Next {
    Piece(Vec<u8>),
    End(Result<Answer, Failure>),
}

impl Stream {
    /// The next piece, or how it ended; all pieces come before the end.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if self.ended.is_none()
            && let Poll::Ready(end) = std::pin::Pin::new(&mut self.end).poll(context)
        {
            self.ended = Some(end.unwrap_or(Err(Failure::ClosedRunning)));
        }
        match self.pieces.poll_recv(context) {
            Poll::Ready(Some(piece)) => {
                if let Some(room) = self.room.lock().take() {
                    room();
                }
                Poll::Ready(Next::Piece(piece))
            }
            // The end was told after the last piece was put.
            _ => match self.ended.take() {
                Some(end) => Poll::Ready(Next::End(end)),
                None => Poll::Pending,
            },
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pieces.close();
        if let Some(room) = self.room.lock().take() {
            room();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;

    fn next(stream: &mut Stream) -> Poll<Next> {
        stream.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn pieces_come_in_order_and_the_end_after_them() {
        let (feed, end, mut stream) = feed();
        assert!(next(&mut stream).is_pending());
        for piece in 0..3 {
            assert!(feed.try_put(vec![piece], || ()).is_ok());
        }
        assert!(end.send(Ok(Ok(Vec::new()))).is_ok());
        for wanted in 0..3 {
            let Poll::Ready(Next::Piece(piece)) = next(&mut stream) else { panic!("a piece") };
            assert_eq!(piece, [wanted]);
        }
        assert!(matches!(next(&mut stream), Poll::Ready(Next::End(Ok(Ok(_))))));
    }

    #[test]
    fn who_finds_no_room_is_called_when_there_is() {
        let (feed, _end, mut stream) = feed();
        let called = Arc::new(AtomicUsize::new(0));
        let count = || {
            let called = Arc::clone(&called);
            move || {
                called.fetch_add(1, Ordering::Relaxed);
            }
        };
        for _ in 0..PIECES {
            assert!(feed.try_put(vec![1], count()).is_ok());
        }
        assert_eq!(feed.try_put(vec![2], count()), Err(Full::Now(vec![2])));
        assert_eq!(called.load(Ordering::Relaxed), 0);
        assert!(next(&mut stream).is_ready());
        assert_eq!(called.load(Ordering::Relaxed), 1);
        assert!(feed.try_put(vec![2], count()).is_ok());
    }

    #[test]
    fn a_client_who_leaves_ends_the_wait_for_room() {
        let (feed, _end, stream) = feed();
        for _ in 0..PIECES {
            assert!(feed.put(vec![1]));
        }
        let called = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&called);
        let room = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let refused = feed.try_put(vec![2], room);
        assert_eq!(refused, Err(Full::Now(vec![2])));
        drop(stream);
        assert_eq!(called.load(Ordering::Relaxed), 1);
        assert_eq!(feed.try_put(vec![2], || ()), Err(Full::Left));
        assert!(!feed.put(vec![2]));
    }
}
