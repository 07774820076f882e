//! The batch limit and window that follow the load and a latency objective.
//!
//! Two loops. The limit follows the execution times of finished batches (additive growth,
//! multiplicative shrinking: Chiu and Jain, 1989). The regime (low, normal, high) follows the
//! predicted arrival rate, and sets the window and the largest limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rate::LoadForecast;
use crate::time::Time;

/// Batches between two adjustments of the limit; also those that the p95 is taken of.
const BATCHES: usize = 20;
/// Rank of the 95th percentile among them (nearest rank, from zero).
const P95: usize = 18;
/// Part of the objective below which there is room for a larger batch, and factor of a shrinking.
const ROOM: f64 = 0.8;
const SHRINK: f64 = 0.8;
/// Part of a full batch's time from which on a batch counts as full.
const FULL: f64 = 0.8;
/// Part of the objective up to which a limit may grow that the batches do not fill.
const GUESSED: f64 = 0.5;
/// How far past its threshold the rate must go to leave a regime again.
const HYSTERESIS: f64 = 0.1;
/// Forecast intervals in one adjustment interval.
const FORECASTS: u32 = 10;

/// Where the regimes lie, and what they set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConfig {
    /// Requests a second below which the load is low.
    pub low_load_threshold: f64,
    /// Requests a second above which the load is high.
    pub high_load_threshold: f64,
    /// The least time between two switches of the regime.
    pub adjustment_interval: Duration,
    /// The largest limit under high load.
    pub high_load_batch_size: u32,
    /// The longest window under low load.
    pub low_load_timeout: Duration,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self {
            low_load_threshold: 10.0,
            high_load_threshold: 100.0,
            adjustment_interval: Duration::from_secs(30),
            high_load_batch_size: 64,
            low_load_timeout: Duration::from_millis(10),
        }
    }
}

/// A regime of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// Waiting for company hardly ever finds any: windows are short.
    Low,
    /// Between the thresholds, and until the first forecast.
    #[default]
    Normal,
    /// Larger batches are allowed.
    High,
}

/// The controller of one model's batch limit and window.
#[derive(Debug, Clone)]
pub struct Adaptive {
    config: AdaptiveConfig,
    max_batch_size: u32,
    max_wait: Duration,
    latency_slo: Option<Duration>,
    forecast: LoadForecast,
    load: Load,
    switched: Option<Time>,
    /// The limit by the objective. May lie above the regime's maximum, which applies when it is
    /// read: a regime that comes back finds what it had learned.
    learned: u32,
    /// The limit that last broke the objective: not tried again without a clear margin, or a load
    /// that comes and goes would break the objective each time it comes.
    broken: Option<u32>,
    /// Execution times since the last adjustment: the first `filled` ones.
    times: [Duration; BATCHES],
    filled: usize,
}

impl Adaptive {
    /// A controller in the normal regime, its limit at `max_batch_size`. `latency_slo` is the
    /// objective for the p95 of a batch's execution time; without one the limit is the regime's maximum.
    pub fn new(
        config: AdaptiveConfig,
        max_batch_size: u32,
        max_wait: Duration,
        latency_slo: Option<Duration>,
    ) -> Self {
        let max_batch_size = max_batch_size.max(1);
        Self {
            forecast: LoadForecast::new(config.adjustment_interval / FORECASTS),
            config,
            max_batch_size,
            max_wait,
            latency_slo,
            load: Load::Normal,
            switched: None,
            learned: max_batch_size,
            broken: None,
            times: [Duration::ZERO; BATCHES],
            filled: 0,
        }
    }

    /// Counts `count` arrivals at `now`.
    pub fn arrived(&mut self, now: Time, count: u32) {
        self.forecast.arrived(now, count);
    }

    /// Learns that a batch ran for `busy` and ended at `now`, and ticks. `predicted_next` is the
    /// predicted execution time of a batch of `limit() + 1`: a growth that would break the objective
    /// is not made, nor one close to it of which the last batches tell too little.
    pub fn completed(&mut self, now: Time, busy: Duration, predicted_next: Option<Duration>) {
        self.tick(now);
        let Some(slo) = self.latency_slo else {
            return;
        };
        self.times[self.filled] = busy;
        self.filled += 1;
        if self.filled == BATCHES {
            self.filled = 0;
            self.adjust(slo, predicted_next);
        }
    }

    fn adjust(&mut self, slo: Duration, predicted_next: Option<Duration>) {
        self.times.sort_unstable();
        let p95 = self.times[P95];
        let limit = self.limit();
        let room = slo.mul_f64(ROOM);
        if p95 > slo {
            self.broken = Some(limit);
            self.learned = shrunk(limit);
        } else if p95 < room && limit < self.maximum() {
            let allowed = |predicted| predicted <= self.growth_bound(slo, p95, predicted);
            if predicted_next.is_none_or(allowed) {
                self.learned = limit + 1;
            }
        }
    }

    /// The longest prediction for the next larger limit that allows it: just the objective if the
    /// last batches were about as large, less if they say little about it.
    fn growth_bound(&self, slo: Duration, p95: Duration, predicted_next: Duration) -> Duration {
        let (limit, next) = (f64::from(self.limit()), f64::from(self.limit() + 1));
        // With no negative cost a full batch takes at least this part of what the next larger one takes.
        let full = predicted_next.mul_f64(limit / next);
        if p95 < full.mul_f64(FULL) {
            // Far from the sizes that were run the prediction is a guess. Growing up to the objective
            // on it would break the objective each time that the load comes back.
            slo.mul_f64(GUESSED)
        } else if self.broken.is_some_and(|broken| self.limit() + 1 >= broken) {
            slo.mul_f64(ROOM)
        } else {
            slo
        }
    }

    /// Follows the load: switches the regime when the forecast says so, at most once each
    /// adjustment interval.
    pub fn tick(&mut self, now: Time) {
        let rate = self.forecast.forecast(now);
        let settled =
            self.switched.is_none_or(|switched| now.since(switched) >= self.config.adjustment_interval);
        if !self.forecast.is_ready() || !settled {
            return;
        }
        let load = self.regime(rate);
        if load != self.load {
            self.load = load;
            self.switched = Some(now);
        }
    }

    /// The regime of `rate`; the present one is left only once the rate is clearly past its threshold.
    fn regime(&self, rate: f64) -> Load {
        let high = if self.load == Load::High { 1.0 - HYSTERESIS } else { 1.0 };
        let low = if self.load == Load::Low { 1.0 + HYSTERESIS } else { 1.0 };
        if rate > self.config.high_load_threshold * high {
            Load::High
        } else if rate < self.config.low_load_threshold * low {
            Load::Low
        } else {
            Load::Normal
        }
    }

    /// The most entries that a batch may have now; at least 1.
    pub fn limit(&self) -> u32 {
        let learned = if self.latency_slo.is_some() { self.learned } else { u32::MAX };
        learned.clamp(1, self.maximum())
    }

    /// The longest that an entry may wait for company now.
    pub fn max_wait(&self) -> Duration {
        match self.load {
            Load::Low => self.max_wait.min(self.config.low_load_timeout),
            Load::Normal | Load::High => self.max_wait,
        }
    }

    /// The present regime.
    pub fn load(&self) -> Load {
        self.load
    }

    fn maximum(&self) -> u32 {
        match self.load {
            Load::Low | Load::Normal => self.max_batch_size,
            Load::High => self.config.high_load_batch_size.max(1),
        }
    }
}

/// `limit * 0.8`, rounded down, at least 1.
fn shrunk(limit: u32) -> u32 {
    ((f64::from(limit) * SHRINK) as u32).max(1)
}
