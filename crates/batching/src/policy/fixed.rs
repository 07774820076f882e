//! Full batches of one size; a partial one only when its window ends.

use super::{Ripe, window_end};
use crate::queue::Group;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

pub(super) fn ripeness(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    if group.len() >= config.max_batch_size as usize { Ripe::Now } else { window_end(config, group, now) }
}
