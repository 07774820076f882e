//! When the waiting entries of one shape are worth a batch.

pub mod adaptive;
mod dynamic;
mod fixed;

use serde::{Deserialize, Serialize};

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
}

/// When a batch that is not full may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dispatch {
    /// At once: a free instance never waits while anything is queued.
    #[default]
    Eager,
    /// When its first entry has waited for `max_wait_time`.
    Window,
}

/// When a group may leave as a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ripe {
    Now,
    At(Time),
}

/// When `group`, which is not empty, may leave.
pub(crate) fn ripeness(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    match config.mode {
        Mode::Fixed => fixed::ripeness(config, group, now),
        Mode::Dynamic => dynamic::ripeness(config, group, now),
    }
}

/// Whether waiting longer could not make the batch larger.
fn full(config: &SchedulerConfig, group: &Group) -> bool {
    group.len() >= config.max_batch_size as usize
        || config.max_batch_cost.is_some_and(|limit| group.cost() >= limit)
}

/// The bound that both modes share: nobody waits past `max_wait_time` while an instance is free.
fn window_end(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    let end = group.oldest_arrival() + config.max_wait;
    if end <= now { Ripe::Now } else { Ripe::At(end) }
}
