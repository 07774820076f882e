//! The view of a scheduler at one instant, for people: seconds, bytes and plain numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Bar, Distribution, Stats, Sums};
use crate::breaker::BreakerState;
use crate::cost_model::FitSummary;
use crate::scheduler::Rejection;
use crate::time::Time;

/// A nanosecond in seconds.
const NANO: f64 = 1e-9;
/// Seconds that the short and the long window look back.
const SHORT: u64 = 10;
const LONG: u64 = 60;

/// What a scheduler did since its first request, and what it does now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Seconds since the first request; 0 before it.
    pub seconds: f64,
    /// Every request is in exactly one of these, or in `rejected`.
    pub requests: RequestCounts,
    /// Requests that were not admitted, by reason ([`Rejection::REASONS`]).
    pub rejected: BTreeMap<&'static str, u64>,
    /// Results a second.
    pub throughput: Throughput,
    /// Seconds from submit to result, of requests that got one.
    pub latency_seconds: Distribution,
    /// Seconds from submit to the start of the first batch.
    pub queue_wait_seconds: Distribution,
    /// How many waited how long, in octaves of seconds.
    pub queue_wait_histogram: Vec<Bar>,
    /// Seconds that batches ran.
    pub batch_duration_seconds: Distribution,
    /// Entries in a batch.
    pub batch_size: Distribution,
    /// How many batches had which size; sizes from 64 on in steps of 3 %.
    pub batch_size_histogram: Vec<Bar>,
    /// Batches by how they ended.
    pub batches: BatchStats,
    /// What padding adds.
    pub padding: PaddingStats,
    /// Share of the instances' time in which they ran a batch.
    pub utilization: Utilization,
    /// The last minute.
    pub recent: Recent,
    /// What waits now.
    pub queue: QueueStats,
    /// Limits in force.
    pub limits: Limits,
    /// What batches need of memory, and may have.
    pub memory: MemoryStats,
    /// The circuit breaker; `None` without one.
    pub breaker: Option<BreakerView>,
    /// Instances whose batch runs for longer than it may.
    pub stalled_instances: Vec<u32>,
    /// How long batches take, as learned.
    pub cost_model: CostStats,
}

/// Requests by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RequestCounts {
    /// All that were let in: the sum of the others.
    pub admitted: u64,
    /// Their batch ran; the model may still have failed some of them alone.
    pub completed: u64,
    /// Their batch failed.
    pub failed: u64,
    /// They turned out to need more memory than a batch may.
    pub never_fits: u64,
    /// Their deadline passed while they waited.
    pub expired_in_queue: u64,
    /// Their deadline could not be met any more while they waited, or only at the cost of more of the others'.
    pub given_up: u64,
    /// Their deadline passed while they ran, or waited to run again.
    pub expired_running: u64,
    /// Their callers left.
    pub cancelled: u64,
    /// They wait.
    pub queued: u64,
    /// They run, or will run again.
    pub running: u64,
}

/// Results a second.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Throughput {
    /// Over the last 10 seconds.
    pub last_10_seconds: f64,
    /// Over the last 60 seconds.
    pub last_60_seconds: f64,
    /// Since the first request.
    pub overall: f64,
}

/// Batches by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BatchStats {
    /// All that started.
    pub started: u64,
    /// Those that were parts of failed ones.
    pub retries: u64,
    /// All that ended.
    pub ended: u64,
    /// Those that ended without results.
    pub failed: u64,
    /// Those of them that had too little memory.
    pub out_of_memory: u64,
}

/// What padding adds to the work.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PaddingStats {
    /// Tokens (items, where nothing is padded) that requests brought.
    pub tokens: u64,
    /// What batches held, with padding.
    pub padded_tokens: u64,
    /// The part of `padded_tokens` that is padding, 0 to 1.
    pub overhead: f64,
    /// What that would be in the buckets that suit the last 256 lengths best; `None` without lengths.
    pub bucketed_overhead: Option<f64>,
}

/// Share of the instances' time in which they ran a batch, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Utilization {
    /// Mostly of the last second.
    pub now: f64,
    /// Of the last 60 seconds.
    pub last_60_seconds: f64,
    /// Since the first request.
    pub overall: f64,
}

/// The last minute, or the time since the first request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Recent {
    /// How long that is.
    pub seconds: f64,
    /// Requests that came, admitted or not, a second.
    pub offered_per_second: f64,
    /// Results a second.
    pub completed_per_second: f64,
    /// Mean seconds from submit to result.
    pub mean_latency_seconds: f64,
    /// Batches that started.
    pub batches: u64,
    /// Entries in a batch.
    pub mean_batch_size: f64,
    /// Seconds a batch ran.
    pub mean_batch_seconds: f64,
    /// Padded tokens (items, where nothing is padded) for each entry.
    pub tokens_per_item: f64,
    /// The part of the padded tokens that is padding, 0 to 1.
    pub padding_overhead: f64,
    /// Entries that a batch left behind and that could have joined it but for a limit.
    pub mean_left_behind: f64,
    /// The share of batches that left any behind, 0 to 1.
    pub held_back: f64,
}

/// What waits now.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct QueueStats {
    /// Requests.
    pub requests: u64,
    /// Their tokens.
    pub tokens: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
    /// Seconds until all of it has run, as predicted; `None` before the first batch.
    pub predicted_drain_seconds: Option<f64>,
}

/// Limits in force.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// Most entries in a batch.
    pub batch_size: u32,
    /// Longest wait for company while an instance is free.
    pub max_wait_seconds: f64,
    /// Instances that pull batches.
    pub instances: u32,
}

/// Memory of batches; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryStats {
    /// What a batch may need: configured, or less since an allocation failed. `None`: anything.
    pub limit_bytes: Option<u64>,
    /// The most padded tokens (items, where nothing is padded) in a batch by that. `None`: any.
    pub max_tokens: Option<u64>,
    /// What a batch of `limits.batch_size` entries like the recent ones would need; 0: not known.
    pub full_batch_bytes: u64,
    /// The most that any batch used; 0: nobody measured it.
    pub peak_bytes: u64,
}

/// The circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BreakerView {
    /// `closed`, `open` or `half_open`.
    pub state: &'static str,
    /// Seconds until a request may probe; 0 unless it is open.
    pub retry_after_seconds: f64,
}

/// How long batches take, as learned: seconds = a + b * items + c * tokens.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CostStats {
    /// The fit over all batches, then that of each group.
    pub fits: Vec<FitSummary>,
    /// The fit over all batches when their sizes last differed.
    pub across_sizes: Option<FitSummary>,
    /// The fit over all batches when their tokens an item last differed.
    pub across_lengths: Option<FitSummary>,
}

/// What a snapshot takes from elsewhere in the scheduler.
pub(crate) struct Present {
    pub(crate) queue: QueueStats,
    pub(crate) limits: Limits,
    /// Without `full_batch_bytes` and `peak_bytes`.
    pub(crate) memory: MemoryStats,
    pub(crate) running: u64,
    /// How long the batches that run have run, in nanoseconds.
    pub(crate) running_nanos: Vec<u64>,
    pub(crate) utilization: f64,
    pub(crate) breaker: Option<BreakerState>,
    pub(crate) stalled_instances: Vec<u32>,
    pub(crate) fits: Vec<FitSummary>,
}

impl Stats {
    /// `bytes` tells what a batch of so many padded tokens needs.
    pub(crate) fn snapshot(&self, now: Time, present: Present, bytes: impl Fn(u64) -> u64) -> Snapshot {
        let seconds = self.first.map_or(0.0, |first| super::nanos(now, first) as f64 * NANO);
        let (short, short_seconds) = self.window.last(now, SHORT);
        let (long, long_seconds) = self.window.last(now, LONG);
        let recent = recent(&long, long_seconds.min(seconds));
        let full_batch = recent.tokens_per_item * f64::from(present.limits.batch_size);
        Snapshot {
            seconds,
            requests: self.requests(&present),
            rejected: Rejection::REASONS.into_iter().zip(self.rejected).collect(),
            throughput: Throughput {
                last_10_seconds: ratio(short.completed as f64, short_seconds.min(seconds)),
                last_60_seconds: recent.completed_per_second,
                overall: ratio(self.completed as f64, seconds),
            },
            latency_seconds: self.latency.distribution(NANO),
            queue_wait_seconds: self.queue_wait.distribution(NANO),
            queue_wait_histogram: self.queue_wait.octaves(NANO),
            batch_duration_seconds: self.batch_duration.distribution(NANO),
            batch_size: self.batch_size.distribution(1.0),
            batch_size_histogram: self.batch_size.bars(),
            batches: BatchStats {
                started: self.batches_started,
                retries: self.retries,
                ended: self.batches_ended,
                failed: self.batches_failed,
                out_of_memory: self.out_of_memory,
            },
            padding: PaddingStats {
                tokens: self.cost,
                padded_tokens: self.elements,
                overhead: overhead(self.cost, self.elements),
                bucketed_overhead: self.bucketed_overhead(),
            },
            utilization: Utilization {
                now: present.utilization,
                last_60_seconds: busy(&present, long.busy_nanos.into(), recent.seconds),
                overall: busy(&present, self.busy_nanos, seconds),
            },
            recent,
            queue: present.queue,
            limits: present.limits,
            memory: MemoryStats {
                full_batch_bytes: bytes(full_batch.round() as u64),
                peak_bytes: self.peak_bytes,
                ..present.memory
            },
            breaker: present.breaker.map(|state| breaker(state, now)),
            stalled_instances: present.stalled_instances,
            cost_model: CostStats {
                fits: present.fits,
                across_sizes: self.across_sizes.fit.clone(),
                across_lengths: self.across_lengths.fit.clone(),
            },
        }
    }

    fn requests(&self, present: &Present) -> RequestCounts {
        RequestCounts {
            admitted: self.admitted,
            completed: self.completed,
            failed: self.failed,
            never_fits: self.never_fits,
            expired_in_queue: self.expired_in_queue,
            given_up: self.given_up,
            expired_running: self.expired_running,
            cancelled: self.cancelled,
            queued: present.queue.requests,
            running: present.running,
        }
    }
}

fn recent(sums: &Sums, seconds: f64) -> Recent {
    let (batches, items) = (sums.batches as f64, sums.items as f64);
    Recent {
        seconds,
        offered_per_second: ratio(sums.offered as f64, seconds),
        completed_per_second: ratio(sums.completed as f64, seconds),
        mean_latency_seconds: ratio(sums.latency_nanos as f64 * NANO, sums.completed as f64),
        batches: sums.batches,
        mean_batch_size: ratio(items, batches),
        mean_batch_seconds: ratio(sums.busy_nanos as f64 * NANO, sums.ended as f64),
        tokens_per_item: ratio(sums.elements as f64, items),
        padding_overhead: overhead(sums.cost, sums.elements),
        mean_left_behind: ratio(sums.left_behind as f64, batches),
        held_back: ratio(sums.held_back as f64, batches),
    }
}

/// The busy share of `seconds`, at the end of which batches still run.
fn busy(present: &Present, nanos: u128, seconds: f64) -> f64 {
    let running: f64 = present.running_nanos.iter().map(|&nanos| (nanos as f64 * NANO).min(seconds)).sum();
    ratio(nanos as f64 * NANO + running, seconds * f64::from(present.limits.instances)).min(1.0)
}

fn breaker(state: BreakerState, now: Time) -> BreakerView {
    let (state, until) = match state {
        BreakerState::Closed => ("closed", now),
        BreakerState::Open { until } => ("open", until),
        BreakerState::HalfOpen => ("half_open", now),
    };
    BreakerView { state, retry_after_seconds: until.since(now).as_secs_f64() }
}

fn overhead(tokens: u64, padded: u64) -> f64 {
    ratio(padded.saturating_sub(tokens) as f64, padded as f64)
}

/// 0 where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
