//! One item on its way to a host, and what comes back.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use trustformers_batching::Priority;

use super::feed::Feed;
use crate::http::error::ApiError;
use crate::http::wire::Format;

/// What a call ended with: a document in its reply's form (nothing where it had a feed), or an error that is
/// no fault of the model's.
pub type Answer = Result<Vec<u8>, ApiError>;

/// One value, whose syntax was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// How it is written.
    pub format: Format,
    /// It and nothing else.
    pub bytes: Bytes,
}

/// One item, and what its client is to get.
pub struct Call {
    /// The item.
    pub item: Document,
    /// The request's body where the item is its `data`: a model may read that instead.
    pub whole: Option<Document>,
    /// How the result is to be written.
    pub reply: Format,
    /// How urgent its request is, for a host with a queue of its own.
    pub priority: Priority,
    /// Where the pieces of a result go that comes piece by piece.
    pub feed: Option<Feed>,
    over: AtomicBool,
    watch: Mutex<Option<Watch>>,
}

type Watch = Box<dyn FnOnce() + Send>;

impl Call {
    pub(crate) fn new(
        item: Document,
        whole: Option<Document>,
        reply: Format,
        priority: Priority,
        feed: Option<Feed>,
    ) -> Self {
        Self { item, whole, reply, priority, feed, over: AtomicBool::new(false), watch: Mutex::new(None) }
    }

    /// Whether nobody waits for its end any more: the client left, or was told that time is up.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Calls `watch` when nobody waits any more; at once where that is so.
    pub fn watch(&self, watch: impl FnOnce() + Send + 'static) {
        *self.watch.lock() = Some(Box::new(watch));
        if self.is_over() {
            self.end();
        }
    }

    /// Forgets who was to be called.
    pub fn unwatch(&self) {
        self.watch.lock().take();
    }

    /// Nobody waits any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
        let watch = self.watch.lock().take();
        if let Some(watch) = watch {
            watch();
        }
    }
}
