//! How long to gather a batch, where the instances have time.

use super::{Action, Curve, Gain, LEAST_GAIN, MOST_ERROR, Present, RARELY, Suggestion};
use crate::policy::{Dispatch, Mode, OptimizationTarget};

/// Utilization above which waiting for an instance is no longer small beside waiting for company.
const IDLE: f64 = 0.5;
/// The shortest window that is proposed, in seconds.
const LEAST_WAIT: f64 = 1e-4;

impl Present<'_> {
    /// Full batches that are waited for: smaller ones are full sooner.
    pub(super) fn smaller_batches(&self) -> Option<Suggestion> {
        let recent = &self.snapshot.recent;
        if !self.gathers() || !self.is_size_bound() || recent.held_back > RARELY {
            return None;
        }
        let curve = self.time_by_size()?;
        // The first of a batch waits for all others, the last for none.
        let latency = |size: f64| (size - 1.0) / 2.0 / self.rate() + self.response(&curve, size, 1.0 / size);
        let limit = f64::from(self.snapshot.limits.batch_size);
        let least = f64::from(self.config.min_batch_size.max(1));
        let halvings = std::iter::successors(Some(limit), |size| Some((size / 2.0).floor()));
        let sizes = halvings.skip(1).take_while(|&size| size >= least && self.keeps_up(&curve, size));
        let size = least_of(sizes, latency)?;
        let gain = self.latency_gain(latency(limit), latency(size))?;
        Some(self.suggestion(Action::LowerMaxBatchSize, limit, size, gain))
    }

    /// Batches that the window's end sends off: a longer one makes them larger, where device time is what
    /// counts and the objective leaves room.
    pub(super) fn longer_wait(&self) -> Option<Suggestion> {
        let slo = self.config.latency_slo?.as_secs_f64();
        if self.config.optimization_target != OptimizationTarget::Cost
            || !self.is_window_bound()
            || !self.window_explains()
        {
            return None;
        }
        let curve = self.time_by_size()?;
        let limit = f64::from(self.snapshot.limits.batch_size);
        let per_item = |wait: f64| {
            let size = self.gathered(wait).min(limit);
            self.seconds(&curve, size) / size
        };
        let in_time = |wait: f64| wait + self.seconds(&curve, self.gathered(wait).min(limit)) <= slo;
        let from = self.window();
        let mut wait = from;
        while in_time(2.0 * wait)
            && self.gathered(wait) < limit
            && per_item(2.0 * wait) < (1.0 - LEAST_GAIN) * per_item(wait)
        {
            wait *= 2.0;
        }
        let gain = Gain::less("device-seconds/item", per_item(from), per_item(wait));
        Some(self.suggestion(Action::RaiseMaxWaitTime, from, wait, gain))
    }

    /// Batches that the window's end sends off: a shorter one costs device time that is there.
    pub(super) fn shorter_wait(&self) -> Option<Suggestion> {
        if !self.gathers() || !self.is_window_bound() || !self.window_explains() {
            return None;
        }
        let curve = self.time_by_size()?;
        // The first of a batch waits for the whole window, each other for half of it.
        let latency = |wait: f64| {
            let size = self.gathered(wait);
            wait * (1.0 + size) / 2.0 / size + self.response(&curve, size, 1.0 / size / size)
        };
        let from = self.window();
        let least = f64::from(self.config.min_batch_size);
        let halvings = std::iter::successors(Some(from / 2.0), |wait| Some(wait / 2.0));
        let waits = halvings.take_while(|&wait| {
            let size = self.gathered(wait);
            wait >= LEAST_WAIT && size >= least && self.keeps_up(&curve, size)
        });
        let mut wait = from;
        for shorter in waits {
            if latency(shorter) > (1.0 - LEAST_GAIN) * latency(wait) {
                break;
            }
            wait = shorter;
        }
        let gain = self.latency_gain(latency(from), latency(wait))?;
        Some(self.suggestion(Action::LowerMaxWaitTime, from, wait, gain))
    }

    /// Whether batches wait for company on a free device although latency counts.
    fn gathers(&self) -> bool {
        let config = self.config;
        let gathers = config.mode == Mode::Fixed || config.dispatch == Dispatch::Window;
        let latency =
            matches!(config.optimization_target, OptimizationTarget::Latency | OptimizationTarget::Balanced);
        gathers && latency && config.mode != Mode::Adaptive
    }

    fn window(&self) -> f64 {
        self.snapshot.limits.max_wait_seconds
    }

    fn rate(&self) -> f64 {
        self.snapshot.recent.completed_per_second
    }

    /// Entries of a batch whose first one waited for `wait`.
    fn gathered(&self, wait: f64) -> f64 {
        1.0 + self.rate() * wait
    }

    /// Whether the window and the rate give the batches that there were.
    fn window_explains(&self) -> bool {
        let adapts = self.config.mode == Mode::Adaptive;
        !adapts && (self.gathered(self.window()) / self.size() - 1.0).abs() <= MOST_ERROR
    }

    fn seconds(&self, curve: &Curve, size: f64) -> f64 {
        curve.seconds(size, self.snapshot.recent.tokens_per_item)
    }

    /// Seconds from when a batch may leave to its end: it waits for an instance, and runs.
    ///
    /// The wait is Kingman's ("The single server queue in heavy traffic", 1961), of batches that all run
    /// equally long and come at intervals with the squared coefficient of variation `variation`.
    fn response(&self, curve: &Curve, size: f64, variation: f64) -> f64 {
        let seconds = self.seconds(curve, size);
        let busy = self.rate() * seconds / size / self.instances();
        let wait = busy / (1.0 - busy) * variation / 2.0 * seconds / self.instances();
        seconds + wait.max(0.0)
    }

    /// Whether instances still have time to spare with batches of this size.
    fn keeps_up(&self, curve: &Curve, size: f64) -> bool {
        self.rate() * self.seconds(curve, size) / size <= IDLE * self.instances()
    }

    /// `None` where the formula does not give the latency that there was.
    fn latency_gain(&self, before: f64, after: f64) -> Option<Gain> {
        let measured = self.snapshot.recent.mean_latency_seconds;
        let explains = (before / measured - 1.0).abs() <= MOST_ERROR;
        explains.then(|| Gain::less("seconds", before, after))
    }

    fn suggestion(&self, action: Action, current: f64, proposed: f64, predicted_gain: Gain) -> Suggestion {
        let mut evidence = self.load();
        evidence.insert("mean_latency_seconds", self.snapshot.recent.mean_latency_seconds);
        evidence.insert("max_wait_seconds", self.window());
        Suggestion { action, current, proposed, evidence, predicted_gain }
    }
}

fn least_of(values: impl Iterator<Item = f64>, cost: impl Fn(f64) -> f64) -> Option<f64> {
    values.min_by(|left, right| cost(*left).total_cmp(&cost(*right)))
}
