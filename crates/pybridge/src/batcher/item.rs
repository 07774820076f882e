//! One item on its way through a batcher, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;
use trustformers_batching::{Failure, Priority, Ticket};

use super::event_loop::LoopPort;
use super::executor::Executor;
use super::flush::Epoch;
use super::map::Collected;
use super::slot::Slot;

/// What a caller gets.
pub(crate) enum Answer {
    Result(Py<PyAny>),
    /// An exception instance, to be raised.
    Error(Py<PyAny>),
}

impl Answer {
    pub(super) fn into_result(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Answer::Result(value) => Ok(value),
            Answer::Error(error) => Err(PyErr::from_value(error.into_bound(py))),
        }
    }
}

/// Who waits for an item, and how it is told.
pub(super) enum Caller {
    /// A thread, asleep.
    Thread(Arc<Slot>),
    /// A `concurrent.futures.Future`.
    Future(Py<PyAny>),
    /// An `asyncio.Future`, which only its loop's thread may touch.
    Loop { port: Py<LoopPort>, future: Py<PyAny> },
    /// A place in the results of a `map`.
    Map { results: Arc<Collected>, index: usize },
}

/// An item with what runs it and who waits for it.
pub(super) struct Item {
    pub(super) value: Py<PyAny>,
    pub(super) executor: Arc<Executor>,
    pub(super) caller: Caller,
    pub(super) priority: Priority,
    /// When its caller brought it.
    pub(super) came: Instant,
    /// Whether a batch with it began: it may run again, in part of a batch that failed.
    begun: AtomicBool,
    /// Its name in the batcher, once it is admitted.
    ticket: AtomicU64,
    /// A flush waits until the items of its epoch are gone.
    _epoch: Arc<Epoch>,
}

/// No batcher lives to issue so many.
const NO_TICKET: u64 = u64::MAX;

impl Item {
    pub(super) fn new(
        value: Py<PyAny>,
        executor: Arc<Executor>,
        caller: Caller,
        priority: Priority,
        epoch: Arc<Epoch>,
    ) -> Arc<Self> {
        Arc::new(Self {
            value,
            executor,
            caller,
            priority,
            came: Instant::now(),
            begun: AtomicBool::new(false),
            ticket: AtomicU64::new(NO_TICKET),
            _epoch: epoch,
        })
    }

    pub(super) fn admitted(&self, ticket: Ticket) {
        self.ticket.store(ticket.0, Ordering::Release);
    }

    pub(super) fn ticket(&self) -> Option<Ticket> {
        Some(self.ticket.load(Ordering::Acquire)).filter(|&ticket| ticket != NO_TICKET).map(Ticket)
    }

    /// Whether its caller still wants it now that its batch starts; a future is running from here on.
    pub(super) fn starts(&self, py: Python<'_>) -> bool {
        let Caller::Future(future) = &self.caller else { return true };
        if self.begun.swap(true, Ordering::Relaxed) {
            return true;
        }
        let starts = future.call_method0(py, pyo3::intern!(py, "set_running_or_notify_cancel"));
        // Raises only where the holder of the future set it: there is nobody to run it for.
        starts.and_then(|starts| starts.extract::<bool>(py)).unwrap_or(false)
    }
}

/// Items that ended and whose callers do not know yet; emptied in the same hold of the GIL that filled it.
pub(super) type Outbox = Mutex<Vec<(Arc<Item>, Result<Answer, Failure>)>>;
