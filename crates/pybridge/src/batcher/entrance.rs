//! How items get into the batcher's queue, and what happens where that is full.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use trustformers_batching::batcher::BatchRecord;
use trustformers_batching::replay::Event;
use trustformers_batching::{
    Batcher, ClientId, Dispatch, Failure, InstanceId, Isolation, MonotonicClock, Observer, Rejection,
    SchedulerConfig, ShapeKey, Submission, Ticket,
};

use super::item::{Answer, Item, Outbox};
use super::slot::Slot;

/// What a caller meets at a full queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Backpressure {
    /// It waits for a place.
    Block,
    /// It is refused.
    Drop,
    /// Its item runs at once, alone.
    Passthrough,
}

impl Backpressure {
    pub(super) fn named(name: &str) -> PyResult<Self> {
        match name {
            "block" => Ok(Self::Block),
            "drop" => Ok(Self::Drop),
            "passthrough" => Ok(Self::Passthrough),
            _ => Err(PyValueError::new_err(format!(
                "backpressure must be 'block', 'drop' or 'passthrough', not '{name}'"
            ))),
        }
    }
}

/// Where an item is after it was brought.
pub(super) enum Place {
    Queued,
    /// Among those who wait for a place.
    Waiting,
}

/// Why an item did not get in.
pub(super) enum Refusal {
    Full,
    /// Refused for another reason than a full queue.
    Rejected(Rejection),
    Closed,
}

struct Waiter {
    item: Arc<Item>,
    /// Opened when the item has its place, for a caller who does not wait for its answer.
    gate: Option<Arc<Slot>>,
}

/// The batcher's queue, and the callers who wait for a place in it.
pub(super) struct Entrance {
    pub(super) batcher: Batcher<Item, Answer>,
    pub(super) outbox: Arc<Outbox>,
    /// In order of arrival, each with a caller that is blocked: where anybody is here the queue is full.
    waiters: Mutex<VecDeque<Waiter>>,
    /// How many they are.
    waiting: AtomicUsize,
    closing: AtomicBool,
    pub(super) dropped: AtomicU64,
    /// Flushes that wait: who gets a place meanwhile leaves at once too.
    pub(super) flushes: AtomicUsize,
}

struct Silent;

impl Observer for Silent {
    fn batch_started(&self, _instance: InstanceId) {}
    fn batch_ended(&self, _record: &BatchRecord<'_>) {}
    fn event(&self, _event: Event) {}
}

/// That of a batcher of which nothing is asked beyond its limits.
pub(super) fn configuration(max_batch: u32, max_wait: Duration, max_queue: u32) -> SchedulerConfig {
    SchedulerConfig {
        dispatch: Dispatch::Window,
        isolation: Isolation::None,
        max_batch_size: max_batch,
        max_wait,
        max_queue_size: max_queue,
        priorities: false,
        ..SchedulerConfig::default()
    }
}

impl Entrance {
    pub(super) fn new(config: SchedulerConfig) -> Self {
        let clock = Arc::new(MonotonicClock::default());
        Self {
            batcher: Batcher::new(config, None, clock, Arc::new(Silent), false),
            outbox: Arc::default(),
            waiters: Mutex::default(),
            waiting: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            flushes: AtomicUsize::new(0),
        }
    }

    /// Brings an item. At a full queue it is among the waiters if it `waits`, with what is opened once it
    /// has its place, and refused otherwise.
    pub(super) fn enter(
        &self,
        item: &Arc<Item>,
        waits: bool,
        gate: Option<&Arc<Slot>>,
    ) -> Result<Place, Refusal> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        // Not past those who wait already.
        if self.waiting.load(Ordering::Acquire) == 0 || !waits {
            match self.submit(item) {
                Ok(_) => return Ok(Place::Queued),
                Err(Rejection::QueueFull { .. }) if waits => {}
                Err(Rejection::QueueFull { .. }) => return Err(Refusal::Full),
                Err(Rejection::Draining) => return Err(Refusal::Closed),
                Err(rejection) => return Err(Refusal::Rejected(rejection)),
            }
        }
        let mut waiters = self.waiters.lock();
        if self.closing.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        // A batch may have left since; with nobody waiting, nobody would look at this one.
        if waiters.is_empty() && self.submit(item).is_ok() {
            return Ok(Place::Queued);
        }
        waiters.push_back(Waiter { item: Arc::clone(item), gate: gate.map(Arc::clone) });
        self.waiting.store(waiters.len(), Ordering::Release);
        Ok(Place::Waiting)
    }

    /// How many callers wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    fn submit(&self, item: &Arc<Item>) -> Result<Ticket, Rejection> {
        let (ended, outbox) = (Arc::clone(item), Arc::clone(&self.outbox));
        let submission = Submission {
            input: Arc::clone(item),
            client: ClientId::default(),
            cost: 1,
            seq_len: 0,
            bytes: 0,
            shape: ShapeKey(item.executor.number),
            priority: item.priority,
            timeout: None,
            reply: Box::new(move |result| outbox.lock().push((ended, result))),
        };
        let ticket = self.batcher.submit([submission]).pop().unwrap_or(Err(Rejection::Draining))?;
        item.admitted(ticket);
        Ok(ticket)
    }

    /// Gives the places that became free to those who wait for one; after a batch left, or an item was
    /// cancelled.
    pub(super) fn admit_waiting(&self) {
        if self.waiting.load(Ordering::Acquire) == 0 && !self.closing.load(Ordering::Acquire) {
            return;
        }
        let mut waiters = self.waiters.lock();
        let mut admitted = false;
        while let Some(waiter) = waiters.front() {
            if self.submit(&waiter.item).is_err() {
                break;
            }
            admitted = true;
            waiters.pop_front().and_then(|waiter| waiter.gate).iter().for_each(|gate| gate.open());
        }
        self.waiting.store(waiters.len(), Ordering::Release);
        let closing = self.closing.load(Ordering::Acquire);
        if admitted && (closing || self.flushes.load(Ordering::Acquire) > 0) {
            self.batcher.flush();
        }
        if closing && waiters.is_empty() {
            self.batcher.close();
        }
    }

    /// Takes back an item whose caller left; it does not run if it has not begun to.
    pub(super) fn cancel(&self, item: &Arc<Item>) {
        let mut waiters = self.waiters.lock();
        let before = waiters.len();
        waiters.retain(|waiter| !Arc::ptr_eq(&waiter.item, item));
        self.waiting.store(waiters.len(), Ordering::Release);
        let was_waiting = waiters.len() < before;
        drop(waiters);
        if was_waiting {
            return;
        }
        if let Some(ticket) = item.ticket() {
            self.batcher.cancel(ticket);
            self.admit_waiting();
        }
    }

    /// Takes nothing new. Who is here already is still answered.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.batcher.flush();
        // Closes the queue where nobody waits for a place in it; or else that is done with the last of them.
        self.admit_waiting();
    }

    /// Takes nothing new and runs nothing more: everybody's answer is in the outbox afterwards.
    pub(super) fn abort(&self) {
        self.closing.store(true, Ordering::Release);
        self.batcher.abort();
        let waiters = std::mem::take(&mut *self.waiters.lock());
        self.waiting.store(0, Ordering::Release);
        let mut outbox = self.outbox.lock();
        for waiter in waiters {
            waiter.gate.iter().for_each(|gate| gate.open());
            outbox.push((waiter.item, Err(Failure::ClosedInQueue)));
        }
    }
}
