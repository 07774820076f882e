//! Where a thread sleeps until its item is answered.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::item::Answer;
use crate::interrupt::POLL;

/// One thread's place to wait at.
pub(super) struct Slot {
    thread: Thread,
    open: AtomicBool,
    answer: Mutex<Option<Answer>>,
}

thread_local! {
    /// Kept from call to call. Taken out for a wait: a signal handler may begin another one inside it.
    static IDLE: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
    /// Whether Python's signal handlers run on this thread.
    static SERVES_SIGNALS: Cell<Option<bool>> = const { Cell::new(None) };
}

impl Slot {
    /// A closed slot of the calling thread.
    pub(super) fn claim() -> Arc<Self> {
        let kept = IDLE.try_with(|idle| idle.borrow_mut().take()).ok().flatten();
        kept.unwrap_or_else(|| {
            Arc::new(Self {
                thread: thread::current(),
                open: AtomicBool::new(false),
                answer: Mutex::new(None),
            })
        })
    }

    /// Puts an answer; the thread that it is for is still to be woken.
    pub(super) fn put(&self, answer: Answer) {
        *self.answer.lock() = Some(answer);
        self.open.store(true, Ordering::Release);
    }

    /// Ends the wait without an answer.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.thread.unpark();
    }

    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    /// Waits, without the GIL, until it is open; the slot may then be claimed again.
    ///
    /// # Errors
    /// What a signal handler raised; what is put afterwards is lost.
    pub(super) fn wait(self: Arc<Self>, py: Python<'_>) -> PyResult<Option<Answer>> {
        let signals = serves_signals(py)?;
        while !self.open.load(Ordering::Acquire) {
            py.detach(|| self.sleep(signals));
            if signals {
                py.check_signals()?;
            }
        }
        self.open.store(false, Ordering::Relaxed);
        let answer = self.answer.lock().take();
        self.release();
        Ok(answer)
    }

    /// Keeps a closed slot, which nobody else holds, for the thread's next claim.
    pub(super) fn release(self: Arc<Self>) {
        // Fails only while the thread ends, which needs no slot any more.
        drop(IDLE.try_with(|idle| idle.replace(Some(self))));
    }

    /// Until it is open, or for as long as a signal may wait.
    fn sleep(&self, signals: bool) {
        while !self.open.load(Ordering::Acquire) {
            if signals {
                thread::park_timeout(POLL);
                return;
            }
            thread::park();
        }
    }
}

/// Whether this is Python's main thread.
pub(super) fn serves_signals(py: Python<'_>) -> PyResult<bool> {
    if let Some(known) = SERVES_SIGNALS.get() {
        return Ok(known);
    }
    let threading = py.import("threading")?;
    let main: u64 = threading.call_method0("main_thread")?.getattr("ident")?.extract()?;
    let this: u64 = threading.call_method0("get_ident")?.extract()?;
    SERVES_SIGNALS.set(Some(main == this));
    Ok(main == this)
}
