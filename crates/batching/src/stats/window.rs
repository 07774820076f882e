//! Sums over the last seconds: one slot a second, written in place.

use crate::time::Time;

const SECOND: u64 = 1_000_000_000;
/// Whole seconds looked back on.
const SECONDS: usize = 60;

/// What happened in one second, or in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    /// Requests that came, admitted or not.
    pub(crate) offered: u64,
    /// Requests that got their result, and their latencies' sum.
    pub(crate) completed: u64,
    pub(crate) latency_nanos: u64,
    /// Batches that started, and what they held.
    pub(crate) batches: u64,
    pub(crate) items: u64,
    pub(crate) cost: u64,
    pub(crate) elements: u64,
    /// Entries that could have joined a batch but for its limits, and batches that left any so.
    pub(crate) left_behind: u64,
    pub(crate) held_back: u64,
    /// Batches that ended, and how long they ran.
    pub(crate) ended: u64,
    pub(crate) busy_nanos: u64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.offered += other.offered;
        self.completed += other.completed;
        self.latency_nanos += other.latency_nanos;
        self.batches += other.batches;
        self.items += other.items;
        self.cost += other.cost;
        self.elements += other.elements;
        self.left_behind += other.left_behind;
        self.held_back += other.held_back;
        self.ended += other.ended;
        self.busy_nanos += other.busy_nanos;
    }
}

/// The sums of the current second and of the [`SECONDS`] before it.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    current: Sums,
    /// Which second `current` is, and when it ends: comparing is cheaper than dividing at every request.
    second: u64,
    ends: u64,
    past: Box<[(u64, Sums); SECONDS]>,
}

impl Default for Window {
    fn default() -> Self {
        let past = Box::new([(0, Sums::default()); SECONDS]);
        Self { current: Sums::default(), second: 0, ends: SECOND, past }
    }
}

impl Window {
    /// The sums that `now` belongs to.
    pub(crate) fn at(&mut self, now: Time) -> &mut Sums {
        if now.as_nanos() >= self.ends {
            self.roll(now);
        }
        &mut self.current
    }

    #[cold]
    fn roll(&mut self, now: Time) {
        self.past[self.second as usize % SECONDS] = (self.second, self.current);
        self.current = Sums::default();
        self.second = now.as_nanos() / SECOND;
        self.ends = (self.second + 1).saturating_mul(SECOND);
    }

    /// What happened in the `seconds` (at most 60) before the current second and in that, and how many
    /// seconds this is.
    pub(crate) fn last(&self, now: Time, seconds: u64) -> (Sums, f64) {
        let current = now.as_nanos() / SECOND;
        let from = current.saturating_sub(seconds);
        let mut sums = Sums::default();
        if self.second >= from {
            sums.add(&self.current);
        }
        // A slot of a second that is still current was written an hour or a minute ago.
        let past = self.past.iter().filter(|(second, _)| *second >= from && *second < self.second);
        past.for_each(|(_, past)| sums.add(past));
        let begin = from * SECOND;
        (sums, (now.as_nanos() - begin) as f64 / SECOND as f64)
    }
}
