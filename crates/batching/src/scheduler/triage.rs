//! Who is given up where not everybody can be answered in time.
//!
//! Serving the most urgent first collapses under overload: the first of the queue has hardly any time left,
//! so it runs nearly alone, and while it runs the next lose theirs. Dropping some of the first leaves a
//! batch in which the others are in time together (early dropping: Shen et al., "Nexus", SOSP 2019). Here it
//! is done only where it answers more of those who wait.

use std::time::Duration;

use super::Scheduler;
use crate::entry::{Entry, GroupKey, Ticket};
use crate::time::Time;

/// Numbers of the first that are tried for giving up, evenly spread.
const TRIALS: usize = 32;

impl Scheduler {
    /// Those of a group whose deadlines cannot be met any more, or only at the cost of more of the others'.
    pub(super) fn triage(&mut self, now: Time, key: GroupKey) -> Vec<Ticket> {
        if self.all_in_time(now, key) {
            return Vec::new();
        }
        let head = self.queue.head(key, now).map(|head| head.priority);
        let (mut hopeless, mut urgent) = (Vec::new(), Vec::new());
        for entry in self.queue.with_deadlines(key) {
            let due = (entry.due(), entry.ticket);
            if now + self.run_alone(key, entry) > entry.due() {
                hopeless.push(due);
            } else if Some(entry.priority) == head {
                urgent.push(due);
            }
        }
        if hopeless.len() == self.queue.total_of(key).entries {
            // The least late is tried, whatever is predicted: else a wrong prediction would last.
            let least = hopeless.iter().copied().max();
            hopeless.retain(|&due| Some(due) != least);
        }
        urgent.sort_unstable();
        let dues: Vec<Time> = urgent.iter().map(|&(due, _)| due).collect();
        let limit = self.limit().max(1) as usize;
        let first = to_give_up(&dues, &self.free_times(now), limit, |items| self.run_time(key, items));
        hopeless.iter().chain(&urgent[..first]).map(|&(_, ticket)| ticket).collect()
    }

    /// Whether nobody at all is due before the last of the group is answered: nearly always, and cheap to see.
    fn all_in_time(&self, now: Time, key: GroupKey) -> bool {
        let limit = self.limit().max(1) as usize;
        let batches = self.queue.total_of(key).entries.div_ceil(limit);
        let drained = || now + self.run_time(key, limit) * u32::try_from(batches).unwrap_or(u32::MAX);
        self.costs.known().is_none() || self.next_deadline().is_none_or(|due| drained() <= due)
    }

    /// How long a batch of `items` of those who wait may run.
    fn run_time(&self, key: GroupKey, items: usize) -> Duration {
        let waiting = self.queue.total_of(key);
        let cost = waiting.cost as f64 / waiting.entries as f64 * items as f64;
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        self.costs.at_most(key, items, cost.round() as u64).unwrap_or_default()
    }

    fn run_alone(&self, key: GroupKey, entry: &Entry) -> Duration {
        self.costs.at_most(key, 1, self.alone(entry)).unwrap_or_default()
    }

    /// When each instance is free, this one being so now, as far as running batches go as predicted.
    fn free_times(&self, now: Time) -> Vec<Time> {
        let others = self.predicted_ends().map(|end| end.max(now)).chain(std::iter::repeat(now));
        std::iter::once(now).chain(others).take(self.config.instances.max(1) as usize).collect()
    }
}

/// How many of the first to give up, so that most of the others are answered before they are due.
///
/// `dues` are the deadlines of those who wait, soonest first; `free` is when each instance has no work left;
/// `run(items)` is how long a batch takes, of at most `limit`.
pub(crate) fn to_give_up(
    dues: &[Time],
    free: &[Time],
    limit: usize,
    run: impl Fn(usize) -> Duration,
) -> usize {
    let times: Vec<Duration> = (1..=limit.min(dues.len())).map(run).collect();
    let step = dues.len().div_ceil(TRIALS).max(1);
    let mut best = (0, answered(dues, free, &times));
    for given_up in (step..dues.len()).step_by(step) {
        // No more than all that are left can be answered.
        if best.1 >= dues.len() - given_up {
            break;
        }
        let answered = answered(&dues[given_up..], free, &times);
        if answered > best.1 {
            best = (given_up, answered);
        }
    }
    best.0
}

/// How many are answered in time if each batch takes the first who wait, as many as are in time together.
fn answered(mut dues: &[Time], free: &[Time], times: &[Duration]) -> usize {
    let mut free = free.to_vec();
    let mut answered = 0;
    while let Some((&due, later)) = dues.split_first() {
        let Some(first) = free.iter_mut().min() else { return answered };
        let items = times.partition_point(|&time| *first + time <= due).min(dues.len());
        if items == 0 {
            dues = later;
            continue;
        }
        *first = *first + times[items - 1];
        answered += items;
        dues = &dues[items..];
    }
    answered
}
