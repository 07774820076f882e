//! How callers learn of their requests' ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::driver::{BatchError, ModelError};
use crate::entry::Ticket;
use crate::hash::TicketMap;
use crate::scheduler::{Outcome, Verdict};

/// Why an admitted request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its deadline passed while it waited; it never ran.
    #[error("the deadline passed while the request was queued")]
    ExpiredInQueue,
    /// Its deadline could not be met any more, or only at the cost of more of the others'; it never ran.
    #[error("the deadline of the queued request could not be met any more")]
    GivenUp,
    /// Its deadline passed while its batch ran.
    #[error("the deadline passed while the model ran")]
    ExpiredRunning,
    /// It needs more memory than a batch may; it never ran.
    #[error("the request needs more memory than a batch may")]
    NeverFits,
    /// The model failed on it, or on its whole batch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The batcher was aborted while it waited; it never ran.
    #[error("the server stopped before the request ran")]
    ClosedInQueue,
    /// The batcher was aborted while its batch ran: the model may have done all of its work, or some.
    #[error("the server stopped while the model ran")]
    ClosedRunning,
}

/// Called once with a request's end, on whichever thread learnt of it; must not block.
pub type Reply<O> = Box<dyn FnOnce(Result<O, Failure>) + Send>;

pub(super) struct Payload<I, O> {
    pub(super) input: Arc<I>,
    pub(super) reply: Reply<O>,
}

impl<I, O> Payload<I, O> {
    pub(super) fn answer(self, result: Result<O, Failure>) {
        // A reply that panics must not end the thread that runs it, which owes others their answers.
        drop(catch_unwind(AssertUnwindSafe(|| (self.reply)(result))));
    }
}

/// How a batch of `size` ended, and what its callers get.
pub(super) fn judge<O>(
    results: Result<Vec<Result<O, ModelError>>, BatchError>,
    size: usize,
) -> (Outcome, Result<Vec<Result<O, ModelError>>, ModelError>) {
    match results {
        Ok(results) if results.len() == size => (Outcome::Completed, Ok(results)),
        Ok(results) => {
            let error = format!("the model returned {} results for a batch of {size}", results.len());
            (Outcome::WrongLength, Err(ModelError(error)))
        }
        Err(BatchError::Failed(error)) => (Outcome::Failed, Err(error)),
        Err(BatchError::OutOfMemory(error)) => (Outcome::OutOfMemory, Err(error)),
    }
}

/// Requests that ended, each with its verdict.
pub(super) type Ended<I, O> = Vec<(Ticket, Verdict, Payload<I, O>)>;

pub(super) fn take_payloads<I, O>(
    payloads: &mut TicketMap<Payload<I, O>>,
    verdicts: &[(Ticket, Verdict)],
) -> Ended<I, O> {
    verdicts
        .iter()
        .filter_map(|&(ticket, verdict)| Some((ticket, verdict, payloads.remove(&ticket)?)))
        .collect()
}

pub(super) fn answer_unrun<I, O>(expired: Ended<I, O>) {
    for (_, verdict, payload) in expired {
        let failure = match verdict {
            Verdict::ExpiredRunning => Failure::ExpiredRunning,
            Verdict::GivenUp => Failure::GivenUp,
            Verdict::NeverFits => Failure::NeverFits,
            _ => Failure::ExpiredInQueue,
        };
        payload.answer(Err(failure));
    }
}

pub(super) fn answer_batch<I, O>(
    tickets: &[Ticket],
    payloads: Ended<I, O>,
    results: Result<Vec<Result<O, ModelError>>, ModelError>,
) {
    match results {
        Err(error) => {
            for (_, _, payload) in payloads {
                payload.answer(Err(Failure::Model(error.clone())));
            }
        }
        Ok(results) => {
            // Verdicts keep the batch's order; entries settled meanwhile are missing from them.
            let mut payloads = payloads.into_iter().peekable();
            for (ticket, result) in tickets.iter().zip(results) {
                if let Some((_, _, payload)) = payloads.next_if(|(verdict_of, _, _)| verdict_of == ticket) {
                    payload.answer(result.map_err(Failure::Model));
                }
            }
        }
    }
}
