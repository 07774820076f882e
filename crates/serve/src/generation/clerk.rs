//! What needs no model, on a thread beside it: while a step runs, callers hear what the last one brought, and the next
//! one is planned.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use trustformers_batching::continuous::{BlockCounts, SequenceId, StepPlan};

use super::engine::{Closing, Shared};
use super::seats::Mail;
use super::trace::Span;

/// What is left to do of a step that has ended, and of sequences that ended without one.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mail: Vec<Mail>,
    /// The step, and the blocks that it left.
    pub(super) step: Option<(Span, StepPlan, BlockCounts)>,
    pub(super) failures: Vec<(SequenceId, String)>,
}

impl Report {
    /// Whether nothing is left to do.
    pub(super) fn is_empty(&self) -> bool {
        self.mail.is_empty() && self.step.is_none()
    }
}

/// The engine's side of the thread.
pub(super) struct Clerk {
    /// Has room for one report: an engine whose steps are shorter than telling of them waits.
    desk: SyncSender<Report>,
    thread: JoinHandle<()>,
}

impl Clerk {
    /// Starts the thread of the model `name`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(name: &str, shared: Arc<Shared>) -> io::Result<Self> {
        let (desk, reports) = mpsc::sync_channel(1);
        let body = move || {
            // Where it panics, nobody must wait for what nobody says.
            let _closing = Closing(&shared);
            reports.into_iter().for_each(|report| shared.attend(report));
        };
        let thread = thread::Builder::new().name(format!("{name} clerk")).spawn(body)?;
        Ok(Self { desk, thread })
    }

    /// Leaves a report to the thread. Where that is gone, all that it would have told have been told of their ends.
    pub(super) fn attend(&self, report: Report) {
        drop(self.desk.send(report));
    }

    /// Returns when all reports have been attended to.
    pub(super) fn finish(self) {
        drop(self.desk);
        // What it panicked with was printed.
        drop(self.thread.join());
    }
}
