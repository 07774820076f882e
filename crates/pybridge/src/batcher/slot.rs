//! Where a thread sleeps until its item is answered.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

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
    /// Python's number of this thread; 0: not asked for yet.
    static IDENT: Cell<u64> = const { Cell::new(0) };
}

/// Python's number of the thread that runs signal handlers.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// Says which thread runs signal handlers: at the start, and anew in a forked process.
#[pyfunction]
pub(crate) fn set_main_thread(py: Python<'_>, ident: u64) -> PyResult<()> {
    own_ident(py)?;
    MAIN_THREAD.store(ident, Ordering::Relaxed);
    Ok(())
}

fn own_ident(py: Python<'_>) -> PyResult<u64> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if IDENT.get() == 0 {
        IDENT.set(GET_IDENT.import(py, "_thread", "get_ident")?.call0()?.extract()?);
    }
    Ok(IDENT.get())
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

/// Whether this is Python's main thread. Asks no Python code: a thread that runs some below Rust as the interpreter ends
/// is ended by it there, and with it the process.
pub(super) fn serves_signals(py: Python<'_>) -> PyResult<bool> {
    Ok(own_ident(py)? == MAIN_THREAD.load(Ordering::Relaxed))
}
