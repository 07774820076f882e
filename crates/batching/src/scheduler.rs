//! The request-level scheduler: who waits, who leaves together, who is answered without running.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entry::{BatchId, Entry, InstanceId, ShapeKey, Ticket, Urgency};
use crate::policy::{Dispatch, Mode, Ripe, ripeness};
use crate::queue::Queue;
use crate::time::Time;

/// The limits and the policy of one model version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerConfig {
    /// How batches are sized.
    pub mode: Mode,
    /// When a batch that is not full may leave; `fixed` mode always goes by the window.
    pub dispatch: Dispatch,
    /// Most entries in a batch; at least 1.
    pub max_batch_size: u32,
    /// Most cost in a batch; an entry above it is refused.
    pub max_batch_cost: Option<u64>,
    /// Longest wait of an entry for others to join it while an instance is free.
    pub max_wait: Duration,
    /// Most entries in the queue.
    pub max_queue_size: u32,
    /// Most cost in the queue.
    pub max_queue_cost: Option<u64>,
}

/// Why an entry was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// The queue holds as many entries as it may.
    #[error("the queue is full: {limit} requests are waiting")]
    QueueFull {
        /// The bound, in entries.
        limit: u32,
    },
    /// The queue holds as much cost as it may.
    #[error("the queue is full: {queued} of at most {limit} tokens are waiting, {cost} more do not fit")]
    QueueCostFull {
        /// The refused entry's cost.
        cost: u32,
        /// The cost that was waiting.
        queued: u64,
        /// The bound.
        limit: u64,
    },
    /// No batch could ever hold it.
    #[error("the request has {cost} tokens, more than the {limit} that ever fit")]
    NeverFits {
        /// The refused entry's cost.
        cost: u32,
        /// What a batch or the queue may hold, whichever is less.
        limit: u64,
    },
    /// Its deadline had passed when it was submitted.
    #[error("the deadline had passed when the request was submitted")]
    DeadlinePassed,
    /// The model takes no more work.
    #[error("the model is being unloaded")]
    Draining,
}

/// How an entry ended; the holder of the payloads answers its caller accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Its batch ran: the caller gets the model's own result for it.
    Completed,
    /// Its batch failed as a whole: the caller gets the batch's error.
    Failed,
    /// Its deadline passed while it waited.
    ExpiredInQueue,
    /// Its deadline passed while its batch ran.
    ExpiredRunning,
}

/// What an instance reports of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReport {
    /// Whether the model returned one result an entry.
    pub completed: bool,
    /// How long the model ran.
    pub busy: Duration,
}

/// Entries that run together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its name in [`Scheduler::complete`].
    pub id: BatchId,
    /// Its entries, most urgent first.
    pub entries: Vec<Entry>,
}

/// What a free instance does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing waits: ask again after a submit.
    Idle,
    /// Something waits, but not for long enough: ask again then, or after a submit.
    WaitUntil(Time),
    /// Run this and report.
    Run(Batch),
}

/// The answer to a free instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Entries that ended without running.
    pub resolved: Vec<(Ticket, Verdict)>,
    /// What the instance does.
    pub next: Next,
}

/// Where an entry with a verdict outstanding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Running,
}

/// The state machine: every call takes `now`, and none blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    queue: Queue,
    /// Every entry that still owes its caller a verdict, with its deadline.
    live: HashMap<Ticket, Option<Time>>,
    /// Deadlines of live entries, soonest first: expiry must not search the queue.
    deadlines: BTreeSet<(Time, Ticket)>,
    running: HashMap<BatchId, Vec<Ticket>>,
    next_batch: u64,
    draining: bool,
    seconds_per_entry: Option<f64>,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            queue: Queue::default(),
            live: HashMap::new(),
            deadlines: BTreeSet::new(),
            running: HashMap::new(),
            next_batch: 0,
            draining: false,
            seconds_per_entry: None,
        }
    }

    /// The limits and the policy it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Entries waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Cost waiting.
    pub fn queued_cost(&self) -> u64 {
        self.queue.cost()
    }

    /// The soonest deadline of any live entry.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// How long `instances` instances need for what waits, at the rate of recent batches.
    /// `None` before the first batch.
    pub fn predicted_drain(&self, instances: usize) -> Option<Duration> {
        let seconds = self.seconds_per_entry? * self.queue.len() as f64 / instances.max(1) as f64;
        // Fails only for what is longer than any duration.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Admits `entry`, whose ticket must be new, or says at once why not.
    pub fn submit(&mut self, now: Time, entry: Entry) -> Result<(), Rejection> {
        self.admit(now, &entry)?;
        if let Some(deadline) = entry.deadline {
            self.deadlines.insert((deadline, entry.ticket));
        }
        self.live.insert(entry.ticket, entry.deadline);
        self.queue.push(entry);
        Ok(())
    }

    fn admit(&self, now: Time, entry: &Entry) -> Result<(), Rejection> {
        let cost = entry.cost;
        if self.draining {
            return Err(Rejection::Draining);
        }
        let hardest = [self.config.max_batch_cost, self.config.max_queue_cost].into_iter().flatten().min();
        if let Some(limit) = hardest
            && u64::from(cost) > limit
        {
            return Err(Rejection::NeverFits { cost, limit });
        }
        if entry.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Rejection::DeadlinePassed);
        }
        if self.queue.len() >= self.config.max_queue_size as usize {
            return Err(Rejection::QueueFull { limit: self.config.max_queue_size });
        }
        let queued = self.queue.cost();
        match self.config.max_queue_cost {
            Some(limit) if queued + u64::from(cost) > limit => {
                Err(Rejection::QueueCostFull { cost, queued, limit })
            }
            _ => Ok(()),
        }
    }

    /// Forgets an entry whose caller left. True when it was still queued, so that it will never run.
    pub fn cancel(&mut self, _now: Time, ticket: Ticket) -> bool {
        self.settle(ticket) == Some(Place::Queued)
    }

    /// What `instance`, which is free, does next.
    pub fn plan(&mut self, now: Time, _instance: InstanceId) -> Planned {
        let resolved = self.expire_due(now);
        let mut wake: Option<Time> = None;
        // Of the groups that may leave, the one with the most urgent head.
        let mut first: Option<(&Urgency, ShapeKey)> = None;
        for (shape, group) in self.queue.groups() {
            match ripeness(&self.config, group, now) {
                Ripe::At(at) if !self.draining => wake = Some(wake.map_or(at, |wake| wake.min(at))),
                Ripe::At(_) | Ripe::Now => {
                    let ripe = group.head().map(|head| (head, shape));
                    first = first.into_iter().chain(ripe).min();
                }
            }
        }
        let next = match (first, wake) {
            (Some((_, shape)), _) => Next::Run(self.form_batch(shape)),
            (None, Some(at)) => Next::WaitUntil(at),
            (None, None) => Next::Idle,
        };
        Planned { resolved, next }
    }

    fn form_batch(&mut self, shape: ShapeKey) -> Batch {
        let max_cost = self.config.max_batch_cost.unwrap_or(u64::MAX);
        let entries = self.queue.take(shape, self.config.max_batch_size as usize, max_cost);
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.running.insert(id, entries.iter().map(|entry| entry.ticket).collect());
        Batch { id, entries }
    }

    /// Ends a batch. Entries that expired or were cancelled while it ran get no second verdict.
    pub fn complete(&mut self, _now: Time, batch: BatchId, report: BatchReport) -> Vec<(Ticket, Verdict)> {
        let tickets = self.running.remove(&batch).unwrap_or_default();
        if !tickets.is_empty() {
            let sample = report.busy.as_secs_f64() / tickets.len() as f64;
            // A fifth of each new batch: follows a change within some ten batches, shrugs off one outlier.
            self.seconds_per_entry =
                Some(self.seconds_per_entry.map_or(sample, |old| old + (sample - old) / 5.0));
        }
        let verdict = if report.completed { Verdict::Completed } else { Verdict::Failed };
        tickets
            .into_iter()
            .filter(|&ticket| self.settle(ticket).is_some())
            .map(|ticket| (ticket, verdict))
            .collect()
    }

    /// Ends entries whose deadline has passed, queued or running, and says when to call again.
    pub fn expire(&mut self, now: Time) -> (Vec<(Ticket, Verdict)>, Option<Time>) {
        (self.expire_due(now), self.next_deadline())
    }

    /// Takes no more work and lets what waits leave without waiting for company.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    fn expire_due(&mut self, now: Time) -> Vec<(Ticket, Verdict)> {
        let mut expired = Vec::new();
        while let Some(&(deadline, ticket)) = self.deadlines.first()
            && deadline <= now
        {
            // Before settling, which would do it too: the loop ends whatever the other maps hold.
            self.deadlines.pop_first();
            match self.settle(ticket) {
                Some(Place::Queued) => expired.push((ticket, Verdict::ExpiredInQueue)),
                Some(Place::Running) => expired.push((ticket, Verdict::ExpiredRunning)),
                None => {}
            }
        }
        expired
    }

    /// Ends an entry, which then has no further verdict and never runs; says where it was.
    /// `None` when it had ended before.
    fn settle(&mut self, ticket: Ticket) -> Option<Place> {
        if let Some(deadline) = self.live.remove(&ticket)? {
            self.deadlines.remove(&(deadline, ticket));
        }
        // What lives and does not wait runs.
        Some(if self.queue.remove(ticket).is_some() { Place::Queued } else { Place::Running })
    }

    /// Whether it remembers nothing of any entry: what ended must leave no trace.
    #[cfg(test)]
    pub(crate) fn remembers_nothing(&self) -> bool {
        self.queue.holds_nothing()
            && self.live.is_empty()
            && self.deadlines.is_empty()
            && self.running.is_empty()
    }
}
