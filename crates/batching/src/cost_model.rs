//! How long a batch runs: the only estimator, asked by everything that plans.
//!
//! `seconds = a + b * items + c * tokens`, by a robust [`fit`]. One per group of entries that share batches,
//! and one over all groups for those that have too few batches of their own.

pub(crate) mod fit;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use self::fit::Fit;
use crate::entry::GroupKey;

/// Batches after which a group's own fit is better than the overall one.
const ENOUGH_SAMPLES: u64 = 8;
/// Batches seen before anything is decided by a prediction.
const WELL_KNOWN: u64 = 8;
/// Groups that keep a fit of their own.
const MAX_GROUPS: usize = 64;
/// The most tokens that are told apart: it keeps every sum finite.
const TOKENS_MAX: f64 = 1e12;

/// One fit, for people: what it says and how far to trust it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitSummary {
    /// The group whose batches it saw; `None`: those of every group.
    pub group: Option<GroupKey>,
    /// Batches observed.
    pub samples: u64,
    /// Seconds of a batch before its first item.
    pub a: f64,
    /// Seconds for each item.
    pub b: f64,
    /// Seconds for each token.
    pub c: f64,
    /// Running mean of `|predicted - actual| / actual`, each batch predicted before it was learned from.
    pub relative_error: f64,
    /// By what part of its prediction one batch in ten of the last was longer.
    pub margin: f64,
}

/// Learns from finished batches how long the next one will run.
///
/// Predictions are finite, and never fall when a batch gets more items or tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CostModel {
    overall: Fit<3>,
    groups: BTreeMap<GroupKey, Group>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Group {
    fit: Fit<3>,
    /// Which observation saw it last; the smallest is the one to evict.
    seen: u64,
}

impl CostModel {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns that a batch of `items` entries and `tokens` tokens ran for `busy`.
    ///
    /// An empty batch or one that took no time says nothing and is passed over.
    pub fn observe(&mut self, group: GroupKey, items: u32, tokens: u64, busy: Duration) {
        if items == 0 || busy.is_zero() {
            return;
        }
        let x = features(items, tokens);
        self.overall.observe(x, busy);
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            self.evict();
        }
        let entry = self.groups.entry(group).or_default();
        entry.fit.observe(x, busy);
        entry.seen = self.overall.samples();
    }

    fn evict(&mut self) {
        let oldest = self.groups.iter().min_by_key(|(_, group)| group.seen).map(|(key, _)| *key);
        if let Some(key) = oldest {
            self.groups.remove(&key);
        }
    }

    /// Itself, once it has seen enough batches to decide by.
    pub fn known(&self) -> Option<&Self> {
        (self.overall.samples() >= WELL_KNOWN).then_some(self)
    }

    /// How long a batch of `group` would run: by the group's own fit once that has enough batches,
    /// by the overall one before; `None` before the first batch.
    pub fn predict(&self, group: GroupKey, items: u32, tokens: u64) -> Option<Duration> {
        self.of(group).predict(items, tokens)
    }

    /// What nine in ten of such batches took no longer than: as [`CostModel::predict`], with a margin for what
    /// it was wrong by of late. `None` before the first batch.
    pub fn at_most(&self, group: GroupKey, items: u32, tokens: u64) -> Option<Duration> {
        let estimate = self.of(group);
        estimate.predict(items, tokens).map(|run| estimate.with_margin(run))
    }

    /// What is known of the batches of one group, for several questions.
    pub fn of(&self, group: GroupKey) -> Estimate<'_> {
        match self.groups.get(&group) {
            Some(own) if own.fit.samples() >= ENOUGH_SAMPLES => Estimate(&own.fit),
            _ => Estimate(&self.overall),
        }
    }

    /// How long a batch of no particular group would run; `None` before the first batch.
    pub fn overall(&self, items: u32, tokens: u64) -> Option<Duration> {
        self.overall.predict(features(items, tokens))
    }

    /// The fit over all groups.
    pub fn overall_fit(&self) -> FitSummary {
        summary(&self.overall, None)
    }

    /// Every fit: the overall one first, then the groups in the order of their keys.
    pub fn fits(&self) -> Vec<FitSummary> {
        let groups = self.groups.iter().map(|(key, group)| summary(&group.fit, Some(*key)));
        std::iter::once(self.overall_fit()).chain(groups).collect()
    }
}

/// What is known of the batches of one group.
#[derive(Debug, Clone, Copy)]
pub struct Estimate<'a>(&'a Fit<3>);

impl Estimate<'_> {
    /// As [`CostModel::predict`].
    pub fn predict(&self, items: u32, tokens: u64) -> Option<Duration> {
        self.0.predict(features(items, tokens))
    }

    /// A prediction with the margin of [`CostModel::at_most`].
    pub fn with_margin(&self, predicted: Duration) -> Duration {
        predicted.mul_f64(1.0 + self.0.margin())
    }
}

fn features(items: u32, tokens: u64) -> [f64; 3] {
    [1.0, f64::from(items), (tokens as f64).min(TOKENS_MAX)]
}

fn summary(fit: &Fit<3>, group: Option<GroupKey>) -> FitSummary {
    let [a, b, c] = fit.coefficients();
    FitSummary {
        group,
        samples: fit.samples(),
        a,
        b,
        c,
        relative_error: fit.relative_error(),
        margin: fit.margin(),
    }
}
