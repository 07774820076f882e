//! A model that the program around the server runs: its queue, and how a call goes through it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;
use trustformers_batching::queue::Total;
use trustformers_batching::{
    DeviceBudget, Isolation, MonotonicClock, Reply, SchedulerConfig, ShapeKey, Snapshot, Submission,
    Suggestion, Ticket,
};

use super::batches::{NOT_CONTINUOUS, Unanswered, Watcher, insight, now};
use super::event_log::EventLog;
use super::gathering::gather;
use super::running::{Now, Terms};
use crate::config::{BatchingMode, BatchingSettings};
use crate::hosted::{Answer, Call, Calls, Crew, Document, Hosted, Interface, Stream, feed};
use crate::http::wire::Format;
use crate::metrics::VersionMetrics;

/// A model that the program around the server runs.
pub struct Hosting {
    model: Hosted,
    metrics: Arc<VersionMetrics>,
    calls: Arc<Calls>,
    crew: Box<dyn Crew>,
    timer: Mutex<Option<JoinHandle<()>>>,
}

/// One item as its request has it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The item.
    pub item: Document,
    /// See [`Call::whole`].
    pub whole: Option<Document>,
    /// How the reply is written.
    pub reply: Format,
}

impl Hosting {
    /// Has the host take calls.
    pub(super) fn start(
        model: &Hosted,
        batching: &BatchingSettings,
        metrics: &Arc<VersionMetrics>,
    ) -> Result<Self, String> {
        if batching.mode == Some(BatchingMode::Continuous) {
            return Err(NOT_CONTINUOUS.to_owned());
        }
        let log = EventLog::of(batching, &model.name, &model.version)?;
        let log_events = log.is_some();
        let config = SchedulerConfig {
            instances: model.host.concurrency(),
            // A host batches, if it does, by itself.
            max_batch_size: 1,
            min_batch_size: 1,
            isolation: Isolation::None,
            ..batching.scheduler_config(None)
        };
        let watcher = Watcher { metrics: Arc::clone(metrics), read_tokens: None, log };
        let clock = Arc::new(MonotonicClock::default());
        let calls = Arc::new(Calls::new(config, None::<DeviceBudget>, clock, Arc::new(watcher), log_events));
        let crew = model.host.start(Arc::clone(&calls))?;
        let timed = Arc::clone(&calls);
        let timer = thread::Builder::new()
            .name(format!("{}:timer", model.name))
            .spawn(move || while timed.expire() {})
            .map_err(|error| {
                calls.abort();
                format!("cannot start its timer: {error}")
            })?;
        let (model, metrics) = (model.clone(), Arc::clone(metrics));
        Ok(Self { model, metrics, calls, crew, timer: Mutex::new(Some(timer)) })
    }

    /// What the model reads and writes.
    pub fn interface(&self) -> &Interface {
        self.model.host.interface()
    }

    /// Requests that wait.
    pub(super) fn queued(&self) -> Total {
        self.calls.queued()
    }

    /// Lets requests in again, whatever the model did before.
    pub(super) fn reset_breaker(&self) {
        self.calls.reset_breaker();
    }

    /// What its scheduler is about.
    pub(super) fn now(&self) -> Now {
        now(&self.calls)
    }

    /// What the scheduler did since the version was loaded, and what that suggests.
    pub(crate) fn insight(&self) -> (Snapshot, Vec<Suggestion>) {
        insight(&self.calls)
    }

    /// Has what is queued run, and waits until the host takes no more.
    pub(super) fn drain(&self) {
        self.calls.close();
        self.crew.close();
        self.crew.join();
        if let Some(timer) = self.timer.lock().take() {
            drop(timer.join());
        }
    }

    /// Answers everything at once: the server stops.
    pub(super) fn abort(&self) {
        self.calls.abort();
        self.crew.close();
    }

    /// Runs items; one answer an item, in order. See [`gather`] for clients who leave.
    pub async fn infer(
        &self,
        items: &[Arc<Asked>],
        terms: Terms,
        all_or_none: bool,
    ) -> Vec<Result<Answer, Unanswered>> {
        let submission = |index: usize, reply: Reply<Answer>| {
            let Asked { item, whole, reply: format } = (*items[index]).clone();
            let timeout = terms.deadline.saturating_duration_since(Instant::now());
            submission(Call::new(item, whole, format, terms.priority, None), terms, Some(timeout), reply)
        };
        gather(&self.calls, &self.metrics, items.len(), all_or_none, submission).await
    }

    /// Begins an item whose result comes piece by piece. Without `timed` it takes as long as it needs.
    ///
    /// # Errors
    /// Why it was not admitted.
    pub fn stream(
        self: &Arc<Self>,
        item: &Asked,
        terms: Terms,
        timed: bool,
    ) -> Result<Piecewise, Unanswered> {
        let Asked { item, whole, reply: format } = item.clone();
        let (feed, end, stream) = feed();
        let timeout = timed.then(|| terms.deadline.saturating_duration_since(Instant::now()));
        let reply: Reply<Answer> = Box::new(move |result| drop(end.send(result)));
        let submission =
            submission(Call::new(item, whole, format, terms.priority, Some(feed)), terms, timeout, reply);
        match self.calls.submit([submission]).pop() {
            Some(Ok(ticket)) => Ok(Piecewise { stream, ticket, hosting: Arc::clone(self) }),
            Some(Err(rejection)) => Err(Unanswered::Rejected(rejection, self.calls.predicted_drain())),
            None => Err(Unanswered::Failed(trustformers_batching::Failure::ClosedInQueue)),
        }
    }
}

impl Drop for Hosting {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A result that comes piece by piece. Dropped, because its client left, it is given up.
pub struct Piecewise {
    /// The pieces.
    pub stream: Stream,
    ticket: Ticket,
    hosting: Arc<Hosting>,
}

impl Drop for Piecewise {
    fn drop(&mut self) {
        self.hosting.calls.cancel(self.ticket);
    }
}

/// Tells the call when its reply was called, or never will be.
struct Over(Arc<Call>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn submission(
    call: Call,
    terms: Terms,
    timeout: Option<std::time::Duration>,
    reply: Reply<Answer>,
) -> Submission<Call, Answer> {
    let call = Arc::new(call);
    let over = Over(Arc::clone(&call));
    Submission {
        client: terms.client,
        cost: 1,
        seq_len: 0,
        bytes: call.item.bytes.len() as u64,
        shape: ShapeKey::default(),
        priority: terms.priority,
        timeout,
        reply: Box::new(move |result| {
            reply(result);
            drop(over);
        }),
        input: call,
    }
}
