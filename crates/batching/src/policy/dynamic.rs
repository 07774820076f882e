//! Batches of whatever waits: at once when eager, else when one is full or its window ends.

use super::{Dispatch, Ripe, window_end};
use crate::queue::Group;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

pub(super) fn ripeness(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    let full = group.len() >= config.max_batch_size as usize
        || config.max_batch_cost.is_some_and(|limit| group.cost() >= limit);
    if full || config.dispatch == Dispatch::Eager { Ripe::Now } else { window_end(config, group, now) }
}
