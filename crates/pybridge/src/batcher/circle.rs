//! Which batchers' threads wait for which batchers: an executor may call another batcher, but none that waits for it.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// A batcher, and those that the thread that runs its executors waits for now: several where the items of a `map` are
/// made by what waits itself. Looked at and changed with the GIL held, so that two threads cannot begin to wait for
/// each other at once.
#[derive(Default)]
pub(super) struct Place {
    waits_for: Mutex<Vec<Arc<Place>>>,
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
        if self.reaches(&here) {
            return Err(Circle::Others);
        }
        here.waits_for.lock().push(Arc::clone(self));
        Ok(Waiting(Some((here, Arc::clone(self)))))
    }

    /// Whether this batcher waits for `other`, by way of whomever.
    fn reaches(self: &Arc<Self>, other: &Arc<Place>) -> bool {
        let (mut rest, mut seen) = (vec![Arc::clone(self)], HashSet::new());
        while let Some(place) = rest.pop() {
            if Arc::ptr_eq(&place, other) {
                return true;
            }
            if seen.insert(Arc::as_ptr(&place)) {
                rest.extend(place.waits_for.lock().iter().map(Arc::clone));
            }
        }
        false
    }
}

/// While it lives its thread waits: the batcher whose executors the thread runs, for the other.
pub(super) struct Waiting(Option<(Arc<Place>, Arc<Place>)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((here, other)) = self.0.take() {
            let mut waits_for = here.waits_for.lock();
            if let Some(index) = waits_for.iter().rposition(|place| Arc::ptr_eq(place, &other)) {
                waits_for.remove(index);
            }
        }
    }
}
