//! How long a batch runs: the only estimator, asked by everything that plans.
//!
//! `seconds = a + b * items + c * tokens`, by recursive least squares with exponential forgetting
//! (Ljung, "System Identification", 2nd ed., section 11.2), kept as decayed sums rather than as a
//! covariance so that the solution can be held non-negative. One fit per group of entries that share
//! batches, and one over all groups for those that have too few batches of their own.
//!
//! - Outliers: residuals are relative, and weighed by Huber's function (Huber, "Robust Estimation of
//!   a Location Parameter", 1964) against a running median of their size.
//! - Drift: outliers that keep coming on one side are the new normal; the past is then
//!   moved to their level and mostly dropped.
//! - Too little variety (all batches of one size, one token for each item): what the recent batches
//!   do not tell stays as it was before, in proportion; with nothing before, each term gets an equal share.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::entry::GroupKey;

/// Weight of the past at each batch: about the last 50 batches count.
const FORGETTING: f64 = 0.98;
/// Batches after which a group's own fit is better than the overall one.
const ENOUGH_SAMPLES: u64 = 8;
/// Batches seen before anything is decided by a prediction.
const WELL_KNOWN: u64 = 8;
/// Groups that keep a fit of their own.
const MAX_GROUPS: usize = 64;
/// Clipping point in medians of the residual: 1.345 standard deviations of a normal law.
const HUBER: f64 = 2.0;
/// The residual's median before there is any, and the range that it is held in (relative).
const SCALE_START: f64 = 0.25;
const SCALE_MIN: f64 = 0.005;
const SCALE_MAX: f64 = 10.0;
/// Factor by which one residual moves the running median.
const SCALE_STEP: f64 = 1.1;
/// Batches looked back on to tell drift from outliers, and how many of them must be clipped on one side.
const RECENT: usize = 8;
const DRIFTED: usize = 7;
/// Range of the slowdown that is read off them.
const SLOWDOWN_MIN: f64 = 1e-3;
const SLOWDOWN_MAX: f64 = 1e3;
/// What the past still weighs once drift is seen.
const DRIFT_FORGETTING: f64 = 0.05;
/// How far the shares of a, b and c may lie from the prior, in parts of a mean batch's seconds.
const PRIOR_SPREAD: f64 = 0.5;
/// Pull of the prior to equal shares at each batch, so that an accident at the start is forgotten. Only at
/// the start: under saturation all batches are alike, and what was learned of other sizes has to last.
const EVEN_PULL: f64 = 1.0 / 512.0;
const START: u64 = 128;
/// Batches predicted shorter than this part of the mean weigh as if they were that long.
const REFERENCE_FLOOR: f64 = 0.05;
/// Batches that the margin is taken of, the part of them that stays within it, and the most that it can be.
const MARGIN_WINDOW: usize = 32;
const MARGIN_SHARE: f64 = 0.9;
const MARGIN_MAX: f64 = 2.0;
/// Batches over which the reported error is averaged.
const ERROR_WINDOW: u64 = 50;
/// Ranges that keep every sum finite: one nanosecond to eleven days, and 10^12 tokens.
const SECONDS_MIN: f64 = 1e-9;
const SECONDS_MAX: f64 = 1e6;
const TOKENS_MAX: f64 = 1e12;
/// The longest prediction; past any use, and far inside what a `Duration` holds.
const PREDICTION_MAX: f64 = 1e9;

type Vector = [f64; 3];
type Matrix = [Vector; 3];

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
    overall: Fit,
    groups: BTreeMap<GroupKey, Group>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Group {
    fit: Fit,
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
        let seconds = busy.as_secs_f64().clamp(SECONDS_MIN, SECONDS_MAX);
        self.overall.observe(x, seconds);
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            self.evict();
        }
        let entry = self.groups.entry(group).or_default();
        entry.fit.observe(x, seconds);
        entry.seen = self.overall.samples;
    }

    fn evict(&mut self) {
        let oldest = self.groups.iter().min_by_key(|(_, group)| group.seen).map(|(key, _)| *key);
        if let Some(key) = oldest {
            self.groups.remove(&key);
        }
    }

    /// Itself, once it has seen enough batches to decide by.
    pub fn known(&self) -> Option<&Self> {
        (self.overall.samples >= WELL_KNOWN).then_some(self)
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
            Some(own) if own.fit.samples >= ENOUGH_SAMPLES => Estimate(&own.fit),
            _ => Estimate(&self.overall),
        }
    }

    /// How long a batch of no particular group would run; `None` before the first batch.
    pub fn overall(&self, items: u32, tokens: u64) -> Option<Duration> {
        self.overall.predict(items, tokens)
    }

    /// The fit over all groups.
    pub fn overall_fit(&self) -> FitSummary {
        self.overall.summary(None)
    }

    /// Every fit: the overall one first, then the groups in the order of their keys.
    pub fn fits(&self) -> Vec<FitSummary> {
        let groups = self.groups.iter().map(|(key, group)| group.fit.summary(Some(*key)));
        std::iter::once(self.overall_fit()).chain(groups).collect()
    }
}

/// What is known of the batches of one group.
#[derive(Debug, Clone, Copy)]
pub struct Estimate<'a>(&'a Fit);

impl Estimate<'_> {
    /// As [`CostModel::predict`].
    pub fn predict(&self, items: u32, tokens: u64) -> Option<Duration> {
        self.0.predict(items, tokens)
    }

    /// A prediction with the margin of [`CostModel::at_most`].
    pub fn with_margin(&self, predicted: Duration) -> Duration {
        predicted.mul_f64(1.0 + self.0.margin)
    }
}

fn features(items: u32, tokens: u64) -> Vector {
    [1.0, f64::from(items), (tokens as f64).min(TOKENS_MAX)]
}

#[derive(Debug, Clone, PartialEq)]
struct Fit {
    samples: u64,
    /// Batches that the sums rest on: forgetting and robust weights applied.
    mass: f64,
    /// Sum of weight * x * x', and of weight * x * seconds.
    moments: Matrix,
    products: Vector,
    /// a, b, c; each finite and not negative.
    coefficients: Vector,
    /// Running median of the relative residual's size.
    scale: f64,
    /// The residuals of the last batches, a ring; zeros since the start or the last drift.
    recent: [f64; RECENT],
    relative_error: f64,
    /// How much longer than predicted the last batches were, in parts of the prediction; a ring.
    overruns: [f64; MARGIN_WINDOW],
    margin: f64,
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            samples: 0,
            mass: 0.0,
            moments: [[0.0; 3]; 3],
            products: [0.0; 3],
            coefficients: [0.0; 3],
            scale: SCALE_START,
            recent: [0.0; RECENT],
            relative_error: 0.0,
            overruns: [0.0; MARGIN_WINDOW],
            margin: 0.0,
        }
    }
}

impl Fit {
    fn predict(&self, items: u32, tokens: u64) -> Option<Duration> {
        let seconds = dot(self.coefficients, features(items, tokens)).min(PREDICTION_MAX);
        (self.samples > 0).then(|| Duration::from_secs_f64(seconds))
    }

    fn summary(&self, group: Option<GroupKey>) -> FitSummary {
        let [a, b, c] = self.coefficients;
        FitSummary {
            group,
            samples: self.samples,
            a,
            b,
            c,
            relative_error: self.relative_error,
            margin: self.margin,
        }
    }

    fn observe(&mut self, x: Vector, seconds: f64) {
        let (robust, reference) =
            if self.samples == 0 { (1.0, seconds) } else { self.judge(dot(self.coefficients, x), seconds) };
        self.samples += 1;
        self.mass = FORGETTING * self.mass + robust;
        // Divided by the expected size: what matters is the relative error, of small batches too.
        let weight = robust / (reference * reference);
        for (i, row) in self.moments.iter_mut().enumerate() {
            for (j, sum) in row.iter_mut().enumerate() {
                *sum = FORGETTING * *sum + weight * x[i] * x[j];
            }
            self.products[i] = FORGETTING * self.products[i] + weight * x[i] * seconds;
        }
        self.solve();
    }

    /// The robust weight of a batch that should have taken `predicted` and took `seconds`, and the
    /// seconds that its residual is relative to.
    fn judge(&mut self, predicted: f64, seconds: f64) -> (f64, f64) {
        let share = 1.0 / self.samples.min(ERROR_WINDOW) as f64;
        self.relative_error += share * ((predicted - seconds).abs() / seconds - self.relative_error);

        self.overran(seconds / predicted.max(SECONDS_MIN) - 1.0);

        let mean = self.products[0] / self.moments[0][0];
        let reference = predicted.max(REFERENCE_FLOOR * mean);
        self.recent[(self.samples % RECENT as u64) as usize] = (seconds - predicted) / reference;
        let slowdown = self.follow_drift();
        let (predicted, reference) = (slowdown * predicted, slowdown * reference);
        let size = ((seconds - predicted) / reference).abs();
        let weight = (HUBER * self.scale / size.max(SECONDS_MIN)).min(1.0);
        let scale = if size > self.scale { self.scale * SCALE_STEP } else { self.scale / SCALE_STEP };
        self.scale = scale.clamp(SCALE_MIN, SCALE_MAX);
        (weight, reference)
    }

    fn overran(&mut self, overrun: f64) {
        // The first batch was not predicted.
        let seen = (self.samples as usize).min(MARGIN_WINDOW);
        self.overruns[(self.samples as usize - 1) % MARGIN_WINDOW] = overrun;
        let mut overruns = self.overruns;
        let rank = ((MARGIN_SHARE * seen as f64) as usize).min(seen - 1);
        let (_, margin, _) = overruns[..seen].select_nth_unstable_by(rank, f64::total_cmp);
        self.margin = margin.clamp(0.0, MARGIN_MAX);
    }

    /// If nearly all recent residuals are clipped on one side: moves the past to the new level, where
    /// it gives the shares of a, b and c until the new batches do. How much slower that level is; 1
    /// without drift.
    fn follow_drift(&mut self) -> f64 {
        let clip = HUBER * self.scale;
        let above = self.recent.iter().filter(|residual| **residual > clip).count();
        let below = self.recent.iter().filter(|residual| **residual < -clip).count();
        if above.max(below) < DRIFTED {
            return 1.0;
        }
        let shift = median(self.recent);
        let slowdown = (1.0 + shift).clamp(SLOWDOWN_MIN, SLOWDOWN_MAX);
        // Seconds times the slowdown, weights by its square less, as if the past had been like this.
        self.mass *= DRIFT_FORGETTING;
        let moments = DRIFT_FORGETTING / (slowdown * slowdown);
        self.moments.iter_mut().flatten().for_each(|sum| *sum *= moments);
        self.products.iter_mut().for_each(|sum| *sum *= DRIFT_FORGETTING / slowdown);
        self.scale = self.scale.max(median(self.recent.map(|residual| (residual - shift).abs())) / slowdown);
        self.recent = [0.0; RECENT];
        slowdown
    }

    /// Ridge regression around the prior, in units in which every feature has a mean square of 1.
    fn solve(&mut self) {
        let prior = self.prior();
        let noise = self.scale / PRIOR_SPREAD;
        let ridge = (noise * noise).min(1.0) / self.mass.max(1e-3);
        let root: Vector = std::array::from_fn(|i| self.moments[i][i].sqrt());
        let mut matrix = [[0.0; 3]; 3];
        let mut target = [0.0; 3];
        for i in 0..3 {
            // A feature that was always zero (no tokens counted) keeps a coefficient of zero.
            if root[i] > 0.0 {
                for j in 0..3 {
                    matrix[i][j] = if root[j] > 0.0 { self.moments[i][j] / (root[i] * root[j]) } else { 0.0 };
                }
                target[i] = self.products[i] / root[i] + ridge * prior[i] * root[i];
            }
            matrix[i][i] = 1.0 + ridge;
        }
        let scaled = non_negative_least_squares(&matrix, target);
        let solved: Vector = std::array::from_fn(|i| if root[i] > 0.0 { scaled[i] / root[i] } else { 0.0 });
        if solved.iter().all(|coefficient| coefficient.is_finite()) {
            self.coefficients = solved;
        }
    }

    /// What a, b and c are believed to be where the recent batches do not tell: the last solution at
    /// the recent level, pulled a little to equal shares. Right for the mean batch by construction.
    fn prior(&self) -> Vector {
        let weight = self.moments[0][0];
        let level = self.products[0] / weight;
        let means: Vector = std::array::from_fn(|i| self.moments[0][i] / weight);
        let present = means.map(|mean| if mean > 0.0 { 1.0 } else { 0.0 });
        let share = level / present.iter().sum::<f64>();
        let even: Vector = std::array::from_fn(|i| if means[i] > 0.0 { share / means[i] } else { 0.0 });
        let last = dot(self.coefficients, means);
        if last <= 0.0 {
            return even;
        }
        let rescale = level / last;
        let pull = if self.samples < START { EVEN_PULL } else { 0.0 };
        std::array::from_fn(|i| (1.0 - pull) * rescale * self.coefficients[i] + pull * even[i])
    }
}

fn median(mut values: [f64; RECENT]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    (values[RECENT / 2 - 1] + values[RECENT / 2]) / 2.0
}

fn dot(left: Vector, right: Vector) -> f64 {
    left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
}

/// The x >= 0 that minimises `x' matrix x / 2 - target' x`, for a positive definite matrix.
///
/// With three unknowns every set of those that stay positive can be tried: the best solution among
/// the sets whose own solution is not negative is the constrained one.
fn non_negative_least_squares(matrix: &Matrix, target: Vector) -> Vector {
    let all = solve_subset(matrix, target, [true; 3]);
    if all.iter().all(|x| *x >= 0.0) {
        return all;
    }
    let mut best = ([0.0; 3], 0.0);
    for set in 1_u8..7 {
        let x = solve_subset(matrix, target, std::array::from_fn(|i| set & (1 << i) != 0));
        let gain = dot(target, x);
        if x.iter().all(|x| *x >= 0.0) && gain > best.1 {
            best = (x, gain);
        }
    }
    best.0
}

/// Solves for the unknowns in `free`, the others held at zero, by the square-root-free Cholesky
/// factorisation.
fn solve_subset(matrix: &Matrix, target: Vector, free: [bool; 3]) -> Vector {
    let at = |i: usize, j: usize| {
        if free[i] && free[j] { matrix[i][j] } else { f64::from(u8::from(i == j)) }
    };
    let rhs: Vector = std::array::from_fn(|i| if free[i] { target[i] } else { 0.0 });
    let d0 = at(0, 0);
    let (l10, l20) = (at(1, 0) / d0, at(2, 0) / d0);
    let d1 = at(1, 1) - l10 * l10 * d0;
    let l21 = (at(2, 1) - l20 * l10 * d0) / d1;
    let d2 = at(2, 2) - l20 * l20 * d0 - l21 * l21 * d1;
    let y1 = rhs[1] - l10 * rhs[0];
    let y2 = rhs[2] - l20 * rhs[0] - l21 * y1;
    let x2 = y2 / d2;
    let x1 = y1 / d1 - l21 * x2;
    [rhs[0] / d0 - l10 * x1 - l20 * x2, x1, x2]
}
