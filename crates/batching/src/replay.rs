//! The log of a scheduler's calls, and its replay: the same calls give the same batches.

use serde::{Deserialize, Serialize};

use crate::entry::{BatchId, Entry, InstanceId, Ticket};
use crate::scheduler::{BatchReport, Next, Planned, Rejection, Scheduler, SchedulerConfig, Verdict};
use crate::time::Time;

/// One call of a scheduler and what it answered, in the order of the calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the fields are the arguments of the scheduler's methods of the same names
pub enum Event {
    /// First in a log; a later one begins a new scheduler, as where a restarted server appends.
    Start { config: SchedulerConfig },
    /// `submit`, with its answer.
    Submit { now: Time, entry: Entry, rejection: Option<Rejection> },
    /// `cancel`.
    Cancel { now: Time, ticket: Ticket },
    /// `plan`, with the batch it made, if any, and the verdicts of those that ended without running.
    Plan {
        now: Time,
        instance: InstanceId,
        free: u64,
        batch: Option<(BatchId, Vec<Ticket>)>,
        #[serde(default)]
        verdicts: Vec<(Ticket, Verdict)>,
    },
    /// `complete`, with its verdicts.
    Complete { now: Time, batch: BatchId, report: BatchReport, verdicts: Vec<(Ticket, Verdict)> },
    /// `expire`, with its verdicts.
    Expire { now: Time, verdicts: Vec<(Ticket, Verdict)> },
    /// `flush`.
    Flush { now: Time },
    /// `drain`.
    Drain,
    /// `reset_breaker`.
    ResetBreaker,
}

impl Event {
    /// The event of a call of `plan`.
    pub fn plan(now: Time, instance: InstanceId, free: u64, planned: &Planned) -> Self {
        let batch = match &planned.next {
            Next::Run(batch) => Some((batch.id, batch.entries.iter().map(|entry| entry.ticket).collect())),
            Next::Idle | Next::WaitUntil(_) => None,
        };
        Event::Plan { now, instance, free, batch, verdicts: planned.resolved.clone() }
    }
}

/// What a replay that agreed with its log went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Events, the start included.
    pub events: usize,
    /// Batches, each of the same entries in the same order as in the log.
    pub batches: usize,
}

/// Why a replay stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// A log begins with the configuration.
    #[error("the log does not begin with a start event")]
    NoStart,
    /// The scheduler answered differently.
    #[error("event {index} differs: the log has {logged}, the replay {replayed}")]
    Differs {
        /// Position in the log, the start being 0.
        index: usize,
        /// The event as logged.
        logged: String,
        /// The event as replayed.
        replayed: String,
    },
}

/// Makes the logged calls on a new scheduler and compares every answer.
pub fn replay(events: impl IntoIterator<Item = Event>) -> Result<Replayed, Divergence> {
    let mut events = events.into_iter();
    let Some(Event::Start { config }) = events.next() else { return Err(Divergence::NoStart) };
    let mut scheduler = Scheduler::new(config);
    let mut replayed = Replayed { events: 1, batches: 0 };
    for logged in events {
        let again = call(&mut scheduler, &logged);
        if again != logged {
            return Err(Divergence::Differs {
                index: replayed.events,
                logged: format!("{logged:?}"),
                replayed: format!("{again:?}"),
            });
        }
        replayed.events += 1;
        replayed.batches += usize::from(matches!(logged, Event::Plan { batch: Some(_), .. }));
    }
    Ok(replayed)
}

/// Makes the call that `event` logs; returns the event with the answers of `scheduler`.
fn call(scheduler: &mut Scheduler, event: &Event) -> Event {
    match event {
        Event::Start { config } => {
            *scheduler = Scheduler::new(config.clone());
            event.clone()
        }
        Event::Submit { now, entry, .. } => Event::Submit {
            now: *now,
            entry: entry.clone(),
            rejection: scheduler.submit(*now, entry.clone()).err(),
        },
        Event::Cancel { now, ticket } => {
            scheduler.cancel(*now, *ticket);
            event.clone()
        }
        Event::Plan { now, instance, free, .. } => {
            Event::plan(*now, *instance, *free, &scheduler.plan(*now, *instance, *free))
        }
        Event::Complete { now, batch, report, .. } => Event::Complete {
            now: *now,
            batch: *batch,
            report: *report,
            verdicts: scheduler.complete(*now, *batch, *report),
        },
        Event::Expire { now, .. } => Event::Expire { now: *now, verdicts: scheduler.expire(*now).0 },
        Event::Flush { now } => {
            scheduler.flush(*now);
            event.clone()
        }
        Event::Drain => {
            scheduler.drain();
            Event::Drain
        }
        Event::ResetBreaker => {
            scheduler.reset_breaker();
            Event::ResetBreaker
        }
    }
}
