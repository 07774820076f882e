//! The request-level scheduler: who waits, who leaves together, who is answered without running.

mod admission;
mod config;
mod filling;
mod insight;
mod isolation;
mod planning;
pub(crate) mod triage;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::admission::Rejection;
pub use self::config::{Isolation, SchedulerConfig};
pub use self::isolation::Outcome;
use self::isolation::Retry;
pub use self::planning::{Batch, Next, Planned};
use crate::breaker::{Breaker, BreakerState};
use crate::bucket::Buckets;
use crate::cost_model::CostModel;
use crate::entry::{BatchId, Entry, GroupKey, InstanceId, Ticket};
use crate::hash::TicketMap;
use crate::load::{Arrivals, Utilization};
use crate::memory::MemoryModel;
use crate::order::{Key, Order};
use crate::padding::Splitter;
use crate::policy::adaptive::Adaptive;
use crate::policy::{Dispatch, Mode};
use crate::queue::{Queue, Total};
use crate::stats::Stats;
use crate::time::Time;

/// How an entry ended; the holder of the payloads answers its caller accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Its batch ran: the caller gets the model's own result for it.
    Completed,
    /// Its batch failed, and it will not run again: the caller gets the batch's error.
    Failed,
    /// It needs more memory than a batch may, as was learned while it waited.
    NeverFits,
    /// Its deadline passed while it waited.
    ExpiredInQueue,
    /// Its deadline could not be met any more while it waited, or only at the cost of more of the others'.
    GivenUp,
    /// Its deadline passed while its batch ran, or before it ran again.
    ExpiredRunning,
}

/// What an instance reports of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReport {
    /// How it ended.
    pub outcome: Outcome,
    /// How long the model ran.
    pub busy: Duration,
    /// The most bytes that the batch had allocated at once, where that is known.
    pub peak_bytes: Option<u64>,
}

/// Where an entry with a verdict outstanding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    /// In a batch that runs, or in part of a failed one that will run again.
    Taken,
}

#[derive(Debug, Clone)]
struct Running {
    instance: InstanceId,
    key: GroupKey,
    entries: Vec<Entry>,
    /// Padded tokens, or items where nothing is padded and all cost 1.
    elements: u64,
    started: Time,
    predicted: Option<Duration>,
}

/// The state machine: every call takes `now`, and none blocks.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    queue: Queue,
    /// Entries taken from the queue that still owe their callers a verdict, with their deadlines.
    owed: TicketMap<Time>,
    /// Deadlines of owed entries, soonest first.
    owed_dues: Order,
    running: BTreeMap<BatchId, Running>,
    retries: VecDeque<Retry>,
    next_batch: u64,
    draining: bool,
    /// What arrived no later leaves without waiting for company.
    flushed: Option<Time>,
    /// Whether a batch may leave earlier than an instance was last told.
    hastened: bool,
    costs: CostModel,
    arrivals: Arrivals,
    utilization: Utilization,
    adaptive: Option<Adaptive>,
    buckets: Buckets,
    splitter: Splitter,
    memory: MemoryModel,
    breaker: Option<Breaker>,
    stats: Stats,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        let adaptive = (config.mode == Mode::Adaptive).then(|| {
            Adaptive::new(config.adaptive.clone(), config.max_batch_size, config.max_wait, config.latency_slo)
        });
        Self {
            // Nobody is overdue before its window ends: a partial batch would leave too early.
            queue: Queue::new(config.ageing.map(|ageing| ageing.max(config.max_wait))),
            owed: TicketMap::default(),
            owed_dues: Order::default(),
            running: BTreeMap::new(),
            retries: VecDeque::new(),
            next_batch: 0,
            draining: false,
            flushed: None,
            hastened: false,
            costs: CostModel::default(),
            arrivals: Arrivals::default(),
            utilization: Utilization::new(config.instances),
            adaptive,
            buckets: Buckets::new(config.buckets.clone()),
            splitter: Splitter::default(),
            memory: MemoryModel::new(config.memory_limit, config.bytes_per_element),
            breaker: config.breaker.clone().map(Breaker::new),
            stats: Stats::default(),
            config,
        }
    }

    /// The limits and the policy it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// All that waits to run for the first time.
    pub fn queued(&self) -> Total {
        self.queue.total()
    }

    /// Whether a free instance may find anything to do, now or later.
    pub fn has_work(&self) -> bool {
        self.queue.total().entries > 0 || !self.retries.is_empty()
    }

    /// Most entries in a batch at present.
    pub fn limit(&self) -> u32 {
        self.adaptive.as_ref().map_or(self.config.max_batch_size, Adaptive::limit)
    }

    /// The longest wait for company at present.
    pub fn max_wait(&self) -> Duration {
        self.adaptive.as_ref().map_or(self.config.max_wait, Adaptive::max_wait)
    }

    /// How long batches take.
    pub fn costs(&self) -> &CostModel {
        &self.costs
    }

    /// What batches need of memory, and may have.
    pub fn memory(&self) -> &MemoryModel {
        &self.memory
    }

    /// Which lengths share a batch.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Whether the model is left alone because it failed; `None` without a breaker.
    pub fn breaker(&self, now: Time) -> Option<BreakerState> {
        self.breaker.as_ref().map(|breaker| breaker.state(now))
    }

    /// Lets requests in again, whatever happened before.
    pub fn reset_breaker(&mut self) {
        self.breaker.iter_mut().for_each(Breaker::reset);
    }

    /// Instances whose batch runs for longer than it may.
    pub fn stalled(&self, now: Time) -> impl Iterator<Item = InstanceId> {
        let limit = self.config.stall_after.unwrap_or(Duration::MAX);
        self.running
            .values()
            .filter(move |batch| now.since(batch.started) > limit)
            .map(|batch| batch.instance)
    }

    /// The soonest deadline of any live entry.
    pub fn next_deadline(&self) -> Option<Time> {
        self.soonest().map(|(deadline, _)| deadline)
    }

    /// The soonest deadline of those that owe a verdict, and whose.
    fn soonest(&self) -> Option<Key> {
        self.queue.soonest().into_iter().chain(self.owed_dues.first()).min()
    }

    /// Admits `entry`, whose ticket must be new, or says at once why not.
    pub fn submit(&mut self, now: Time, entry: Entry) -> Result<(), Rejection> {
        let entry = self.normalised(entry);
        self.stats.offered(now);
        if let Err(rejection) = self.admit(now, &entry) {
            self.stats.rejected(&rejection);
            return Err(rejection);
        }
        self.stats.admitted(entry.seq_len);
        if entry.seq_len > 0 {
            self.buckets.observe(entry.seq_len);
        }
        let key = self.group_of(&entry);
        self.arrivals.arrived(now, key);
        self.adaptive.iter_mut().for_each(|adaptive| adaptive.arrived(now, 1));
        self.queue.push(key, entry);
        self.hastened |= self.hastens(key);
        Ok(())
    }

    /// Forgets an entry whose caller left. True when it was still queued, so that it will never run.
    pub fn cancel(&mut self, _now: Time, ticket: Ticket) -> bool {
        let place = self.settle(ticket);
        if place.is_some() {
            self.stats.cancelled();
        }
        place == Some(Place::Queued)
    }

    /// Ends a batch. Entries that expired or were cancelled while it ran get no second verdict, those that
    /// run again get theirs from another batch; when the breaker opens, what was to run again fails too.
    pub fn complete(&mut self, now: Time, batch: BatchId, report: BatchReport) -> Vec<(Ticket, Verdict)> {
        let Some(batch) = self.running.remove(&batch) else { return Vec::new() };
        self.utilization.worked(now, report.busy);
        self.stats.ended(now, &report);
        if report.outcome == Outcome::Completed {
            self.learn(now, &batch, &report);
        }
        self.judge(now, batch, report.outcome)
    }

    fn learn(&mut self, now: Time, batch: &Running, report: &BatchReport) {
        let items = u32::try_from(batch.entries.len()).unwrap_or(u32::MAX);
        self.costs.observe(batch.key, items, batch.elements, report.busy);
        self.stats.learned(u64::from(items), batch.elements, || self.costs.overall_fit());
        self.memory.observe(batch.elements, report.peak_bytes.unwrap_or_default());
        if let Some(adaptive) = &mut self.adaptive {
            let next = adaptive.limit() + 1;
            let elements = batch.elements * u64::from(next) / u64::from(items.max(1));
            adaptive.completed(now, report.busy, self.costs.overall(next, elements));
        }
    }

    /// Ends entries whose deadline has passed, queued or running, and says when to call again.
    pub fn expire(&mut self, now: Time) -> (Vec<(Ticket, Verdict)>, Option<Time>) {
        (self.expire_due(now), self.next_deadline())
    }

    /// Takes no more work and lets what waits leave without waiting for company.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Lets what waits now leave without waiting for company; what comes later waits as before.
    pub fn flush(&mut self, now: Time) {
        self.flushed = Some(now);
        self.hastened = true;
    }

    /// Whether an instance that waits for a time it was told must ask again; the next answer is no.
    pub(crate) fn take_hastened(&mut self) -> bool {
        std::mem::take(&mut self.hastened)
    }

    /// Whether the last entry of a group may let a batch leave earlier than was planned without it: in a
    /// window that was told already, only the one that makes a batch full, or that is due first.
    fn hastens(&self, key: GroupKey) -> bool {
        let config = &self.config;
        let windows =
            config.mode == Mode::Fixed || config.mode == Mode::Dynamic && config.dispatch == Dispatch::Window;
        let total = self.queue.total_of(key);
        !windows
            || total.entries >= config.max_batch_size as usize
            || config.max_batch_cost.is_some_and(|limit| total.cost >= limit)
            || self.queue.soonest().is_some()
    }

    fn expire_due(&mut self, now: Time) -> Vec<(Ticket, Verdict)> {
        let mut expired = Vec::new();
        while let Some((deadline, ticket)) = self.soonest()
            && deadline <= now
        {
            let verdict = match self.settle(ticket) {
                Some(Place::Queued) => Verdict::ExpiredInQueue,
                Some(Place::Taken) => Verdict::ExpiredRunning,
                // The front always lives; the loop must end even if it did not.
                None => break,
            };
            self.stats.ended_without(verdict);
            expired.push((ticket, verdict));
        }
        expired
    }

    /// Ends an entry, which then has no further verdict and never runs; says where it was.
    /// `None` when it had ended before.
    fn settle(&mut self, ticket: Ticket) -> Option<Place> {
        // The smaller table first: most end after they ran.
        let Some(due) = self.owed.remove(&ticket) else {
            self.queue.remove(ticket)?;
            self.breaker.iter_mut().for_each(|breaker| breaker.ended(ticket));
            return Some(Place::Queued);
        };
        if due != Time::MAX {
            let owed = &self.owed;
            self.owed_dues.removed(|ticket| owed.contains_key(&ticket));
        }
        Some(Place::Taken)
    }

    /// Whether it remembers nothing of any entry: what ended must leave no trace.
    #[cfg(test)]
    pub(crate) fn remembers_nothing(&self) -> bool {
        self.queue.holds_nothing()
            && self.owed.is_empty()
            && self.owed_dues.is_empty()
            && self.running.is_empty()
            && self.retries.is_empty()
    }
}
