//! What a batch holds while it is filled, and whom its entries' deadlines and urgency still let join.

use std::time::Duration;

use crate::cost_model::{CostModel, Estimate};
use crate::entry::{Entry, GroupKey, Priority};
use crate::time::Time;

/// How many times as long as the critical entries of a batch alone it may run with less urgent ones.
const RIDE_ALONG: u32 = 2;

/// What a batch has to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) items: usize,
    cost: u64,
    pub(super) longest: u32,
    /// When the first of it is due.
    due: Time,
    /// Whether anything in it is critical.
    critical: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { items: 0, cost: 0, longest: 0, due: Time::MAX, critical: false }
    }
}

impl Load {
    pub(super) fn of(entries: &[Entry]) -> Self {
        entries.iter().fold(Self::default(), |load, entry| load.with(entry))
    }

    pub(super) fn with(self, entry: &Entry) -> Self {
        Self {
            items: self.items + 1,
            cost: self.cost + u64::from(entry.cost),
            longest: self.longest.max(entry.seq_len),
            due: self.due.min(entry.due()),
            critical: self.critical || entry.priority == Priority::Critical,
        }
    }

    /// Padded tokens; summed cost where nothing is padded.
    pub(super) fn elements(self, pad: impl Fn(u32) -> u32) -> u64 {
        if self.longest == 0 { self.cost } else { self.items as u64 * u64::from(pad(self.longest)) }
    }
}

/// Keeps a batch that starts now short enough for those that are in it: everybody is answered before the
/// first is due, and less urgent entries ride along with critical ones only while that costs those little.
pub(super) struct Pace<'a> {
    estimate: Option<Estimate<'a>>,
    now: Time,
    /// How long the batch runs so far.
    run: Duration,
    /// How long it ran with its last critical entry, once others have joined that.
    critical: Option<Duration>,
}

impl<'a> Pace<'a> {
    pub(super) fn new(costs: &'a CostModel, now: Time, key: GroupKey) -> Self {
        let estimate = costs.known().map(|costs| costs.of(key));
        Self { estimate, now, run: Duration::ZERO, critical: None }
    }

    /// Whether `entry` may join, so that the batch is `with`, of so many `elements`; the first always may.
    pub(super) fn allows(&mut self, entry: &Entry, with: &Load, elements: u64) -> bool {
        let items = u32::try_from(with.items).unwrap_or(u32::MAX);
        let Some(run) = self.estimate.and_then(|estimate| estimate.predict(items, elements)) else {
            return true;
        };
        let late = || self.now + self.estimate.map_or(run, |estimate| estimate.with_margin(run)) > with.due;
        self.critical = match entry.priority {
            Priority::Critical => None,
            _ if with.critical => self.critical.or(Some(self.run)),
            _ => None,
        };
        let drags = self.critical.is_some_and(|critical| run > RIDE_ALONG * critical);
        if items > 1 && (drags || late()) {
            return false;
        }
        self.run = run;
        true
    }
}
