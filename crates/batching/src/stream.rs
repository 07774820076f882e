//! A stream of records through one function: what it runs next, what is assembled ahead of it, and who may
//! enter.
//!
//! It is a [`Scheduler`] with the payloads of its entries for a driver on one thread, such as an event loop:
//! nothing here waits or locks. The driver calls [`Stream::assemble`] when [`Stream::due`] says so, runs what
//! [`Stream::start`] gives it, and reports to [`Stream::complete`].
//!
//! Batches leave the queue as soon as they are ripe, also while another runs, until as many are assembled as
//! may be. So there is at most one that grows, and the queue's own bound counts only behind those.

use std::collections::VecDeque;
use std::time::Duration;

use crate::entry::{BatchId, Entry, InstanceId, Ticket};
use crate::hash::TicketMap;
use crate::policy::{Dispatch, Mode};
use crate::scheduler::{BatchReport, Isolation, Next, Outcome, Scheduler, SchedulerConfig};
use crate::time::Time;

/// The one instance: the function that runs batches.
const INSTANCE: InstanceId = InstanceId(0);

/// The limits of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// A batch ends at this cost; a record above it runs alone.
    pub target_cost: u32,
    /// Most records in a batch; at least 1.
    pub max_batch_size: u32,
    /// A smaller batch is not assembled ahead: it grows until the function is free.
    pub min_batch_size: u32,
    /// A batch ends when its first record has waited for so long.
    pub max_wait: Duration,
    /// Most records behind the batch that is being assembled.
    pub max_queue_size: u32,
    /// Batches assembled ahead while one runs, beside the one that is being assembled.
    pub prefetch_batches: u32,
}

/// What a stream did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// Records let in.
    pub submitted: u64,
    /// Records that were run, those of failed batches included.
    pub completed: u64,
    /// Batches that ended.
    pub batches: u64,
    /// The summed cost of what was run.
    pub cost: u64,
    /// How long a batch was running.
    pub busy: Duration,
    /// How long the stream was open and nothing ran.
    pub idle: Duration,
}

#[derive(Debug, Clone)]
struct Assembled<T> {
    id: BatchId,
    records: Vec<T>,
}

/// The records on their way to one function, which runs one batch at a time.
#[derive(Debug, Clone)]
pub struct Stream<T> {
    config: StreamConfig,
    scheduler: Scheduler,
    payloads: TicketMap<T>,
    next_ticket: u64,
    ahead: VecDeque<Assembled<T>>,
    running: Option<(BatchId, Time)>,
    due: Option<Time>,
    draining: bool,
    stats: StreamStats,
    /// Since when `stats.idle` and `stats.busy` lack what passes; `None` while closed.
    counted: Option<Time>,
}

impl<T> Stream<T> {
    /// An empty stream, which is closed.
    pub fn new(config: StreamConfig) -> Self {
        Self {
            scheduler: Scheduler::new(scheduling(&config)),
            config,
            payloads: TicketMap::default(),
            next_ticket: 0,
            ahead: VecDeque::new(),
            running: None,
            due: None,
            draining: false,
            stats: StreamStats::default(),
            counted: None,
        }
    }

    /// Lets records in from now on.
    pub fn open(&mut self, now: Time) {
        self.draining = false;
        self.counted.get_or_insert(now);
    }

    /// Lets what waits leave without waiting for company, and what comes from now on too.
    pub fn drain(&mut self, now: Time) {
        self.draining = true;
        self.assemble(now);
    }

    /// Ends the time that counts as busy or idle, once nothing is left to run.
    pub fn close(&mut self, now: Time) {
        self.count(now);
        self.counted = None;
    }

    /// Forgets everything, and gives back what had not begun to run. The batch that runs is nobody's then.
    pub fn abandon(&mut self, now: Time) -> Vec<T> {
        self.close(now);
        self.scheduler = Scheduler::new(scheduling(&self.config));
        self.running = None;
        self.due = None;
        let ahead = self.ahead.drain(..).flat_map(|batch| batch.records);
        ahead.chain(self.payloads.drain().map(|(_, record)| record)).collect()
    }

    /// Brings a record that costs so much.
    ///
    /// # Errors
    /// Gives it back where it has no place.
    pub fn submit(&mut self, now: Time, cost: u32, record: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(record);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        // What costs as much as a whole batch shares none with anything that costs at all.
        let cost = cost.clamp(1, self.config.target_cost.max(1));
        let entry = Entry { ticket, cost, arrived: now, ..Entry::default() };
        if self.scheduler.submit(now, entry).is_err() {
            return Err(record);
        }
        self.payloads.insert(ticket, record);
        self.stats.submitted += 1;
        let waiting = self.scheduler.queued().entries;
        // At any other size nothing changes: the window of the first of them is known.
        if waiting == 1 || waiting == self.config.min_batch_size as usize || self.is_full() {
            self.assemble(now);
        }
        Ok(())
    }

    /// Whether another record has a place.
    pub fn has_room(&self) -> bool {
        !self.is_ahead() || self.scheduler.queued().entries < self.config.max_queue_size as usize
    }

    /// Takes the batches that are ripe out of the queue, as many as may be ahead.
    pub fn assemble(&mut self, now: Time) {
        self.due = None;
        if self.draining {
            self.scheduler.flush(now);
        }
        while !self.is_ahead() && self.scheduler.has_work() && !self.keeps_growing() {
            // Nothing has a deadline or needs memory, so that nobody is ever given up.
            match self.scheduler.plan(now, INSTANCE, u64::MAX).next {
                Next::Run(batch) => {
                    let records =
                        batch.entries.iter().filter_map(|entry| self.payloads.remove(&entry.ticket));
                    self.ahead.push_back(Assembled { id: batch.id, records: records.collect() });
                }
                Next::WaitUntil(at) => {
                    self.due = Some(at);
                    return;
                }
                Next::Idle => return,
            }
        }
    }

    /// When to assemble again; `None` where only a submit or the end of a batch changes anything.
    pub fn due(&self) -> Option<Time> {
        self.due
    }

    /// Whether [`Stream::start`] has a batch to give.
    pub fn is_startable(&self) -> bool {
        self.running.is_none() && !self.ahead.is_empty()
    }

    /// The batch to run now, if none runs and one is assembled.
    pub fn start(&mut self, now: Time) -> Option<Vec<T>> {
        if self.running.is_some() {
            return None;
        }
        let batch = self.ahead.pop_front()?;
        self.count(now);
        self.running = Some((batch.id, now));
        self.assemble(now);
        Some(batch.records)
    }

    /// Ends the batch that runs, of which so many `records` of so much `cost` were really run.
    pub fn complete(&mut self, now: Time, outcome: Outcome, records: u64, cost: u64) {
        self.count(now);
        let Some((id, started)) = self.running.take() else { return };
        let report = BatchReport { outcome, busy: now.since(started), peak_bytes: None };
        // Every verdict is that of the batch.
        self.scheduler.complete(now, id, report);
        self.stats.batches += u64::from(records > 0);
        self.stats.completed += records;
        self.stats.cost += cost;
        self.assemble(now);
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.running.is_none() && self.ahead.is_empty() && !self.scheduler.has_work()
    }

    /// What it did until now.
    pub fn stats(&self, now: Time) -> StreamStats {
        let mut stats = self.stats;
        self.add_time(&mut stats, now);
        stats
    }

    fn count(&mut self, now: Time) {
        let mut stats = self.stats;
        self.add_time(&mut stats, now);
        self.stats = stats;
        self.counted = self.counted.map(|_| now);
    }

    fn add_time(&self, stats: &mut StreamStats, now: Time) {
        let passed = self.counted.map_or(Duration::ZERO, |counted| now.since(counted));
        match self.running {
            Some(_) => stats.busy += passed,
            None => stats.idle += passed,
        }
    }

    /// Whether all batches that may be assembled are.
    fn is_ahead(&self) -> bool {
        // Those ahead, and the one that is being assembled.
        let most = self.config.prefetch_batches as usize + 2;
        self.ahead.len() + usize::from(self.running.is_some()) >= most
    }

    fn is_full(&self) -> bool {
        let waiting = self.scheduler.queued();
        waiting.entries >= self.config.max_batch_size as usize
            || waiting.cost >= u64::from(self.config.target_cost)
    }

    /// Whether the next batch is too small to be assembled while the function is busy.
    fn keeps_growing(&self) -> bool {
        let busy = self.running.is_some() || !self.ahead.is_empty();
        let small = self.scheduler.queued().entries < self.config.min_batch_size as usize;
        busy && small && !self.draining && !self.is_full()
    }
}

fn scheduling(config: &StreamConfig) -> SchedulerConfig {
    SchedulerConfig {
        mode: Mode::Dynamic,
        dispatch: Dispatch::Window,
        isolation: Isolation::None,
        max_batch_size: config.max_batch_size,
        max_batch_cost: Some(u64::from(config.target_cost)),
        max_wait: config.max_wait,
        // A batch may grow in the queue before the bound counts.
        max_queue_size: config.max_queue_size.saturating_add(config.max_batch_size),
        priorities: false,
        ..SchedulerConfig::default()
    }
}
