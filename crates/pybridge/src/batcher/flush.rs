//! What a flush waits for: the items that were there when it was called.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Opens once and for all.
#[derive(Default)]
pub(super) struct Latch {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Latch {
    /// Waits at most so long; says whether it is open.
    pub(super) fn wait(&self, at_most: Duration) -> bool {
        let mut open = self.open.lock();
        if !*open {
            self.opened.wait_for(&mut open, at_most);
        }
        *open
    }
}

/// The items between two flushes: each holds its epoch, which ends with the last of them.
#[derive(Default)]
pub(super) struct Epoch {
    ended: Arc<Latch>,
    /// Held so that no epoch ends before those before it.
    next: OnceLock<Arc<Epoch>>,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        *self.ended.open.lock() = true;
        self.ended.opened.notify_all();
    }
}

/// The epochs of one batcher.
#[derive(Default)]
pub(super) struct Epochs(Mutex<Arc<Epoch>>);

impl Epochs {
    /// The one that an item which comes now belongs to.
    pub(super) fn current(&self) -> Arc<Epoch> {
        Arc::clone(&self.0.lock())
    }

    /// Begins another epoch; the latch opens when this one and all before it are over.
    pub(super) fn turn(&self) -> Arc<Latch> {
        let next = Arc::new(Epoch::default());
        let ending = std::mem::replace(&mut *self.0.lock(), Arc::clone(&next));
        let latch = Arc::clone(&ending.ended);
        // Never set before: an epoch is ended once.
        drop(ending.next.set(next));
        latch
    }
}
