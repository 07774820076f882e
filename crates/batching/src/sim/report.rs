//! What a simulation, or a recorded run, came to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::entry::{Entry, Priority};
use crate::scheduler::Verdict;
use crate::stats::{Distribution, Histogram};
use crate::time::Time;

/// What became of all requests. Every request is counted in exactly one of completed, refused, expired,
/// failed and cancelled, but for those of a recording that had not ended when it ended.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// Submitted.
    pub requests: u64,
    /// Answered with a result.
    pub completed: u64,
    /// Not admitted, by [`crate::Rejection::reason`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Answered because their deadline had passed, in the queue or while they ran.
    pub expired: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Left by their callers.
    pub cancelled: u64,
    /// From the first arrival to the last event, in seconds of simulated time.
    pub seconds: f64,
    /// Completed requests a second.
    pub throughput: f64,
    /// From arrival to result, of what completed.
    pub latency: Distribution,
    /// The same by priority; only those that occurred.
    pub latency_by_priority: BTreeMap<Priority, Distribution>,
    /// From arrival to the start of a batch, once for each run.
    pub wait: Distribution,
    /// Batches that ran.
    pub batches: u64,
    /// Entries in a batch.
    pub mean_batch_size: f64,
    /// Batches by their size.
    pub batch_sizes: BTreeMap<u32, u64>,
    /// The part of all computed elements that was padding, 0 to 1.
    pub padding_ratio: f64,
    /// The part of all instances' time that batches ran in, 0 to 1.
    pub utilization: f64,
    /// Seconds that instances ran for each completed request.
    pub device_seconds_per_item: f64,
}

/// Adds up a [`Report`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    began: Option<Time>,
    ended: Time,
    requests: u64,
    refused: BTreeMap<&'static str, u64>,
    expired: u64,
    failed: u64,
    cancelled: u64,
    latency: [Histogram; Priority::COUNT],
    wait: Histogram,
    /// `sizes[n]`: batches of n entries; as long as the largest batch.
    sizes: Vec<u64>,
    busy: Duration,
    /// Elements of all batches, and those of them that were asked for.
    elements: u64,
    useful: u64,
}

impl Tally {
    pub(super) fn submitted(&mut self, now: Time) {
        self.began.get_or_insert(now);
        self.ended = self.ended.max(now);
        self.requests += 1;
    }

    pub(super) fn refused(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    pub(super) fn cancelled(&mut self) {
        self.cancelled += 1;
    }

    pub(super) fn started(&mut self, now: Time, entries: &[Entry], elements: u64) {
        let size = entries.len();
        if self.sizes.len() <= size {
            self.sizes.resize(size + 1, 0);
        }
        self.sizes[size] += 1;
        self.elements += elements;
        for entry in entries {
            self.wait.record(nanos(now.since(entry.arrived)));
            self.useful += u64::from(if entry.seq_len > 0 { entry.seq_len } else { entry.cost });
        }
    }

    /// A batch, or part of it, ended after it ran for `busy`.
    pub(super) fn ended(&mut self, now: Time, busy: Duration) {
        self.ended = self.ended.max(now);
        self.busy += busy;
    }

    pub(super) fn completed(&mut self, now: Time, entry: &Entry) {
        self.latency[entry.priority as usize].record(nanos(now.since(entry.arrived)));
    }

    /// Any end but completion.
    pub(super) fn lost(&mut self, now: Time, verdict: Verdict) {
        self.ended = self.ended.max(now);
        match verdict {
            Verdict::ExpiredInQueue | Verdict::GivenUp | Verdict::ExpiredRunning => self.expired += 1,
            Verdict::Failed | Verdict::NeverFits | Verdict::Completed => self.failed += 1,
        }
    }

    pub(super) fn report(self, instances: u32) -> Report {
        let mut all = Histogram::default();
        self.latency.iter().for_each(|part| all.merge(part));
        let seconds = self.began.map_or(Duration::ZERO, |began| self.ended.since(began)).as_secs_f64();
        let sizes = (0..).zip(&self.sizes).filter(|(_, batches)| **batches > 0);
        let batch_sizes: BTreeMap<u32, u64> = sizes.map(|(size, batches)| (size, *batches)).collect();
        let batches: u64 = batch_sizes.values().sum();
        let items: u64 = batch_sizes.iter().map(|(size, batches)| u64::from(*size) * batches).sum();
        let completed = all.count();
        let busy = self.busy.as_secs_f64();
        let by_priority = Priority::DESCENDING.into_iter().filter_map(|priority| {
            let latency = &self.latency[priority as usize];
            (latency.count() > 0).then(|| (priority, latency.distribution(NANO)))
        });
        Report {
            requests: self.requests,
            completed,
            refused: self.refused,
            expired: self.expired,
            failed: self.failed,
            cancelled: self.cancelled,
            seconds,
            throughput: ratio(completed as f64, seconds),
            latency: all.distribution(NANO),
            latency_by_priority: by_priority.collect(),
            wait: self.wait.distribution(NANO),
            batches,
            mean_batch_size: ratio(items as f64, batches as f64),
            batch_sizes,
            padding_ratio: ratio(self.elements.saturating_sub(self.useful) as f64, self.elements as f64),
            utilization: ratio(busy, seconds * f64::from(instances)),
            device_seconds_per_item: ratio(busy, completed as f64),
        }
    }
}

/// In seconds: histograms count nanoseconds.
const NANO: f64 = 1e-9;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// 0 where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
