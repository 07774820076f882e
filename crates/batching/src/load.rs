//! How busy a model is: when the next request of each group may come, and the share of time it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::entry::GroupKey;
use crate::rate::ArrivalGap;
use crate::time::Time;

/// Groups whose arrivals are followed; of more, the one longest without any is forgotten.
const MOST_GROUPS: usize = 64;

/// The arrivals of each group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals {
    groups: BTreeMap<GroupKey, (Time, ArrivalGap)>,
}

impl Arrivals {
    pub(crate) fn arrived(&mut self, now: Time, key: GroupKey) {
        if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(&key) {
            let silent = self.groups.iter().min_by_key(|(_, (last, _))| *last).map(|(&key, _)| key);
            silent.and_then(|key| self.groups.remove(&key));
        }
        let (last, gap) = self.groups.entry(key).or_default();
        *last = now;
        gap.arrived(now, 1);
    }

    /// How long until the group's next arrival; `None` before there were two.
    pub(crate) fn expected(&self, now: Time, key: GroupKey) -> Option<Duration> {
        self.groups.get(&key)?.1.expected(now)
    }

    /// How long ago the group's last arrival was; zero before the first.
    pub(crate) fn silence(&self, now: Time, key: GroupKey) -> Duration {
        self.groups.get(&key).map_or(Duration::ZERO, |(last, _)| now.since(*last))
    }
}

/// The share of time that instances ran in, mostly of the last second.
#[derive(Debug, Clone)]
pub(crate) struct Utilization {
    instances: f64,
    last: Time,
    share: f64,
}

/// After this long, what was before counts by a factor of 1/e.
const MEMORY: Duration = Duration::from_secs(1);

impl Utilization {
    pub(crate) fn new(instances: u32) -> Self {
        Self { instances: f64::from(instances.max(1)), last: Time::ZERO, share: 0.0 }
    }

    /// An instance ran for `busy`, until `now`.
    pub(crate) fn worked(&mut self, now: Time, busy: Duration) {
        self.share = self.share(now);
        self.last = now;
        self.share += busy.as_secs_f64() / MEMORY.as_secs_f64() / self.instances;
    }

    /// Between 0 and 1.
    pub(crate) fn share(&self, now: Time) -> f64 {
        let passed = now.since(self.last).as_secs_f64() / MEMORY.as_secs_f64();
        (self.share * (-passed).exp()).min(1.0)
    }
}
