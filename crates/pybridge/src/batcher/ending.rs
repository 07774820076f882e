//! How a batch ends, and how its callers learn of it.

use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use trustformers_batching::{BatchError, Failure, ModelError};

use super::event_loop::{hand_on, settle};
use super::executor::failure;
use super::item::{Answer, Caller, Item};
use super::map::Collected;
use super::slot::Slot;
use super::{Batcher, INSTANCE, LoopPort, Running};
use crate::error;

/// Whom to wake once the GIL is free.
pub(super) enum Sleeper {
    Thread(Arc<Slot>),
    Map(Arc<Collected>),
}

impl Sleeper {
    pub(super) fn wake(&self) {
        match self {
            Sleeper::Thread(slot) => slot.wake(),
            Sleeper::Map(results) => results.wake(),
        }
    }
}

/// What failed a batch, and the words for it.
pub(super) enum Blame {
    /// An exception.
    Raised(String, Py<PyAny>),
    /// No list, or one of another length.
    Results(String),
}

impl Blame {
    pub(super) fn error(&self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Blame::Raised(message, cause) => failure(py, message, Some(cause)),
            Blame::Results(message) => failure(py, message, None),
        }
    }
}

fn closed(py: Python<'_>) -> Py<PyAny> {
    error::closed("the batcher was closed before the item was done").into_value(py).into_any()
}

impl Batcher {
    /// Ends the batch that runs, and tells its callers; threads among them are woken by `next`.
    pub(super) fn finish(
        &self,
        py: Python<'_>,
        answers: Result<Vec<Answer>, Blame>,
        here: Option<&Bound<'_, LoopPort>>,
    ) {
        let Some(Running { job, wanted, started }) = self.running.lock().take() else { return };
        let busy = started.elapsed();
        let (results, blame) = match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                // Those who left get what nobody will look at, so that the others keep their places.
                let of = |wanted: bool| wanted.then(|| answers.next()).flatten();
                let unwanted = || Answer::Result(py.None());
                (Ok(wanted.into_iter().map(of).map(|of| Ok(of.unwrap_or_else(unwanted))).collect()), None)
            }
            Err(blame) => {
                let results = match &blame {
                    Blame::Raised(message, _) => Err(BatchError::Failed(ModelError(message.clone()))),
                    // Results of another number are those of no batch.
                    Blame::Results(_) => Ok(Vec::new()),
                };
                (results, Some(blame))
            }
        };
        self.entrance.batcher.complete(INSTANCE, job, results, busy, None);
        self.deliver(py, blame.as_ref(), here);
    }

    /// Tells everybody in the outbox how their items ended; at once those of the event loop `here`.
    pub(super) fn deliver(&self, py: Python<'_>, blame: Option<&Blame>, here: Option<&Bound<'_, LoopPort>>) {
        let ended = std::mem::take(&mut *self.entrance.outbox.lock());
        self.took(ended.iter().map(|(item, _)| item.came));
        let mut sleepers = Vec::with_capacity(ended.len());
        let (mut ports, mut landed) = (Vec::new(), Vec::new());
        for (item, result) in ended {
            let answer = match result {
                Ok(answer) => answer,
                Err(Failure::Model(error)) => {
                    Answer::Error(blame.map_or_else(|| failure(py, &error.0, None), |blame| blame.error(py)))
                }
                Err(_) => Answer::Error(closed(py)),
            };
            match (&item.caller, here) {
                (Caller::Loop { port, future }, Some(here)) if port.is(here) => {
                    landed.push((future.clone_ref(py), answer));
                }
                _ => sleepers.extend(self.answer(py, &item, answer, &mut ports)),
            }
        }
        self.sleepers.lock().append(&mut sleepers);
        for port in ports {
            LoopPort::call(port.bind(py));
        }
        hand_on(py, landed);
    }

    /// Notes how long items took that came at these times and are answered now.
    pub(super) fn took(&self, came: impl Iterator<Item = Instant>) {
        let now = Instant::now();
        let mut latencies = self.latencies.lock();
        for came in came {
            let nanoseconds = now.saturating_duration_since(came).as_nanos();
            latencies.record(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        }
    }

    /// Tells one caller; returns who is to be woken for it, or adds the event loop that is to be called.
    fn answer(
        &self,
        py: Python<'_>,
        item: &Item,
        answer: Answer,
        ports: &mut Vec<Py<LoopPort>>,
    ) -> Option<Sleeper> {
        match &item.caller {
            Caller::Thread(slot) => {
                slot.put(answer);
                Some(Sleeper::Thread(Arc::clone(slot)))
            }
            Caller::Map { results, index } => {
                results.put(*index, answer).then(|| Sleeper::Map(Arc::clone(results)))
            }
            Caller::Future(future) => {
                // Fails where its holder cancelled or set it meanwhile: then nobody waits.
                drop(settle(future.bind(py), answer));
                None
            }
            Caller::Loop { port, future } => {
                if port.get().leave(future.clone_ref(py), answer) {
                    ports.push(port.clone_ref(py));
                }
                None
            }
        }
    }
}
