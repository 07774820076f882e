//! Full batches; a partial one only when its window ends.

use super::{Ripe, full, window_end};
use crate::queue::Group;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

pub(super) fn ripeness(config: &SchedulerConfig, group: &Group, now: Time) -> Ripe {
    if full(config, group) { Ripe::Now } else { window_end(config, group, now) }
}
