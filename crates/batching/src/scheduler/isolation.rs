//! What becomes of a batch that ended badly: the culprits fail, the others run again.

use serde::{Deserialize, Serialize};

use super::{Isolation, Running, Scheduler, Verdict};
use crate::breaker::BreakerState;
use crate::entry::{Entry, GroupKey, Ticket};
use crate::time::Time;

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The model returned one result an entry.
    Completed,
    /// The model failed on the whole batch.
    Failed,
    /// The model could not get the memory that the batch needs.
    OutOfMemory,
    /// The model returned more or fewer results than the batch has entries: running it again is no help.
    WrongLength,
}

/// Part of a failed batch that will run again.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    pub(super) key: GroupKey,
    pub(super) entries: Vec<Entry>,
}

impl Scheduler {
    /// The verdicts of a batch that ended as `outcome`; queues what is run again.
    pub(super) fn judge(&mut self, now: Time, batch: Running, outcome: Outcome) -> Vec<(Ticket, Verdict)> {
        let Running { key, entries, elements, .. } = batch;
        let alone = entries.len() == 1;
        let again = match outcome {
            Outcome::Completed => {
                self.breaker.iter_mut().for_each(|breaker| breaker.succeeded(now));
                return self.settle_all(entries, Verdict::Completed);
            }
            Outcome::OutOfMemory => {
                self.memory.out_of_memory(elements);
                !alone
            }
            // While the breaker is open it is the model that fails: there is no culprit to be found.
            Outcome::Failed => self.config.isolation == Isolation::Bisect && !alone && !self.is_open(now),
            Outcome::WrongLength => false,
        };
        if again {
            self.halve(key, entries);
            return Vec::new();
        }
        let mut verdicts = self.settle_all(entries, Verdict::Failed);
        // A single request too large for the memory says nothing about the model.
        if outcome != Outcome::OutOfMemory
            && let Some(breaker) = &mut self.breaker
        {
            breaker.failed(now);
            if self.is_open(now) {
                // Looking for a culprit would only keep it failing.
                for retry in std::mem::take(&mut self.retries) {
                    verdicts.extend(self.settle_all(retry.entries, Verdict::Failed));
                }
            }
        }
        verdicts
    }

    fn is_open(&self, now: Time) -> bool {
        matches!(self.breaker(now), Some(BreakerState::Open { .. }))
    }

    fn halve(&mut self, key: GroupKey, mut entries: Vec<Entry>) {
        entries.retain(|entry| self.owed.contains_key(&entry.ticket));
        let second = entries.split_off(entries.len().div_ceil(2));
        let halves = [entries, second].into_iter().filter(|half| !half.is_empty());
        self.retries.extend(halves.map(|entries| Retry { key, entries }));
    }

    /// The next part of a failed batch that still has somebody to answer.
    pub(super) fn next_retry(&mut self) -> Option<Retry> {
        while let Some(mut retry) = self.retries.pop_front() {
            retry.entries.retain(|entry| self.owed.contains_key(&entry.ticket));
            if !retry.entries.is_empty() {
                return Some(retry);
            }
        }
        None
    }

    fn settle_all(&mut self, entries: Vec<Entry>, verdict: Verdict) -> Vec<(Ticket, Verdict)> {
        let tickets = entries.into_iter().map(|entry| entry.ticket);
        tickets.filter(|&ticket| self.settle(ticket).is_some()).map(|ticket| (ticket, verdict)).collect()
    }
}
