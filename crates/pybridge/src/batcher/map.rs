//! The results of a `map`, by place.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::item::Answer;
use super::slot::serves_signals;
use crate::interrupt::POLL;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What came back so far of the items that one thread feeds.
pub(super) struct Collected {
    thread: Thread,
    answers: Mutex<Vec<Option<Answer>>>,
    done: AtomicUsize,
    failed: AtomicBool,
    /// How many there will be, once that is known.
    wanted: AtomicUsize,
}

impl Collected {
    /// For items that the calling thread feeds.
    pub(super) fn new() -> Self {
        Self {
            thread: thread::current(),
            answers: Mutex::new(Vec::new()),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            wanted: AtomicUsize::new(usize::MAX),
        }
    }

    /// Puts an answer at its place; true for the last one, whose thread is to be woken.
    pub(super) fn put(&self, index: usize, answer: Answer) -> bool {
        if matches!(answer, Answer::Error(_)) {
            self.failed.store(true, Ordering::Release);
        }
        let mut answers = self.answers.lock();
        if answers.len() <= index {
            answers.resize_with(index + 1, || None);
        }
        answers[index] = Some(answer);
        drop(answers);
        self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.wanted.load(Ordering::Acquire)
    }

    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Waits for the answers of all `fed` items.
    pub(super) fn wait(&self, py: Python<'_>, fed: usize, progress: &mut Progress<'_>) -> PyResult<()> {
        self.wanted.store(fed, Ordering::Release);
        let wakes = progress.tell.is_some() || serves_signals(py)?;
        while self.done() < fed {
            py.detach(|| if wakes { thread::park_timeout(POLL) } else { thread::park() });
            py.check_signals()?;
            progress.at(self.done())?;
        }
        Ok(())
    }

    /// The results in order; exceptions among them, or else the first of them raised.
    pub(super) fn take_list<'py>(&self, py: Python<'py>, exceptions: bool) -> PyResult<Bound<'py, PyList>> {
        let answers = std::mem::take(&mut *self.answers.lock());
        let results: PyResult<Vec<_>> = answers
            .into_iter()
            .flatten()
            .map(|answer| match answer {
                Answer::Error(error) if exceptions => Ok(error),
                answer => answer.into_result(py),
            })
            .collect();
        PyList::new(py, results?)
    }
}

/// Tells a callable how many are done, now and then.
pub(super) struct Progress<'py> {
    tell: Option<Bound<'py, PyAny>>,
    told: Instant,
}

impl<'py> Progress<'py> {
    pub(super) fn new(tell: Option<Bound<'py, PyAny>>) -> Self {
        Self { tell, told: Instant::now() }
    }

    pub(super) fn at(&mut self, done: usize) -> PyResult<()> {
        if let Some(tell) = &self.tell
            && self.told.elapsed() >= TELL_EVERY
        {
            self.told = Instant::now();
            tell.call1((done,))?;
        }
        Ok(())
    }
}
