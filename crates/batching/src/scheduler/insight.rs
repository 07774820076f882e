//! What the scheduler shows of itself.

use super::Scheduler;
use crate::advice::{Suggestion, advise};
use crate::stats::snapshot::Present;
use crate::stats::{Limits, MemoryStats, QueueStats, Snapshot};
use crate::time::Time;

impl Scheduler {
    /// What it did since its first request, and what it does now.
    pub fn stats(&self, now: Time) -> Snapshot {
        let queued = self.queue.total();
        let max_elements = self.memory.max_elements();
        let running_nanos = self.running.values();
        let present = Present {
            queue: QueueStats {
                requests: queued.entries as u64,
                tokens: queued.cost,
                bytes: queued.bytes,
                predicted_drain_seconds: self.predicted_drain(now).map(|drain| drain.as_secs_f64()),
            },
            limits: Limits {
                batch_size: self.limit(),
                max_wait_seconds: self.max_wait().as_secs_f64(),
                instances: self.config.instances.max(1),
            },
            memory: MemoryStats {
                limit_bytes: self.memory.limit(),
                max_tokens: (max_elements < u64::MAX).then_some(max_elements),
                ..MemoryStats::default()
            },
            running: self.owed.len() as u64,
            running_nanos: running_nanos
                .map(|batch| now.as_nanos().saturating_sub(batch.started.as_nanos()))
                .collect(),
            utilization: self.utilization.share(now),
            breaker: self.breaker(now),
            stalled_instances: self.stalled(now).map(|instance| instance.0).collect(),
            fits: self.costs.fits(),
        };
        self.stats.snapshot(now, present, |elements| self.memory.bytes(elements))
    }

    /// What would make it better, as far as what it did says so clearly.
    pub fn advice(&self, now: Time) -> Vec<Suggestion> {
        advise(&self.stats(now), &self.config)
    }
}
