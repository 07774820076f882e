//! A scheduler as plain lists: what any answer of the real one is judged by.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::properties::Op;
use crate::replay::Event;
use crate::scheduler::Batch;
use crate::{
    BatchId, BatchReport, Dispatch, Entry, InstanceId, Mode, Next, Outcome, Rejection, Scheduler,
    SchedulerConfig, ShapeKey, Ticket, Time, Verdict,
};

pub(super) type Checked = Result<(), TestCaseError>;

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Judged(Verdict),
    Cancelled,
}

/// The scheduler under test beside the lists that say what it may answer.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) config: SchedulerConfig,
    pub(super) scheduler: Scheduler,
    pub(super) waiting: Vec<Entry>,
    pub(super) running: BTreeMap<InstanceId, (BatchId, Vec<Entry>)>,
    pub(super) fates: BTreeMap<Ticket, Fate>,
    pub(super) log: Vec<Event>,
    admitted: u64,
    batches: u64,
    draining: bool,
}

/// Who leaves first, said without the scheduler's own words for it.
fn order(entry: &Entry) -> (Reverse<u8>, u64, u64) {
    let deadline = entry.deadline.map_or(u64::MAX, Time::as_nanos);
    (Reverse(entry.priority as u8), deadline, entry.ticket.0)
}

fn cost(entries: &[&Entry]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.cost)).sum()
}

fn due(entry: &Entry, now: Time) -> bool {
    entry.deadline.is_some_and(|deadline| deadline <= now)
}

impl World {
    pub(super) fn new(config: SchedulerConfig) -> Self {
        Self {
            now: Time::ZERO,
            scheduler: Scheduler::new(config.clone()),
            log: vec![Event::Start { config: config.clone() }],
            config,
            waiting: Vec::new(),
            running: BTreeMap::new(),
            fates: BTreeMap::new(),
            admitted: 0,
            batches: 0,
            draining: false,
        }
    }

    /// Makes one call, and checks its answer and what the scheduler says of itself.
    pub(super) fn step(&mut self, op: &Op) -> Checked {
        match *op {
            Op::Advance(ticks) => self.now = self.now + Duration::from_nanos(ticks),
            Op::Submit { cost, shape, priority, timeout } => {
                let now = self.now;
                let deadline = timeout.map(|timeout| now + Duration::from_nanos(timeout));
                let ticket = Ticket(self.admitted);
                let shape = ShapeKey(shape);
                let entry =
                    Entry { ticket, cost, shape, priority, deadline, arrived: now, ..Entry::default() };
                self.submit(entry)?;
            }
            Op::Cancel(which) if self.admitted > 0 => {
                self.cancel(Ticket(which.index(self.admitted as usize) as u64))?;
            }
            Op::Plan(instance) if !self.running.contains_key(&InstanceId(instance)) => {
                self.plan(InstanceId(instance))?;
            }
            Op::Complete { instance, completed } => self.complete(InstanceId(instance), completed)?,
            Op::Expire => self.expire()?,
            Op::Drain => {
                self.log.push(Event::Drain);
                self.scheduler.drain();
                self.draining = true;
            }
            Op::Cancel(_) | Op::Plan(_) => {}
        }
        self.check_totals()
    }

    fn check_totals(&self) -> Checked {
        let waiting: Vec<_> = self.waiting.iter().collect();
        prop_assert_eq!(self.scheduler.queued().entries, waiting.len(), "entries queued");
        prop_assert_eq!(self.scheduler.queued().cost, cost(&waiting), "cost queued");
        prop_assert!(waiting.len() <= self.config.max_queue_size as usize, "the queue is over its bound");
        prop_assert!(
            cost(&waiting) <= self.config.max_queue_cost.unwrap_or(u64::MAX),
            "queue cost over bound"
        );
        let soonest = self.live().filter_map(|entry| entry.deadline).min();
        prop_assert_eq!(self.scheduler.next_deadline(), soonest, "next deadline");
        Ok(())
    }

    /// Entries that owe a verdict.
    fn live(&self) -> impl Iterator<Item = &Entry> {
        let running = self.running.values().flat_map(|(_, entries)| entries);
        self.waiting.iter().chain(running).filter(|entry| !self.fates.contains_key(&entry.ticket))
    }

    fn end(&mut self, ticket: Ticket, fate: Fate) -> Checked {
        prop_assert!(ticket.0 < self.admitted, "#{} was never admitted", ticket.0);
        let before = self.fates.insert(ticket, fate);
        prop_assert_eq!(before, None, "#{} ended twice", ticket.0);
        self.waiting.retain(|entry| entry.ticket != ticket);
        Ok(())
    }

    fn submit(&mut self, entry: Entry) -> Checked {
        let answer = self.scheduler.submit(self.now, entry.clone());
        self.log.push(Event::Submit { now: self.now, entry: entry.clone(), rejection: answer.clone().err() });
        let limits = [self.config.max_batch_cost, self.config.max_queue_cost];
        let never = limits.into_iter().flatten().min().filter(|&limit| u64::from(entry.cost) > limit);
        let size = self.config.max_queue_size;
        let queued = cost(&self.waiting.iter().collect::<Vec<_>>());
        let costs = self.config.max_queue_cost.filter(|&limit| queued + u64::from(entry.cost) > limit);
        let mut reasons = Vec::new();
        reasons.extend(self.draining.then_some(Rejection::Draining));
        reasons.extend(never.map(|limit| Rejection::NeverFits { cost: entry.cost.into(), limit }));
        reasons.extend(due(&entry, self.now).then_some(Rejection::DeadlinePassed));
        reasons.extend((self.waiting.len() >= size as usize).then_some(Rejection::QueueFull { limit: size }));
        reasons.extend(costs.map(|limit| Rejection::QueueCostFull { cost: entry.cost, queued, limit }));
        prop_assert_eq!(answer, reasons.into_iter().next().map_or(Ok(()), Err), "submit");
        if matches!(self.log.last(), Some(Event::Submit { rejection: None, .. })) {
            self.waiting.push(entry);
            self.admitted += 1;
        }
        Ok(())
    }

    fn cancel(&mut self, ticket: Ticket) -> Checked {
        self.log.push(Event::Cancel { now: self.now, ticket });
        let was_queued = self.waiting.iter().any(|entry| entry.ticket == ticket);
        prop_assert_eq!(self.scheduler.cancel(self.now, ticket), was_queued, "cancel #{}", ticket.0);
        if self.fates.contains_key(&ticket) { Ok(()) } else { self.end(ticket, Fate::Cancelled) }
    }

    fn expire(&mut self) -> Checked {
        let (verdicts, next) = self.scheduler.expire(self.now);
        self.log.push(Event::Expire { now: self.now, verdicts: verdicts.clone() });
        self.check_expired(&verdicts)?;
        prop_assert_eq!(next, self.live().filter_map(|entry| entry.deadline).min(), "when to expire again");
        Ok(())
    }

    /// All that is due ended, each where it was, and nothing else did.
    fn check_expired(&mut self, verdicts: &[(Ticket, Verdict)]) -> Checked {
        for &(ticket, verdict) in verdicts {
            let queued = self.waiting.iter().any(|entry| entry.ticket == ticket);
            let expected = if queued { Verdict::ExpiredInQueue } else { Verdict::ExpiredRunning };
            prop_assert_eq!(verdict, expected, "verdict of #{}", ticket.0);
            let owed = self.live().find(|entry| entry.ticket == ticket);
            prop_assert!(owed.is_some_and(|entry| due(entry, self.now)), "#{} was not due", ticket.0);
            self.end(ticket, Fate::Judged(verdict))?;
        }
        let missed = self.live().find(|entry| due(entry, self.now)).map(|entry| entry.ticket);
        prop_assert_eq!(missed, None, "due, and not expired");
        Ok(())
    }

    fn complete(&mut self, instance: InstanceId, completed: bool) -> Checked {
        let Some((batch, entries)) = self.running.remove(&instance) else { return Ok(()) };
        let outcome = if completed { Outcome::Completed } else { Outcome::Failed };
        let report = BatchReport { outcome, busy: Duration::from_nanos(1), peak_bytes: None };
        let verdicts = self.scheduler.complete(self.now, batch, report);
        self.log.push(Event::Complete { now: self.now, batch, report, verdicts: verdicts.clone() });
        let verdict = if completed { Verdict::Completed } else { Verdict::Failed };
        let owed = entries.iter().filter(|entry| !self.fates.contains_key(&entry.ticket));
        let expected: Vec<_> = owed.map(|entry| (entry.ticket, verdict)).collect();
        prop_assert_eq!(&verdicts, &expected, "verdicts of batch {}", batch.0);
        verdicts.into_iter().try_for_each(|(ticket, verdict)| self.end(ticket, Fate::Judged(verdict)))
    }

    /// A free instance asks; says what it was told to wait for, if anything.
    pub(super) fn plan(&mut self, instance: InstanceId) -> Result<Option<Time>, TestCaseError> {
        let planned = self.scheduler.plan(self.now, instance, u64::MAX);
        let batch = match &planned.next {
            Next::Run(batch) => Some((batch.id, batch.entries.iter().map(|entry| entry.ticket).collect())),
            Next::Idle | Next::WaitUntil(_) => None,
        };
        self.log.push(Event::Plan { now: self.now, instance, free: u64::MAX, batch });
        self.check_expired(&planned.resolved)?;
        match planned.next {
            Next::Idle => {
                prop_assert_eq!(self.waiting.len(), 0, "idle while something waits");
                Ok(None)
            }
            Next::WaitUntil(at) => {
                let ends = self.shapes().into_iter().map(|shape| self.may_leave(shape)).min();
                prop_assert!(at > self.now, "told to wait for {at:?}");
                prop_assert_eq!(Some(at), ends, "told to wait for something else than the next window");
                Ok(Some(at))
            }
            Next::Run(batch) => self.check_batch(instance, batch).map(|()| None),
        }
    }

    fn shapes(&self) -> Vec<ShapeKey> {
        let mut shapes: Vec<_> = self.waiting.iter().map(|entry| entry.shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// The waiting entries of `shape`, most urgent first.
    fn of_shape(&self, shape: ShapeKey) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.waiting.iter().filter(|entry| entry.shape == shape).collect();
        entries.sort_by_key(|entry| order(entry));
        entries
    }

    /// The earliest instant, perhaps past, at which the waiting entries of `shape` may leave.
    fn may_leave(&self, shape: ShapeKey) -> Time {
        let entries = self.of_shape(shape);
        let full = entries.len() >= self.config.max_batch_size as usize
            || self.config.max_batch_cost.is_some_and(|limit| cost(&entries) >= limit);
        let eager = self.config.mode == Mode::Dynamic && self.config.dispatch == Dispatch::Eager;
        if full || eager || self.draining {
            return Time::ZERO;
        }
        let oldest = entries.iter().map(|entry| entry.arrived).min().unwrap_or(Time::MAX);
        oldest + self.config.max_wait
    }

    fn check_batch(&mut self, instance: InstanceId, batch: Batch) -> Checked {
        prop_assert_eq!(batch.id, BatchId(self.batches), "batch ids");
        self.batches += 1;
        let Some(first) = batch.entries.first() else {
            return Err(TestCaseError::fail("an empty batch"));
        };
        let shape = first.shape;
        let (size, limit) = (self.config.max_batch_size as usize, self.config.max_batch_cost);
        let fits = |taken: &[&Entry]| taken.len() <= size && limit.is_none_or(|limit| cost(taken) <= limit);
        let taken: Vec<_> = batch.entries.iter().collect();
        let waiting = self.of_shape(shape);
        prop_assert!(taken.iter().all(|entry| entry.shape == shape), "a batch of mixed shapes");
        prop_assert!(fits(&taken), "a batch over its limits");
        let expected = waiting.get(..taken.len());
        prop_assert_eq!(Some(&taken[..]), expected, "not the most urgent of its shape, in their order");
        prop_assert!(
            waiting.get(..=taken.len()).is_none_or(|one_more| !fits(one_more)),
            "one more would have fitted"
        );
        prop_assert!(self.may_leave(shape) <= self.now, "left before it might");
        for other in self.shapes().into_iter().filter(|&other| self.may_leave(other) <= self.now) {
            let head = self.of_shape(other)[0];
            prop_assert!(order(first) <= order(head), "#{} was more urgent", head.ticket.0);
        }
        self.waiting.retain(|entry| !batch.entries.iter().any(|taken| taken.ticket == entry.ticket));
        self.running.insert(instance, (batch.id, batch.entries));
        Ok(())
    }

    /// Runs everything that is left, and checks that all ended and nothing is remembered.
    pub(super) fn finish(&mut self) -> Checked {
        let instance = InstanceId(0);
        for busy in 0..self.running.len() + 4 {
            self.complete(InstanceId(busy as u32), true)?;
        }
        while !self.waiting.is_empty() {
            if let Some(at) = self.plan(instance)? {
                prop_assert!(at > self.now, "time does not go on");
                self.now = at;
            }
            self.complete(instance, true)?;
        }
        self.expire()?;
        let lost: Vec<_> = (0..self.admitted).filter(|&id| !self.fates.contains_key(&Ticket(id))).collect();
        prop_assert_eq!(lost, Vec::<u64>::new(), "admitted, and never ended");
        prop_assert!(self.scheduler.remembers_nothing(), "a trace remains: {:?}", self.scheduler);
        self.check_totals()
    }
}
