//! Who is let in, and how long who is let in will wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Scheduler;
use crate::entry::{Entry, Priority};
use crate::time::Time;

/// A predicted wait above this multiple of window and objective is refused.
const MOST_WAIT: f64 = 1.5;

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
    /// The queue holds as many bytes as it may.
    #[error("the queue is full: {queued} of at most {limit} bytes are waiting, {bytes} more do not fit")]
    QueueBytesFull {
        /// The refused entry's bytes.
        bytes: u64,
        /// The bytes that were waiting.
        queued: u64,
        /// The bound.
        limit: u64,
    },
    /// It would wait for too long.
    #[error("the model is overloaded: the request would wait {predicted:.3?}, more than {limit:.3?}")]
    Overloaded {
        /// How long it would have waited.
        predicted: Duration,
        /// The longest wait that is taken on.
        limit: Duration,
    },
    /// No batch could ever hold it.
    #[error("the request has {cost} tokens, more than the {limit} that ever fit")]
    NeverFits {
        /// The refused entry's cost.
        cost: u64,
        /// What a batch or the queue may hold, whichever is less.
        limit: u64,
    },
    /// No batch, or no queue, could ever hold it, for want of memory.
    #[error("the request needs {needed} bytes, more than the {limit} that ever fit")]
    NeverFitsMemory {
        /// What a batch of it alone needs, or what it is in the queue.
        needed: u64,
        /// What a batch may need, or the queue may hold.
        limit: u64,
    },
    /// Its deadline had passed when it was submitted.
    #[error("the deadline had passed when the request was submitted")]
    DeadlinePassed,
    /// Its deadline would pass before it has run.
    #[error("the deadline cannot be met: the request would be answered after {predicted:.3?}")]
    DeadlineUnmeetable {
        /// When it would have been answered, from now.
        predicted: Duration,
    },
    /// The model failed too often of late.
    #[error("the model keeps failing; the next try is in {retry_after:.3?}")]
    BreakerOpen {
        /// When it may be tried again, from now.
        retry_after: Duration,
    },
    /// The model takes no more work.
    #[error("the model is being unloaded")]
    Draining,
}

impl Rejection {
    /// Every reason, in the order of the variants; part of the metrics' interface.
    pub const REASONS: [&str; 10] = [
        "queue_full",
        "queue_tokens_full",
        "queue_bytes_full",
        "overloaded",
        "never_fits",
        "never_fits_memory",
        "deadline_passed",
        "deadline_unmeetable",
        "breaker_open",
        "draining",
    ];

    /// Why, in a word.
    pub fn reason(&self) -> &'static str {
        Self::REASONS[self.index()]
    }

    /// The reason's place in [`Rejection::REASONS`].
    pub(crate) fn index(&self) -> usize {
        match self {
            Rejection::QueueFull { .. } => 0,
            Rejection::QueueCostFull { .. } => 1,
            Rejection::QueueBytesFull { .. } => 2,
            Rejection::Overloaded { .. } => 3,
            Rejection::NeverFits { .. } => 4,
            Rejection::NeverFitsMemory { .. } => 5,
            Rejection::DeadlinePassed => 6,
            Rejection::DeadlineUnmeetable { .. } => 7,
            Rejection::BreakerOpen { .. } => 8,
            Rejection::Draining => 9,
        }
    }
}

impl Scheduler {
    pub(super) fn admit(&mut self, now: Time, entry: &Entry) -> Result<(), Rejection> {
        if self.draining {
            return Err(Rejection::Draining);
        }
        self.could_ever_fit(entry)?;
        if entry.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Rejection::DeadlinePassed);
        }
        self.fits_queue(entry)?;
        self.in_time(now, entry)?;
        // Last, because it takes the place of the one request that tries a failing model.
        match &mut self.breaker {
            Some(breaker) => {
                breaker.admit(now, entry.ticket).map_err(|retry_after| Rejection::BreakerOpen { retry_after })
            }
            None => Ok(()),
        }
    }

    /// Whether an entry of the least cost is refused for now, for want of room or of time: then so is any
    /// other, and what preparing that takes can be saved.
    pub fn refuses_even(&self, now: Time, least: &Entry) -> bool {
        let least = self.normalised(least.clone());
        self.fits_queue(&least).and_then(|()| self.in_time(now, &least)).is_err()
    }

    /// The entry as it counts here.
    pub(super) fn normalised(&self, entry: Entry) -> Entry {
        let priority = if self.config.priorities { entry.priority } else { Priority::Normal };
        Entry { priority, ..entry }
    }

    fn could_ever_fit(&self, entry: &Entry) -> Result<(), Rejection> {
        let (alone, unpadded) = (self.alone(entry), u64::from(entry.cost));
        let over = |cost: u64, limit: Option<u64>| Some((limit.filter(|&limit| cost > limit)?, cost));
        // The queue holds it as it came, a batch holds it padded.
        let limits = [over(alone, self.config.max_batch_cost), over(unpadded, self.config.max_queue_cost)];
        if let Some((limit, cost)) = limits.into_iter().flatten().min() {
            return Err(Rejection::NeverFits { cost, limit });
        }
        if let Some(limit) = self.config.max_queue_bytes.filter(|&limit| entry.bytes > limit) {
            return Err(Rejection::NeverFitsMemory { needed: entry.bytes, limit });
        }
        let memory = self.memory.can_ever_fit(alone);
        memory.map_err(|(needed, limit)| Rejection::NeverFitsMemory { needed, limit })
    }

    fn fits_queue(&self, entry: &Entry) -> Result<(), Rejection> {
        let queued = self.queue.total();
        if queued.entries >= self.config.max_queue_size as usize {
            return Err(Rejection::QueueFull { limit: self.config.max_queue_size });
        }
        let (cost, bytes) = (entry.cost, entry.bytes);
        match self.config.max_queue_cost {
            Some(limit) if queued.cost + u64::from(cost) > limit => {
                return Err(Rejection::QueueCostFull { cost, queued: queued.cost, limit });
            }
            _ => {}
        }
        match self.config.max_queue_bytes {
            Some(limit) if queued.bytes + bytes > limit => {
                Err(Rejection::QueueBytesFull { bytes, queued: queued.bytes, limit })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what would only take a place from others: it cannot be answered in time.
    fn in_time(&self, now: Time, entry: &Entry) -> Result<(), Rejection> {
        if entry.deadline.is_none() && self.config.latency_slo.is_none() {
            return Ok(());
        }
        // What is idle is tried, whatever the model was like before: else a wrong prediction would last.
        if self.costs.known().is_none() || !self.has_work() && self.running.is_empty() {
            return Ok(());
        }
        let Some((wait, run)) = self.predicted(now, entry.priority, entry.cost) else { return Ok(()) };
        if entry.deadline.is_some_and(|deadline| now + wait + run > deadline) {
            return Err(Rejection::DeadlineUnmeetable { predicted: wait.saturating_add(run) });
        }
        let Some(slo) = self.config.latency_slo else { return Ok(()) };
        let limit = times(self.max_wait().saturating_add(slo), MOST_WAIT);
        if wait > limit && entry.priority != Priority::Critical {
            return Err(Rejection::Overloaded { predicted: wait, limit });
        }
        Ok(())
    }

    /// How long an entry submitted now would wait and run. `None` before the first batch.
    pub fn predicted(&self, now: Time, priority: Priority, cost: u32) -> Option<(Duration, Duration)> {
        let ahead = self.queue.ahead_of(priority);
        let limit = self.limit().max(1) as usize;
        let (full, beside) = (ahead.entries / limit, ahead.entries % limit);
        let mean_cost = ahead.cost as f64 / ahead.entries.max(1) as f64;
        let time = |items: usize, cost: f64| self.costs.overall(items as u32, cost.round() as u64);
        let batch = time(limit, mean_cost * limit as f64)?;
        // While full batches wait, others come before this one runs, and fill its batch.
        let run = match full {
            0 => time(beside + 1, mean_cost * beside as f64 + f64::from(cost))?,
            _ => batch,
        };
        // A retry runs before anything new.
        let rounds = full + self.retries.len();
        let wait =
            self.until_free(now).saturating_add(times(batch, rounds as f64 / self.usable_instances(now)));
        Some((wait, run))
    }

    /// How long the instances need for all that waits. `None` before the first batch.
    pub fn predicted_drain(&self, now: Time) -> Option<Duration> {
        let waiting = self.queue.total();
        if waiting.entries == 0 {
            return self.costs.overall(1, 1).map(|_| Duration::ZERO);
        }
        let batches = waiting.entries.div_ceil(self.limit().max(1) as usize);
        let items = waiting.entries as f64 / batches as f64;
        let tokens = waiting.cost as f64 / batches as f64;
        let batch = self.costs.overall(items.round() as u32, tokens.round() as u64)?;
        let rounds = batches as f64 / self.usable_instances(now);
        Some(self.until_free(now).saturating_add(times(batch, rounds)))
    }

    fn usable_instances(&self, now: Time) -> f64 {
        (self.config.instances as usize).saturating_sub(self.stalled(now).count()).max(1) as f64
    }

    /// How long until an instance is free, as far as running batches go as predicted.
    fn until_free(&self, now: Time) -> Duration {
        if self.running.len() < self.config.instances as usize {
            return Duration::ZERO;
        }
        self.predicted_ends().map(|end| end.since(now)).min().unwrap_or_default()
    }

    /// When running batches end, as predicted.
    pub(super) fn predicted_ends(&self) -> impl Iterator<Item = Time> {
        self.running.values().map(|batch| batch.started + batch.predicted.unwrap_or_default())
    }
}

/// Fails over to the longest duration, which no prediction reaches.
fn times(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}
