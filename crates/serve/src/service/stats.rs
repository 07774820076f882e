//! What a service knows of itself.

use std::time::Duration;

use trustformers_batching::advice::{Suggestion, advise};
use trustformers_batching::stats::Snapshot;
use trustformers_batching::{Scheduler, Time};

/// What a service did since it was started.
#[derive(Debug, Clone)]
pub struct ServiceStats {
    /// The figures that are asked for most.
    pub metrics_summary: MetricsSummary,
    /// All of them.
    pub snapshot: Snapshot,
    /// What to change, with the evidence and the predicted gain.
    pub suggestions: Vec<Suggestion>,
}

/// The figures that are asked for most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricsSummary {
    /// Requests answered with a result.
    pub completed: u64,
    /// Requests that the model failed on.
    pub failed: u64,
    /// Requests answered each second, over the last ten seconds.
    pub throughput_rps: f64,
    /// From submission to answer.
    pub mean_latency: Duration,
    /// Of 100 requests, 95 were answered at least this fast.
    pub p95_latency: Duration,
}

impl ServiceStats {
    pub(super) fn of(scheduler: &Scheduler, now: Time) -> Self {
        let snapshot = scheduler.stats(now);
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let metrics_summary = MetricsSummary {
            completed: snapshot.requests.completed,
            failed: snapshot.requests.failed,
            throughput_rps: snapshot.throughput.last_10_seconds,
            mean_latency: seconds(snapshot.latency_seconds.mean),
            p95_latency: seconds(snapshot.latency_seconds.p95),
        };
        let suggestions = advise(&snapshot, scheduler.config());
        Self { metrics_summary, snapshot, suggestions }
    }
}
