//! A linear model of seconds, fitted as batches or steps end.
//!
//! Recursive least squares with exponential forgetting (Ljung, "System Identification", 2nd ed., section
//! 11.2), kept as decayed sums rather than as a covariance so that the solution can be held non-negative.
//!
//! - Outliers: residuals are relative, and weighed by Huber's function (Huber, "Robust Estimation of
//!   a Location Parameter", 1964) against a running median of their size.
//! - Drift: outliers that keep coming on one side are the new normal; the past is then
//!   moved to their level and mostly dropped.
//! - Too little variety (all batches of one size, one token for each item): what the recent batches
//!   do not tell stays as it was before, in proportion; with nothing before, each term gets an equal share.

use std::time::Duration;

/// Weight of the past at each batch: about the last 50 batches count.
const FORGETTING: f64 = 0.98;
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
/// How far the features' shares may lie from the prior, in parts of a mean batch's seconds.
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
/// Range that keeps every sum finite: one nanosecond to eleven days.
const SECONDS_MIN: f64 = 1e-9;
const SECONDS_MAX: f64 = 1e6;
/// The longest prediction; past any use, and far inside what a `Duration` holds.
const PREDICTION_MAX: f64 = 1e9;

/// Seconds as a sum of features, the first of which is always 1, each times a coefficient.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fit<const N: usize> {
    samples: u64,
    /// Batches that the sums rest on: forgetting and robust weights applied.
    mass: f64,
    /// Sum of weight * x * x', and of weight * x * seconds.
    moments: [[f64; N]; N],
    products: [f64; N],
    /// Each finite and not negative.
    coefficients: [f64; N],
    /// Running median of the relative residual's size.
    scale: f64,
    /// The residuals of the last batches, a ring; zeros since the start or the last drift.
    recent: [f64; RECENT],
    relative_error: f64,
    /// How much longer than predicted the last batches were, in parts of the prediction; a ring.
    overruns: [f64; MARGIN_WINDOW],
    margin: f64,
}

impl<const N: usize> Default for Fit<N> {
    fn default() -> Self {
        Self {
            samples: 0,
            mass: 0.0,
            moments: [[0.0; N]; N],
            products: [0.0; N],
            coefficients: [0.0; N],
            scale: SCALE_START,
            recent: [0.0; RECENT],
            relative_error: 0.0,
            overruns: [0.0; MARGIN_WINDOW],
            margin: 0.0,
        }
    }
}

impl<const N: usize> Fit<N> {
    /// How long one with these features takes; `None` before the first was observed.
    pub(crate) fn predict(&self, x: [f64; N]) -> Option<Duration> {
        let seconds = dot(self.coefficients, x).min(PREDICTION_MAX);
        (self.samples > 0).then(|| Duration::from_secs_f64(seconds))
    }

    /// How many were observed.
    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// Seconds for one of each feature; each finite and not negative.
    pub(crate) fn coefficients(&self) -> [f64; N] {
        self.coefficients
    }

    /// Running mean of `|predicted - actual| / actual`, each predicted before it was learned from.
    pub(crate) fn relative_error(&self) -> f64 {
        self.relative_error
    }

    /// By what part of its prediction one in ten of the last took longer.
    pub(crate) fn margin(&self) -> f64 {
        self.margin
    }

    /// Learns that one with these features took `busy`.
    pub(crate) fn observe(&mut self, x: [f64; N], busy: Duration) {
        let seconds = busy.as_secs_f64().clamp(SECONDS_MIN, SECONDS_MAX);
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
    /// it gives the features' shares until the new batches do. How much slower that level is; 1
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
        let root: [f64; N] = std::array::from_fn(|i| self.moments[i][i].sqrt());
        let mut matrix = [[0.0; N]; N];
        let mut target = [0.0; N];
        for i in 0..N {
            // A feature that was always zero (no tokens counted) keeps a coefficient of zero.
            if root[i] > 0.0 {
                for j in 0..N {
                    matrix[i][j] = if root[j] > 0.0 { self.moments[i][j] / (root[i] * root[j]) } else { 0.0 };
                }
                target[i] = self.products[i] / root[i] + ridge * prior[i] * root[i];
            }
            matrix[i][i] = 1.0 + ridge;
        }
        let scaled = non_negative_least_squares(&matrix, target);
        let solved: [f64; N] = std::array::from_fn(|i| if root[i] > 0.0 { scaled[i] / root[i] } else { 0.0 });
        if solved.iter().all(|coefficient| coefficient.is_finite()) {
            self.coefficients = solved;
        }
    }

    /// What the coefficients are believed to be where the recent batches do not tell: the last solution at
    /// the recent level, pulled a little to equal shares. Right for the mean batch by construction.
    fn prior(&self) -> [f64; N] {
        let weight = self.moments[0][0];
        let level = self.products[0] / weight;
        let means: [f64; N] = std::array::from_fn(|i| self.moments[0][i] / weight);
        let present = means.map(|mean| if mean > 0.0 { 1.0 } else { 0.0 });
        let share = level / present.iter().sum::<f64>();
        let even: [f64; N] = std::array::from_fn(|i| if means[i] > 0.0 { share / means[i] } else { 0.0 });
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

fn dot<const N: usize>(left: [f64; N], right: [f64; N]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// The x >= 0 that minimises `x' matrix x / 2 - target' x`, for a positive definite matrix.
///
/// With so few unknowns every set of those that stay positive can be tried: the best solution among
/// the sets whose own solution is not negative is the constrained one.
fn non_negative_least_squares<const N: usize>(matrix: &[[f64; N]; N], target: [f64; N]) -> [f64; N] {
    let all = solve_subset(matrix, target, [true; N]);
    if all.iter().all(|x| *x >= 0.0) {
        return all;
    }
    let mut best = ([0.0; N], 0.0);
    for set in 1_u32..(1 << N) - 1 {
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
fn solve_subset<const N: usize>(matrix: &[[f64; N]; N], target: [f64; N], free: [bool; N]) -> [f64; N] {
    let at = |i: usize, j: usize| {
        if free[i] && free[j] { matrix[i][j] } else { f64::from(u8::from(i == j)) }
    };
    let mut lower = [[0.0; N]; N];
    let mut diagonal = [0.0; N];
    let mut x: [f64; N] = std::array::from_fn(|i| if free[i] { target[i] } else { 0.0 });
    for i in 0..N {
        for j in 0..i {
            let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k] * diagonal[k]).sum();
            lower[i][j] = (at(i, j) - known) / diagonal[j];
        }
        diagonal[i] = at(i, i) - (0..i).map(|k| lower[i][k] * lower[i][k] * diagonal[k]).sum::<f64>();
        x[i] -= (0..i).map(|k| lower[i][k] * x[k]).sum::<f64>();
    }
    for i in (0..N).rev() {
        x[i] = x[i] / diagonal[i] - (i + 1..N).map(|k| lower[k][i] * x[k]).sum::<f64>();
    }
    x
}
