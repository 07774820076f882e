//! What a scheduler did: counts, and distributions of times and sizes, kept for nanoseconds a request.
//!
//! Everything is taken from the `now` of the calls, so a replay counts what the recorded run counted.
//! [`Snapshot`] is the view of it; [`crate::advice`] reads suggestions out of one.

mod histogram;
pub(crate) mod snapshot;
mod window;

pub use self::histogram::{Bar, Distribution, Histogram};
pub use self::snapshot::{
    BatchStats, BreakerView, CostStats, Limits, MemoryStats, PaddingStats, QueueStats, Recent, RequestCounts,
    Snapshot, Throughput, Utilization,
};
pub(crate) use self::window::{Sums, Window};
use crate::bucket;
use crate::cost_model::FitSummary;
use crate::scheduler::{BatchReport, Outcome, Rejection, Verdict};
use crate::time::Time;

/// Times up to 2^43 ns (2.4 hours) are told apart, and sizes up to 2^20.
const TIME_BITS: u32 = 43;
const SIZE_BITS: u32 = 20;
/// Lengths of the last requests, of which is told what buckets would save.
const LENGTHS: usize = 256;
/// The most boundaries that are tried on them: as many as are learned.
const BOUNDARIES: usize = 6;
/// Weight of the past in a spread: that of the cost model, whose recent batches it describes.
const FORGETTING: f64 = 0.98;
/// Batches before a fit is remembered, and the squared coefficient of variation that makes it worth it.
const ENOUGH: f64 = 8.0;
const VARIED: f64 = 0.02;

/// Counts and distributions of one scheduler; updated by it alone.
#[derive(Debug, Clone)]
pub(crate) struct Stats {
    /// The first submit: shares and rates are of the time since.
    first: Option<Time>,
    admitted: u64,
    rejected: [u64; Rejection::REASONS.len()],
    completed: u64,
    failed: u64,
    never_fits: u64,
    expired_in_queue: u64,
    given_up: u64,
    expired_running: u64,
    cancelled: u64,
    batches_started: u64,
    retries: u64,
    batches_ended: u64,
    batches_failed: u64,
    out_of_memory: u64,
    cost: u64,
    elements: u64,
    busy_nanos: u128,
    peak_bytes: u64,
    window: Window,
    latency: Histogram,
    queue_wait: Histogram,
    batch_duration: Histogram,
    batch_size: Histogram,
    lengths: Vec<u32>,
    lengths_seen: usize,
    across_sizes: Remembered,
    across_lengths: Remembered,
}

/// A batch that starts.
pub(crate) struct Started {
    pub(crate) items: u64,
    pub(crate) cost: u64,
    /// With padding.
    pub(crate) elements: u64,
    /// Entries of its group that wait on.
    pub(crate) left_behind: u64,
    /// Whether it is a part of a failed batch.
    pub(crate) again: bool,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            first: None,
            admitted: 0,
            rejected: [0; Rejection::REASONS.len()],
            completed: 0,
            failed: 0,
            never_fits: 0,
            expired_in_queue: 0,
            given_up: 0,
            expired_running: 0,
            cancelled: 0,
            batches_started: 0,
            retries: 0,
            batches_ended: 0,
            batches_failed: 0,
            out_of_memory: 0,
            cost: 0,
            elements: 0,
            busy_nanos: 0,
            peak_bytes: 0,
            window: Window::default(),
            latency: Histogram::new(TIME_BITS),
            queue_wait: Histogram::new(TIME_BITS),
            batch_duration: Histogram::new(TIME_BITS),
            batch_size: Histogram::new(SIZE_BITS),
            lengths: Vec::new(),
            lengths_seen: 0,
            across_sizes: Remembered::default(),
            across_lengths: Remembered::default(),
        }
    }
}

impl Stats {
    pub(crate) fn offered(&mut self, now: Time) {
        self.first.get_or_insert(now);
        self.window.at(now).offered += 1;
    }

    pub(crate) fn rejected(&mut self, rejection: &Rejection) {
        self.rejected[rejection.index()] += 1;
    }

    /// `seq_len` is 0 where nothing is padded.
    pub(crate) fn admitted(&mut self, seq_len: u32) {
        self.admitted += 1;
        if seq_len == 0 {
            return;
        }
        match self.lengths.get_mut(self.lengths_seen % LENGTHS) {
            Some(place) => *place = seq_len,
            None => self.lengths.push(seq_len),
        }
        self.lengths_seen += 1;
    }

    pub(crate) fn cancelled(&mut self) {
        self.cancelled += 1;
    }

    /// An entry left the queue for the first time.
    pub(crate) fn waited(&mut self, now: Time, arrived: Time) {
        self.queue_wait.record(nanos(now, arrived));
    }

    pub(crate) fn started(&mut self, now: Time, batch: &Started) {
        self.batches_started += 1;
        self.retries += u64::from(batch.again);
        self.cost += batch.cost;
        self.elements += batch.elements;
        self.batch_size.record(batch.items);
        let sums = self.window.at(now);
        sums.batches += 1;
        sums.items += batch.items;
        sums.cost += batch.cost;
        sums.elements += batch.elements;
        sums.left_behind += batch.left_behind;
        sums.held_back += u64::from(batch.left_behind > 0);
    }

    pub(crate) fn ended(&mut self, now: Time, report: &BatchReport) {
        let BatchReport { outcome, busy, peak_bytes } = *report;
        let busy_nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.batches_ended += 1;
        self.batches_failed += u64::from(outcome != Outcome::Completed);
        self.out_of_memory += u64::from(outcome == Outcome::OutOfMemory);
        self.busy_nanos += u128::from(busy_nanos);
        self.peak_bytes = self.peak_bytes.max(peak_bytes.unwrap_or_default());
        self.batch_duration.record(busy_nanos);
        let sums = self.window.at(now);
        sums.ended += 1;
        sums.busy_nanos += busy_nanos;
    }

    /// The cost model learned from a batch, and is now `fit`.
    pub(crate) fn learned(&mut self, items: u64, elements: u64, fit: impl Fn() -> FitSummary) {
        self.across_sizes.observe(items as f64, &fit);
        self.across_lengths.observe(elements as f64 / items.max(1) as f64, &fit);
    }

    pub(crate) fn completed(&mut self, now: Time, arrived: Time) {
        let latency = nanos(now, arrived);
        self.completed += 1;
        self.latency.record(latency);
        let sums = self.window.at(now);
        sums.completed += 1;
        sums.latency_nanos += latency;
    }

    /// An entry ended without a result.
    pub(crate) fn ended_without(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Completed => {}
            Verdict::Failed => self.failed += 1,
            Verdict::NeverFits => self.never_fits += 1,
            Verdict::ExpiredInQueue => self.expired_in_queue += 1,
            Verdict::GivenUp => self.given_up += 1,
            Verdict::ExpiredRunning => self.expired_running += 1,
        }
    }

    /// The share of padding if the last lengths were padded to the boundaries that pad least.
    fn bucketed_overhead(&self) -> Option<f64> {
        let histogram = bucket::Histogram::of(&self.lengths);
        let padding = histogram.padding(&histogram.least_padding(BOUNDARIES));
        let tokens: u64 = self.lengths.iter().map(|&len| u64::from(len)).sum();
        (tokens > 0).then(|| padding as f64 / (tokens + padding) as f64)
    }
}

fn nanos(now: Time, earlier: Time) -> u64 {
    now.as_nanos().saturating_sub(earlier.as_nanos())
}

/// The fit of batches that differed in one respect.
///
/// When all batches are alike, as under full load, a fit forgets how they would differ: what it said when
/// it last knew is kept for those who ask about other batches than there are.
#[derive(Debug, Clone, Default)]
struct Remembered {
    batches: f64,
    mean: f64,
    variance: f64,
    fit: Option<FitSummary>,
}

impl Remembered {
    fn observe(&mut self, value: f64, fit: impl Fn() -> FitSummary) {
        self.batches += 1.0;
        let share = (1.0 - FORGETTING).max(1.0 / self.batches);
        let apart = value - self.mean;
        self.mean += share * apart;
        self.variance = (1.0 - share) * (self.variance + share * apart * apart);
        if self.batches >= ENOUGH && self.variance >= VARIED * self.mean * self.mean {
            self.fit = Some(fit());
        }
    }
}
