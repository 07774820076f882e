//! Suggestions to whoever sets the limits: each with the numbers that say why, and with what it gains.
//!
//! Gains are computed by the fitted cost model, put to the level of the last minute's batches. Only what
//! the evidence says clearly is suggested: the minute has enough batches, the model explains what was
//! measured, it saw batches that differed in what is to be changed, and the gain is at least 5 %.
//! Each gain is that of its suggestion alone.

mod capacity;
mod waiting;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cost_model::FitSummary;
use crate::scheduler::SchedulerConfig;
use crate::stats::Snapshot;

/// Batches of the last minute that make it speak for itself.
const ENOUGH_BATCHES: u64 = 50;
/// The least gain that is worth a change, as a part.
const LEAST_GAIN: f64 = 0.05;
/// How far a fit may be off, as a part, to be asked about batches that there were not.
const MOST_ERROR: f64 = 0.25;
/// The part of a limit from which on it counts as reached.
const REACHED: f64 = 0.95;
/// Utilization from which on more capacity means more results.
const BUSY: f64 = 0.9;
/// Share of batches that left entries behind: above the one the limits bind, below the other they do not.
const OFTEN: f64 = 0.8;
const RARELY: f64 = 0.1;

/// What to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Batches are full, more could join them, and larger ones take less time for each item.
    RaiseMaxBatchSize,
    /// Requests wait for full batches on an idle device.
    LowerMaxBatchSize,
    /// Larger batches would cost less device time, and the objective leaves time to gather them.
    RaiseMaxWaitTime,
    /// Requests wait for company that saves little.
    LowerMaxWaitTime,
    /// Much of the work is padding.
    EnableBucketing,
    /// The instances are busy, and batches as large as pays.
    AddInstance,
    /// Memory keeps batches small.
    RaiseMemoryLimit,
}

/// What following a suggestion is predicted to change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gain {
    /// How much better `after` is than `before`, in `unit`; positive.
    pub value: f64,
    /// `items/s` (higher is better), `seconds` of mean latency, or `device-seconds/item` (lower is better).
    pub unit: &'static str,
    /// What it is now, by the cost model.
    pub before: f64,
    /// What it would be.
    pub after: f64,
}

impl Gain {
    fn more(unit: &'static str, before: f64, after: f64) -> Self {
        Self { value: after - before, unit, before, after }
    }

    fn less(unit: &'static str, before: f64, after: f64) -> Self {
        Self { value: before - after, unit, before, after }
    }

    fn is_worth_it(&self) -> bool {
        self.value >= LEAST_GAIN * self.before
    }
}

/// A change that the last minute suggests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suggestion {
    /// What to change.
    pub action: Action,
    /// Its present value: items, seconds, instances or bytes; 0 and 1 for off and on.
    pub current: f64,
    /// The proposed value.
    pub proposed: f64,
    /// The numbers that say why, by name; times in seconds.
    pub evidence: BTreeMap<&'static str, f64>,
    /// What it gains.
    pub predicted_gain: Gain,
}

/// What `snapshot`, of a scheduler with `config`, suggests; most often nothing.
pub fn advise(snapshot: &Snapshot, config: &SchedulerConfig) -> Vec<Suggestion> {
    let present = Present { snapshot, config };
    if snapshot.recent.batches < ENOUGH_BATCHES {
        return Vec::new();
    }
    let changes = [
        present.larger_batches(),
        present.more_memory(),
        present.bucketing(),
        present.smaller_batches(),
        present.longer_wait(),
        present.shorter_wait(),
    ];
    let worth = |suggestion: &Suggestion| suggestion.predicted_gain.is_worth_it();
    let changes: Vec<_> = changes.into_iter().flatten().filter(worth).collect();
    if changes.is_empty() {
        // The dearest remedy is the last.
        return present.another_instance().into_iter().filter(worth).collect();
    }
    changes
}

/// What is known, in the terms that the suggestions share.
struct Present<'a> {
    snapshot: &'a Snapshot,
    config: &'a SchedulerConfig,
}

impl Present<'_> {
    /// Entries in a batch, of late.
    fn size(&self) -> f64 {
        self.snapshot.recent.mean_batch_size
    }

    fn instances(&self) -> f64 {
        f64::from(self.snapshot.limits.instances)
    }

    /// Whether the instances are busy and nearly every batch left entries behind.
    fn is_saturated(&self) -> bool {
        self.snapshot.utilization.last_60_seconds >= BUSY && self.snapshot.recent.held_back >= OFTEN
    }

    /// Whether batches hold as many entries as they may.
    fn is_size_bound(&self) -> bool {
        self.size() >= REACHED * f64::from(self.snapshot.limits.batch_size)
    }

    /// How long batches of other sizes would take. `None` where that is not known well.
    fn time_by_size(&self) -> Option<Curve> {
        self.curve(self.snapshot.cost_model.across_sizes.as_ref()?)
    }

    /// How long batches with other tokens an item would take. `None` where that is not known well.
    fn time_by_length(&self) -> Option<Curve> {
        self.curve(self.snapshot.cost_model.across_lengths.as_ref()?)
    }

    /// A fit at the level of the last minute: it may be old, and the machine faster or slower since.
    fn curve(&self, fit: &FitSummary) -> Option<Curve> {
        let recent = &self.snapshot.recent;
        let mut curve = Curve { a: fit.a, b: fit.b, c: fit.c };
        let level = recent.mean_batch_seconds / curve.seconds(self.size(), recent.tokens_per_item);
        let explains = (1.0 - MOST_ERROR..=1.0 / (1.0 - MOST_ERROR)).contains(&level);
        if !explains || fit.relative_error > MOST_ERROR {
            return None;
        }
        curve = Curve { a: level * fit.a, b: level * fit.b, c: level * fit.c };
        Some(curve)
    }

    /// Results that follow from a capacity, both a second: no more than come.
    fn served(&self, capacity: f64) -> f64 {
        let recent = &self.snapshot.recent;
        // Callers who wait for their results before they ask again would come more often.
        let open = recent.offered_per_second > (1.0 + LEAST_GAIN) * recent.completed_per_second;
        if open { capacity.min(recent.offered_per_second) } else { capacity }
    }

    /// Evidence that all suggestions for busy instances have.
    fn load(&self) -> BTreeMap<&'static str, f64> {
        let recent = &self.snapshot.recent;
        BTreeMap::from([
            ("batches", recent.batches as f64),
            ("mean_batch_size", recent.mean_batch_size),
            ("mean_batch_seconds", recent.mean_batch_seconds),
            ("mean_left_behind", recent.mean_left_behind),
            ("utilization", self.snapshot.utilization.last_60_seconds),
            ("offered_per_second", recent.offered_per_second),
            ("completed_per_second", recent.completed_per_second),
        ])
    }
}

/// Seconds of a batch: a + b * items + c * tokens.
#[derive(Debug, Clone, Copy)]
struct Curve {
    a: f64,
    b: f64,
    c: f64,
}

impl Curve {
    fn seconds(&self, items: f64, tokens_per_item: f64) -> f64 {
        self.a + self.b * items + self.c * items * tokens_per_item
    }
}
