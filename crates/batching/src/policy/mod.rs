//! When the waiting entries of one group are worth a batch.

pub mod adaptive;
mod deferral;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cost_model::CostModel;
use crate::entry::GroupKey;
use crate::load::Arrivals;
use crate::queue::Group;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

/// How batches are sized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Full batches, of `max_batch_size` or `max_batch_cost`; a partial one only when its window ends.
    Fixed,
    /// Batches of whatever waits, up to the limits.
    #[default]
    Dynamic,
    /// As `dynamic`, with a limit and a window that follow latency and load.
    Adaptive,
}

/// When a batch that is not full may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dispatch {
    /// At once: a free instance waits for more only where the cost model shows that it pays.
    #[default]
    Eager,
    /// When its first entry has waited for `max_wait_time`.
    Window,
}

/// What an eager start is weighed by: all four compare the same predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizationTarget {
    /// Most items a second: what waits and what comes is done soonest.
    Throughput,
    /// Least latency, averaged over what waits and what comes.
    Latency,
    /// Latency, and device time as far as the device is busy.
    #[default]
    Balanced,
    /// Least device time an item.
    Cost,
}

/// When a group may leave as a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ripe {
    Now,
    At(Time),
}

/// What a decision to start looks at beside the group itself.
pub(crate) struct Outlook<'a> {
    pub(crate) config: &'a SchedulerConfig,
    /// Most entries in a batch at present.
    pub(crate) limit: u32,
    /// The longest wait for company at present.
    pub(crate) max_wait: Duration,
    /// `None` while too few batches have run.
    pub(crate) costs: Option<&'a CostModel>,
    pub(crate) arrivals: &'a Arrivals,
    pub(crate) busy_share: f64,
}

/// When `group`, which is not empty, may leave.
pub(crate) fn ripeness(outlook: &Outlook<'_>, key: GroupKey, group: &Group, now: Time) -> Ripe {
    let config = outlook.config;
    // The bound that all modes share: nobody waits past it while an instance is free.
    let window_end = (group.oldest_arrival() + outlook.max_wait).min(group.halfway());
    if full(outlook, group) || window_end <= now {
        return Ripe::Now;
    }
    let small = group.total().entries < config.min_batch_size as usize;
    if config.mode == Mode::Fixed || config.dispatch == Dispatch::Window || small {
        return Ripe::At(window_end);
    }
    match deferral::worth_waiting_until(outlook, key, group, now) {
        Some(at) => Ripe::At(at.min(window_end)),
        None => Ripe::Now,
    }
}

/// Whether waiting longer could not make the batch larger.
fn full(outlook: &Outlook<'_>, group: &Group) -> bool {
    let waiting = group.total();
    waiting.entries >= outlook.limit as usize
        || outlook.config.max_batch_cost.is_some_and(|limit| waiting.cost >= limit)
}
