//! Whether to start a batch that is not full, or to wait for the next arrivals.
//!
//! Two plans are compared for the `n` entries that wait and the next `k` to come: start the `n` now and the
//! `k` after them, or start all together once they are here. Both take the same predictions, of the cost
//! model and of the arrivals; the optimization target says only how much latency, the end of it all, and
//! device time weigh.

use std::time::Duration;

use super::{OptimizationTarget, Outlook};
use crate::entry::GroupKey;
use crate::queue::Group;
use crate::time::Time;

/// A smaller gain is within what the predictions are wrong by.
const LEAST_GAIN: f64 = 0.05;
/// A smaller gain in seconds is lost when the instance is woken.
const LEAST_GAIN_SECONDS: f64 = 100e-6;

/// Asking again sooner is not worth waking for.
const SHORTEST: Duration = Duration::from_micros(20);

/// What a plan costs, in seconds.
struct Plan {
    /// Mean time until an entry is done.
    latency: f64,
    /// Time until all are done.
    end: f64,
    /// Time that the device works.
    device: f64,
}

/// What a second of each costs.
struct Weights {
    latency: f64,
    end: f64,
    device: f64,
}

impl Weights {
    fn of(outlook: &Outlook<'_>) -> Self {
        let (latency, end, device) = match outlook.config.optimization_target {
            OptimizationTarget::Throughput => (0.0, 1.0, 0.0),
            OptimizationTarget::Latency => (1.0, 0.0, 0.0),
            OptimizationTarget::Cost => (0.0, 0.0, 1.0),
            OptimizationTarget::Balanced => {
                let busy = outlook.busy_share / outlook.config.target_utilization.max(0.01);
                (1.0, 0.0, busy.min(1.0))
            }
        };
        Self { latency, end, device }
    }

    /// What a second of waiting adds to a deferred plan.
    fn waiting(&self) -> f64 {
        self.latency + self.end
    }

    fn cost(&self, plan: &Plan) -> f64 {
        self.latency * plan.latency + self.end * plan.end + self.device * plan.device
    }
}

/// Until when a free instance had better wait for more of `group`; `None`: it starts.
pub(super) fn worth_waiting_until(
    outlook: &Outlook<'_>,
    key: GroupKey,
    group: &Group,
    now: Time,
) -> Option<Time> {
    let costs = outlook.costs?;
    let gap = outlook.arrivals.expected(now, key)?.as_secs_f64();
    let silence = outlook.arrivals.silence(now, key).as_secs_f64();
    let waiting = group.total();
    let cost = waiting.cost as f64 / waiting.entries as f64;
    let time = |items: u32| {
        let cost = (cost * f64::from(items)).round() as u64;
        costs.predict(key, items, cost).map(|time| time.as_secs_f64())
    };
    let n = u32::try_from(waiting.entries).unwrap_or(u32::MAX);
    let waited = now.since(group.oldest_arrival());
    let left = |limit: Duration| limit.saturating_sub(waited).as_secs_f64();
    let longest = left(outlook.max_wait);
    let slo = outlook.config.latency_slo.map(left);
    let weights = Weights::of(outlook);
    let alone = time(n)?;

    let mut best = LEAST_GAIN;
    let mut until = None;
    for all in sizes(outlook, n) {
        let more = all - n;
        let wait = gap * f64::from(more);
        let together = time(all)?;
        if wait > longest || slo.is_some_and(|slo| wait + together > slo) {
            break;
        }
        let (n, more, rest) = (f64::from(n), f64::from(more), time(more)?);
        let second = alone.max(wait) + rest;
        let share = 1.0 / (n + more);
        let start = Plan { latency: (n * alone + more * second) * share, end: second, device: alone + rest };
        let defer = Plan { latency: wait + together, end: wait + together, device: together };
        let before = weights.cost(&start);
        let gain = before - weights.cost(&defer);
        if gain > LEAST_GAIN_SECONDS && gain > best * before {
            best = gain / before;
            // Each arrival asks again; this is only for when it stays away: silence is taken for the pace, so
            // there comes a moment from which on the wait would no longer pay.
            let spare = (gain - LEAST_GAIN_SECONDS.max(LEAST_GAIN * before)) / weights.waiting() / more;
            let patience = (gap - silence + spare.max(0.0)).min(2.0 * gap);
            until = Some(now + Duration::from_secs_f64(patience).max(SHORTEST));
        }
    }
    until
}

/// The batch sizes above `n` that a start is deferred for.
fn sizes(outlook: &Outlook<'_>, n: u32) -> impl Iterator<Item = u32> {
    let step = outlook.config.size_increment.max(1);
    let limit = outlook.limit;
    let first = (n / step + 1) * step;
    (first..limit).step_by(step as usize).chain(std::iter::once(limit)).filter(move |&size| size > n)
}
