//! Batches of whatever waits: at once when eager, else when one is full or its window ends.

use super::{Dispatch, Ripe, full, window_end};
use crate::queue::Group;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

pub(super) fn ripeness(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    if config.dispatch == Dispatch::Eager || full(config, group) {
        Ripe::Now
    } else {
        window_end(config, group, now)
    }
}
