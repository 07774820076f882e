//! How long the simulated device takes for a batch.

use std::time::Duration;

use super::random::Random;
use crate::cost_model::CostModel;
use crate::entry::GroupKey;
use crate::time::Time;

/// The seconds of a batch, before chance.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchTime {
    /// `a + b * items + c * elements`, in seconds: what `/admin/stats` shows of a cost model.
    Linear {
        /// Seconds of a batch before its first item.
        a: f64,
        /// Seconds for each item.
        b: f64,
        /// Seconds for each element: a token, padding included, or an item where nothing has a length.
        c: f64,
    },
    /// What was learned from batches that ran.
    Fitted(Box<CostModel>),
}

/// How far batches are from their expected time.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Noise {
    /// Not at all.
    #[default]
    None,
    /// By a log-normal factor of mean 1, whose logarithm has this deviation.
    LogNormal(f64),
    /// By the factor of the last of these times, in order: a device is slow at a moment, because of what
    /// else runs beside it, and not at a batch.
    Recorded(Vec<(Time, f64)>),
}

/// The device of a simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// How long a batch takes.
    pub time: BatchTime,
    /// What chance adds to that.
    pub noise: Noise,
    /// The probability that a run of a batch fails, 0 to 1; the scheduler says what becomes of it.
    pub failures: f64,
    /// The same seed gives the same noise and failures.
    pub seed: u64,
}

impl Service {
    /// A device that takes exactly `a + b * items + c * elements` seconds and never fails.
    pub fn linear(a: f64, b: f64, c: f64) -> Self {
        Self { time: BatchTime::Linear { a, b, c }, noise: Noise::None, failures: 0.0, seed: 0 }
    }

    pub(super) fn device(self) -> Device {
        let (noise, failures) = (Random::stream(self.seed, 3), Random::stream(self.seed, 4));
        Device { service: self, noise, failures }
    }
}

/// A [`Service`] at work.
#[derive(Debug)]
pub(super) struct Device {
    service: Service,
    noise: Random,
    failures: Random,
}

impl Device {
    /// How long a batch takes that starts now, and whether it fails; at least a nanosecond, so that time goes on.
    pub(super) fn run(&mut self, now: Time, group: GroupKey, items: u32, elements: u64) -> (Duration, bool) {
        let expected = match &self.service.time {
            BatchTime::Linear { a, b, c } => a + b * f64::from(items) + c * elements as f64,
            BatchTime::Fitted(costs) => {
                costs.predict(group, items, elements).map_or(0.0, |time| time.as_secs_f64())
            }
        };
        let factor = match &self.service.noise {
            Noise::None => 1.0,
            Noise::LogNormal(sigma) => (sigma * self.noise.normal() - sigma * sigma / 2.0).exp(),
            Noise::Recorded(factors) => {
                let next = factors.partition_point(|(from, _)| *from <= now);
                factors.get(next.saturating_sub(1)).map_or(1.0, |(_, factor)| *factor)
            }
        };
        // What no duration can say is as good as never.
        let busy = Duration::try_from_secs_f64(expected * factor).unwrap_or(Duration::MAX);
        let failed = self.service.failures > 0.0 && self.failures.unit() < self.service.failures;
        (busy.max(Duration::from_nanos(1)), failed)
    }
}
