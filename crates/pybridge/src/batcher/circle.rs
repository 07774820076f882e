//! Which batchers' threads wait for which batchers: an executor may call another batcher, but none that waits for it.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;

/// A batcher, and which one the thread that runs its executors waits for now. Looked at and changed with the GIL held,
/// so that two threads cannot begin to wait for each other at once.
#[derive(Default)]
pub(super) struct Place {
    waits_for: Mutex<Option<Arc<Place>>>,
}

thread_local! {
    /// The batcher whose executors the calling thread runs.
    static HERE: RefCell<Option<Arc<Place>>> = const { RefCell::new(None) };
}

/// What would wait for itself.
pub(super) enum Circle {
    /// An executor that calls its own batcher.
    Own,
    /// An executor that calls a batcher which waits for it.
    Others,
}

impl Place {
    /// The calling thread runs the executors of this batcher from here on.
    pub(super) fn work(self: &Arc<Self>) {
        HERE.with_borrow_mut(|here| {
            if here.as_ref().is_none_or(|here| !Arc::ptr_eq(here, self)) {
                *here = Some(Arc::clone(self));
            }
        });
    }

    /// Notes that the calling thread waits for this batcher, until what is returned is dropped.
    ///
    /// # Errors
    /// When this batcher waits for the calling thread.
    pub(super) fn wait(self: &Arc<Self>) -> Result<Waiting, Circle> {
        let Some(here) = HERE.with_borrow(Clone::clone) else { return Ok(Waiting(None)) };
        if Arc::ptr_eq(self, &here) {
            return Err(Circle::Own);
        }
        let mut waited_for = self.waits_for.lock().clone();
        while let Some(place) = waited_for {
            if Arc::ptr_eq(&place, &here) {
                return Err(Circle::Others);
            }
            waited_for = place.waits_for.lock().clone();
        }
        let before = here.waits_for.lock().replace(Arc::clone(self));
        Ok(Waiting(Some((here, before))))
    }
}

/// While it lives its thread waits; the batcher whose executors the thread runs, and what that waited for before.
pub(super) struct Waiting(Option<(Arc<Place>, Option<Arc<Place>>)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((here, before)) = self.0.take() {
            *here.waits_for.lock() = before;
        }
    }
}
