//! A loaded model that runs batches of requests: its batcher, its instances, and how a call goes through them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use trustformers_batching::advice::advise;
use trustformers_batching::batcher::BatchRecord;
use trustformers_batching::queue::Total;
use trustformers_batching::replay::Event;
use trustformers_batching::{
    Batcher, Failure, InstanceId, Instances, Observer, Rejection, Reply, ShapeKey, Snapshot, Submission,
    Suggestion,
};

use super::event_log::EventLog;
use super::gathering::gather;
use super::running::{Now, Terms};
use crate::backend::{Input, Lengths, Output, Signature};
use crate::metrics::VersionMetrics;

/// A model that answers requests batch by batch.
pub struct Batches {
    /// What it reads and writes.
    pub signature: Signature,
    metrics: Arc<VersionMetrics>,
    batcher: Arc<Batcher<Input, Output>>,
    instances: Instances<Input, Output>,
}

/// Why a model that takes whole requests is not loaded.
pub(super) const NOT_CONTINUOUS: &str = "batching.mode = \"continuous\" is for models that generate text";

/// Passes what the batcher sees to metrics and to the event log.
pub(super) struct Watcher {
    pub(super) metrics: Arc<VersionMetrics>,
    /// Counts what batches cost, where that is the tokens that the model reads.
    pub(super) read_tokens: Option<IntCounter>,
    pub(super) log: Option<EventLog>,
}

impl Observer for Watcher {
    fn batch_started(&self, instance: InstanceId) {
        self.metrics.batch_started(instance);
    }

    fn batch_ended(&self, record: &BatchRecord<'_>) {
        self.metrics.batch_ended(record);
        if let Some(read) = &self.read_tokens {
            read.inc_by(record.cost);
        }
    }

    fn event(&self, event: Event) {
        if let Some(log) = &self.log {
            log.push(event);
        }
    }
}

/// Why one item of a call has no result.
#[derive(Debug, Clone)]
pub enum Unanswered {
    /// It was not admitted; the duration is how long the queue will take to drain.
    Rejected(Rejection, Option<Duration>),
    /// It was admitted and failed.
    Failed(Failure),
}

impl Batches {
    pub(super) fn new(
        signature: Signature,
        metrics: Arc<VersionMetrics>,
        batcher: Arc<Batcher<Input, Output>>,
        instances: Instances<Input, Output>,
    ) -> Self {
        Self { signature, metrics, batcher, instances }
    }

    /// Requests that wait.
    pub(super) fn queued(&self) -> Total {
        self.batcher.queued()
    }

    /// Lets requests in again, whatever the model did before.
    pub(super) fn reset_breaker(&self) {
        self.batcher.reset_breaker();
    }

    /// What its scheduler is about.
    pub(super) fn now(&self) -> Now {
        now(&self.batcher)
    }

    /// What the scheduler did since the version was loaded, and what that suggests.
    pub(crate) fn insight(&self) -> (Snapshot, Vec<Suggestion>) {
        insight(&self.batcher)
    }

    /// Runs what is queued and ends the threads; blocks until then.
    pub(super) fn drain(&self) {
        self.instances.drain();
    }

    /// Answers everything at once: the server stops.
    pub(super) fn abort(&self) {
        self.batcher.abort();
    }

    /// Refuses `items` that are not tokenised yet, if that would be all for nothing: overload has to be cheap.
    pub fn refuse_early(&self, items: usize, terms: Terms) -> Option<Unanswered> {
        let timeout = terms.deadline.saturating_duration_since(Instant::now());
        let rejection = self.batcher.refuse_early(items, terms.client, terms.priority, timeout)?;
        // Of a model that is being replaced the replacement may take them.
        (rejection != Rejection::Draining)
            .then(|| Unanswered::Rejected(rejection, self.batcher.predicted_drain()))
    }

    /// Runs items through the batcher; one answer an item, in order. See [`gather`] for clients who leave.
    pub async fn infer(
        &self,
        items: &[Arc<Input>],
        terms: Terms,
        all_or_none: bool,
    ) -> Vec<Result<Output, Unanswered>> {
        let timeout = terms.deadline.saturating_duration_since(Instant::now());
        let lengths = self.signature.lengths();
        let submission = |index: usize, reply: Reply<Output>| {
            let input = &items[index];
            let Size { cost, seq_len } = Size::of(input, lengths);
            Submission {
                input: Arc::clone(input),
                client: terms.client,
                cost,
                seq_len,
                bytes: bytes(input),
                shape: shape_key(input, lengths),
                priority: terms.priority,
                timeout: Some(timeout),
                reply,
            }
        };
        gather(&self.batcher, &self.metrics, items.len(), all_or_none, submission).await
    }
}

/// What the scheduler of `batcher` is about.
pub(super) fn now<I: Send + Sync + 'static, O: Send + 'static>(batcher: &Batcher<I, O>) -> Now {
    batcher.inspect(|scheduler, now| Now {
        queued: scheduler.queued(),
        breaker: scheduler.breaker(now),
        breaker_pause: scheduler.breaker(now).and_then(|breaker| breaker.pause(now)),
        stalled: scheduler.stalled(now).map(|InstanceId(instance)| instance).collect(),
        memory_limit: scheduler.memory().limit(),
    })
}

/// What the scheduler of `batcher` did, and what that suggests.
pub(super) fn insight<I: Send + Sync + 'static, O: Send + 'static>(
    batcher: &Batcher<I, O>,
) -> (Snapshot, Vec<Suggestion>) {
    batcher.inspect(|scheduler, now| {
        let snapshot = scheduler.stats(now);
        let suggestions = advise(&snapshot, scheduler.config());
        (snapshot, suggestions)
    })
}

/// What an input keeps in memory while it waits.
fn bytes(input: &Input) -> u64 {
    let bytes = match input {
        Input::Tensors(tensors) => tensors.iter().map(|tensor| tensor.data.len()).sum(),
        Input::Tokens(ids) => size_of_val(ids.as_slice()),
    };
    bytes as u64
}

/// What an item adds to a batch.
pub(crate) struct Size {
    pub(crate) cost: u32,
    /// 0 where it is not padded.
    pub(crate) seq_len: u32,
}

impl Size {
    pub(crate) fn of(input: &Input, lengths: Option<&Lengths>) -> Self {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        match (input, lengths) {
            (Input::Tokens(ids), _) => Self { cost: count(ids.len()), seq_len: 0 },
            (Input::Tensors(_), None) => Self { cost: 1, seq_len: 0 },
            (Input::Tensors(tensors), Some(lengths)) => {
                // One whose inputs differ was refused before; the model refuses it again.
                let length = lengths.length(tensors).map_or(0, count);
                Self { cost: length.max(1), seq_len: length }
            }
        }
    }
}

/// Tensors are stacked, so all of a batch have the same shapes but for what is padded; token sequences are
/// packed, whatever their lengths.
pub(crate) fn shape_key(input: &Input, lengths: Option<&Lengths>) -> ShapeKey {
    match input {
        Input::Tokens(_) => ShapeKey::default(),
        Input::Tensors(tensors) => {
            let mut hasher = DefaultHasher::new();
            for (index, tensor) in tensors.iter().enumerate() {
                tensor.shape.len().hash(&mut hasher);
                let varies = |axis| lengths.is_some_and(|lengths| lengths.varies(index, axis));
                let fixed = tensor.shape.iter().enumerate().filter(|(axis, _)| !varies(*axis));
                fixed.for_each(|(_, size)| size.hash(&mut hasher));
            }
            ShapeKey(hasher.finish())
        }
    }
}
