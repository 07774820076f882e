//! The scheduler under test beside the reference: what any answer of the one is judged by.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::properties::{Asked, Op};
use super::reference::{Expected, Limits, Outlook, Reference};
use crate::replay::Event;
use crate::scheduler::Batch;
use crate::{
    BatchId, BatchReport, ClientId, Entry, GroupKey, InstanceId, Isolation, Next, Outcome, PaddingStrategy,
    Priority, Rejection, Scheduler, SchedulerConfig, ShapeKey, Ticket, Time, Verdict,
};

pub(super) type Checked = Result<(), TestCaseError>;

/// Completed batches from which on predictions decide.
const WELL_KNOWN: u64 = 8;
/// Part of window and objective that a wait may be predicted to take.
const MOST_WAIT: f64 = 1.5;

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Judged(Verdict),
    Cancelled,
}

/// A batch on an instance.
pub(super) struct Run {
    id: BatchId,
    pub(super) entries: Vec<Entry>,
    /// When it is predicted to end.
    end: Time,
}

/// The scheduler under test beside the lists that say what it may answer.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) scheduler: Scheduler,
    pub(super) reference: Reference,
    pub(super) running: BTreeMap<InstanceId, Run>,
    pub(super) fates: BTreeMap<Ticket, Fate>,
    pub(super) log: Vec<Event>,
    admitted: u64,
    batches: u64,
    completed: u64,
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
            reference: Reference::new(config),
            running: BTreeMap::new(),
            fates: BTreeMap::new(),
            admitted: 0,
            batches: 0,
            completed: 0,
        }
    }

    fn config(&self) -> &SchedulerConfig {
        &self.reference.config
    }

    /// Makes one call, and checks its answer and what the scheduler says of itself.
    pub(super) fn step(&mut self, op: &Op) -> Checked {
        match *op {
            Op::Advance(ticks) => self.now = self.now + Duration::from_nanos(ticks),
            Op::Submit(ref asked) => self.submit(asked)?,
            Op::Cancel(which) if self.admitted > 0 => {
                self.cancel(Ticket(which.index(self.admitted as usize) as u64))?;
            }
            Op::Plan { instance, free } if !self.running.contains_key(&InstanceId(instance)) => {
                self.plan(InstanceId(instance), free)?;
            }
            Op::Complete { instance, outcome, busy } => {
                self.complete(InstanceId(instance), outcome, Duration::from_nanos(busy))?;
            }
            Op::Expire => self.expire()?,
            Op::Flush => {
                self.log.push(Event::Flush { now: self.now });
                self.scheduler.flush(self.now);
                self.reference.flushed = Some(self.now);
            }
            Op::Drain => {
                self.log.push(Event::Drain);
                self.scheduler.drain();
                self.reference.draining = true;
            }
            Op::Cancel(_) | Op::Plan { .. } => {}
        }
        self.check_totals()
    }

    fn queued(&self) -> (usize, u64, u64) {
        let waiting = &self.reference.waiting;
        let cost = waiting.iter().map(|entry| u64::from(entry.cost)).sum();
        (waiting.len(), cost, waiting.iter().map(|entry| entry.bytes).sum())
    }

    fn check_totals(&self) -> Checked {
        let (entries, cost, bytes) = self.queued();
        let total = self.scheduler.queued();
        prop_assert_eq!((total.entries, total.cost, total.bytes), (entries, cost, bytes), "what is queued");
        let config = self.config();
        prop_assert!(entries <= config.max_queue_size as usize, "the queue is over its bound");
        prop_assert!(cost <= config.max_queue_cost.unwrap_or(u64::MAX), "queue cost over its bound");
        prop_assert!(bytes <= config.max_queue_bytes.unwrap_or(u64::MAX), "queue bytes over their bound");
        let soonest = self.live().filter_map(|entry| entry.deadline).min();
        prop_assert_eq!(self.scheduler.next_deadline(), soonest, "next deadline");
        let most = config.max_batch_size.max(config.adaptive.high_load_batch_size);
        prop_assert!((1..=most).contains(&self.scheduler.limit()), "limit {}", self.scheduler.limit());
        prop_assert!(self.scheduler.max_wait() <= config.max_wait, "waits longer than it may");
        Ok(())
    }

    /// Entries that owe a verdict.
    fn live(&self) -> impl Iterator<Item = &Entry> {
        let running = self.running.values().flat_map(|run| &run.entries);
        let taken = self.reference.retries.iter().flatten().chain(running);
        self.reference.waiting.iter().chain(taken).filter(|entry| !self.fates.contains_key(&entry.ticket))
    }

    fn end(&mut self, ticket: Ticket, fate: Fate) -> Checked {
        prop_assert!(ticket.0 < self.admitted, "#{} was never admitted", ticket.0);
        let before = self.fates.insert(ticket, fate);
        prop_assert_eq!(before, None, "#{} ended twice", ticket.0);
        if self.is_queued(ticket) {
            self.reference.breaker.iter_mut().for_each(|breaker| breaker.ended_in_queue(ticket));
        }
        self.reference.leaves(ticket);
        let retries = &mut self.reference.retries;
        retries.iter_mut().for_each(|retry| retry.retain(|entry| entry.ticket != ticket));
        retries.retain(|retry| !retry.is_empty());
        Ok(())
    }

    fn is_queued(&self, ticket: Ticket) -> bool {
        self.reference.waiting.iter().any(|entry| entry.ticket == ticket)
    }

    fn submit(&mut self, asked: &Asked) -> Checked {
        let padded = asked.shape > 0;
        let mut entry = Entry {
            ticket: Ticket(self.admitted),
            client: ClientId(asked.client),
            cost: if padded { asked.length } else { asked.cost },
            seq_len: if padded { asked.length } else { 0 },
            bytes: asked.bytes,
            shape: ShapeKey(asked.shape),
            priority: asked.priority,
            deadline: asked.timeout.map(|timeout| self.now + Duration::from_nanos(timeout)),
            arrived: self.now,
        };
        let as_asked = entry.clone();
        if !self.config().priorities {
            entry.priority = Priority::Normal;
        }
        let expected = self.why_not(&entry);
        let answer = self.scheduler.submit(self.now, as_asked.clone());
        self.log.push(Event::Submit { now: self.now, entry: as_asked, rejection: answer.clone().err() });
        prop_assert_eq!(&answer, &expected.map_or(Ok(()), Err), "submit");
        if answer.is_ok() {
            self.reference.breaker.iter_mut().for_each(|breaker| breaker.admitted(self.now, entry.ticket));
            self.reference.joins(entry);
            self.admitted += 1;
        }
        Ok(())
    }

    /// The first reason to refuse it.
    fn why_not(&self, entry: &Entry) -> Option<Rejection> {
        let config = self.config();
        let (entries, queued_cost, queued_bytes) = self.queued();
        let (cost, bytes, size) = (entry.cost, entry.bytes, config.max_queue_size);
        let alone = self.reference.elements(std::slice::from_ref(entry));
        let batch = config.max_batch_cost.filter(|&limit| alone > limit).map(|limit| (limit, alone));
        let queue = config.max_queue_cost.filter(|&limit| u64::from(cost) > limit);
        let never = batch.into_iter().chain(queue.map(|limit| (limit, u64::from(cost)))).min();
        let needed = self.reference.bytes(std::slice::from_ref(entry));
        let full = |limit: &u64, queued: u64, more: u64| queued + more > *limit;
        let queue_cost = config.max_queue_cost.filter(|limit| full(limit, queued_cost, cost.into()));
        let queue_bytes = config.max_queue_bytes.filter(|limit| full(limit, queued_bytes, bytes));
        let memory = config.memory_limit.filter(|&limit| needed > limit);
        let too_large = config.max_queue_bytes.filter(|&limit| bytes > limit);
        let breaker = self.reference.breaker.as_ref().and_then(|breaker| breaker.refuses(self.now));
        [
            self.reference.draining.then_some(Rejection::Draining),
            never.map(|(limit, cost)| Rejection::NeverFits { cost, limit }),
            too_large.map(|limit| Rejection::NeverFitsMemory { needed: bytes, limit }),
            memory.map(|limit| Rejection::NeverFitsMemory { needed, limit }),
            due(entry, self.now).then_some(Rejection::DeadlinePassed),
            (entries >= size as usize).then_some(Rejection::QueueFull { limit: size }),
            queue_cost.map(|limit| Rejection::QueueCostFull { cost, queued: queued_cost, limit }),
            queue_bytes.map(|limit| Rejection::QueueBytesFull { bytes, queued: queued_bytes, limit }),
            self.too_late(entry),
            breaker.map(|retry_after| Rejection::BreakerOpen { retry_after }),
        ]
        .into_iter()
        .flatten()
        .next()
    }

    /// Whether the prediction says that it would be answered too late, and the prediction counts.
    fn too_late(&self, entry: &Entry) -> Option<Rejection> {
        let idle = !self.scheduler.has_work() && self.running.is_empty();
        if self.completed < WELL_KNOWN || idle {
            return None;
        }
        let (wait, run) = self.scheduler.predicted(self.now, entry.priority, entry.cost)?;
        if entry.deadline.is_some_and(|deadline| self.now + wait + run > deadline) {
            return Some(Rejection::DeadlineUnmeetable { predicted: wait + run });
        }
        let longest = (self.scheduler.max_wait() + self.config().latency_slo?).as_secs_f64() * MOST_WAIT;
        let limit = Duration::from_secs_f64(longest);
        let refused = wait > limit && entry.priority != Priority::Critical;
        refused.then_some(Rejection::Overloaded { predicted: wait, limit })
    }

    fn cancel(&mut self, ticket: Ticket) -> Checked {
        self.log.push(Event::Cancel { now: self.now, ticket });
        let was_queued = self.is_queued(ticket);
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
            let queued = self.is_queued(ticket);
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

    fn complete(&mut self, instance: InstanceId, outcome: Outcome, busy: Duration) -> Checked {
        let Some(Run { id: batch, entries, .. }) = self.running.remove(&instance) else { return Ok(()) };
        let report = BatchReport { outcome, busy, peak_bytes: None };
        let verdicts = self.scheduler.complete(self.now, batch, report);
        self.log.push(Event::Complete { now: self.now, batch, report, verdicts: verdicts.clone() });
        self.completed += u64::from(outcome == Outcome::Completed && !busy.is_zero());
        let expected = self.judge(entries, outcome);
        prop_assert_eq!(&verdicts, &expected, "verdicts of batch {}", batch.0);
        verdicts.into_iter().try_for_each(|(ticket, verdict)| self.end(ticket, Fate::Judged(verdict)))
    }

    /// Who has a verdict now that the batch ended so; the others run again.
    fn judge(&mut self, entries: Vec<Entry>, outcome: Outcome) -> Vec<(Ticket, Verdict)> {
        let (now, alone) = (self.now, entries.len() == 1);
        let open = self.reference.breaker.as_ref().is_some_and(|breaker| breaker.is_open(now));
        let bisect = self.config().isolation == Isolation::Bisect;
        let mut ended: Vec<_> =
            entries.into_iter().filter(|entry| !self.fates.contains_key(&entry.ticket)).collect();
        let verdict = match outcome {
            Outcome::Completed => Verdict::Completed,
            _ => Verdict::Failed,
        };
        match outcome {
            Outcome::Completed => self.reference.breaker.iter_mut().for_each(|it| it.succeeded(now)),
            Outcome::OutOfMemory if alone => {}
            Outcome::OutOfMemory => self.reference.halve(std::mem::take(&mut ended)),
            Outcome::Failed if bisect && !alone && !open => self.reference.halve(std::mem::take(&mut ended)),
            Outcome::Failed | Outcome::WrongLength => {
                if let Some(breaker) = &mut self.reference.breaker {
                    breaker.failed(now);
                    if breaker.is_open(now) {
                        ended.extend(std::mem::take(&mut self.reference.retries).into_iter().flatten());
                    }
                }
            }
        }
        ended.into_iter().map(|entry| (entry.ticket, verdict)).collect()
    }

    /// A free instance asks; says what it was told to wait for, if anything.
    pub(super) fn plan(&mut self, instance: InstanceId, free: u64) -> Result<Option<Time>, TestCaseError> {
        let planned = self.scheduler.plan(self.now, instance, free);
        self.log.push(Event::plan(self.now, instance, free, &planned));
        let (ended, expired): (Vec<_>, Vec<_>) =
            planned.resolved.iter().partition(|(_, verdict)| *verdict == Verdict::GivenUp);
        self.check_expired(&expired)?;
        let limits = Limits {
            items: self.scheduler.limit() as usize,
            max_wait: self.scheduler.max_wait(),
            elements: self.scheduler.memory().max_elements(),
            free,
        };
        let expected = self.expected(&limits, ended)?;
        match (planned.next, expected) {
            (Next::Idle, Expected::Idle) => Ok(None),
            (Next::WaitUntil(at), Expected::WaitUntil(expected)) if at == expected => Ok(Some(at)),
            (Next::Run(batch), Expected::Run(entries)) if batch.entries == entries => {
                self.started(instance, batch, &limits).map(|()| None)
            }
            (Next::Run(batch), Expected::RunAround(head)) if batch.entries.first() == Some(&head) => {
                let others = &batch.entries[1..];
                prop_assert!(others.iter().all(|entry| self.is_queued(entry.ticket)), "not from the queue");
                for entry in others.iter().filter(|entry| entry.priority != head.priority) {
                    let overtaken = self.reference.waiting.iter().find(|other| {
                        other.priority > entry.priority
                            && other.priority <= head.priority
                            && self.reference.group(other) == self.reference.group(&head)
                            && !batch.entries.contains(other)
                    });
                    prop_assert!(entry.priority < head.priority, "more urgent than its head");
                    prop_assert_eq!(overtaken, None, "overtook");
                }
                self.reference.left_around(others);
                self.started(instance, batch, &limits).map(|()| None)
            }
            (next, expected) => Err(TestCaseError::fail(format!("told {next:?} instead of {expected:?}"))),
        }
    }

    /// What a free instance has to be told, and that exactly those ended whom it has to give up.
    fn expected(
        &mut self,
        limits: &Limits,
        mut ended: Vec<(Ticket, Verdict)>,
    ) -> Result<Expected, TestCaseError> {
        let mut free = vec![self.now];
        let mut runs: Vec<_> = self.running.values().map(|run| (run.id, run.end.max(self.now))).collect();
        runs.sort_unstable();
        free.extend(runs.into_iter().map(|(_, end)| end));
        free.resize(self.config().instances.max(1) as usize, self.now);
        let soonest = self.live().filter_map(|entry| entry.deadline).min();
        let costs = (self.completed >= WELL_KNOWN).then(|| self.scheduler.costs());
        let outlook = Outlook { costs, free, soonest };
        let mut given_up = Vec::new();
        let expected = self.reference.plan(self.now, limits, &outlook, &mut given_up);
        for &ticket in &given_up {
            let before = self.fates.insert(ticket, Fate::Judged(Verdict::GivenUp));
            prop_assert_eq!(before, None, "#{} ended twice", ticket.0);
        }
        given_up.sort_unstable();
        ended.sort_unstable_by_key(|&(ticket, _)| ticket);
        prop_assert_eq!(
            ended.into_iter().map(|(ticket, _)| ticket).collect::<Vec<_>>(),
            given_up,
            "given up"
        );
        Ok(expected)
    }

    /// The limits again, in words of their own: the reference might be wrong in the same way.
    fn started(&mut self, instance: InstanceId, batch: Batch, limits: &Limits) -> Checked {
        prop_assert_eq!(batch.id, BatchId(self.batches), "batch ids");
        self.batches += 1;
        prop_assert!(!batch.entries.is_empty(), "an empty batch");
        let entries = &batch.entries;
        let (config, reference) = (self.config(), &self.reference);
        let group = reference.group(&entries[0]);
        prop_assert!(entries.iter().all(|entry| reference.group(entry) == group), "a batch of mixed groups");
        let longest = entries.iter().map(|entry| entry.seq_len).max().unwrap_or(0);
        if config.buckets.strategy == PaddingStrategy::None {
            prop_assert!(entries.iter().all(|entry| entry.seq_len == longest), "padded, and must not be");
        }
        prop_assert!(batch.padded_len >= longest, "padded to less than its longest");
        prop_assert_eq!(batch.elements, reference.elements(entries), "elements");
        prop_assert_eq!(batch.bytes, reference.bytes(entries), "bytes");
        prop_assert!(batch.elements <= config.max_batch_cost.unwrap_or(u64::MAX), "over its cost, padded");
        if config.bytes_per_element.is_some() {
            prop_assert!(batch.bytes <= config.memory_limit.unwrap_or(u64::MAX), "over its memory");
        }
        prop_assert!(batch.bytes <= limits.free, "over the memory of the device");
        let group = GroupKey { shape: group.0, bound: group.1 };
        let time = self.scheduler.costs().predict(group, batch.entries.len() as u32, batch.elements);
        let end = self.now + time.unwrap_or_default();
        self.running.insert(instance, Run { id: batch.id, entries: batch.entries, end });
        Ok(())
    }

    /// Runs everything that is left, and checks that all ended and nothing is remembered.
    pub(super) fn finish(&mut self) -> Checked {
        let instance = InstanceId(0);
        let busy = Duration::from_nanos(1);
        for other in self.running.keys().copied().collect::<Vec<_>>() {
            self.complete(other, Outcome::Completed, busy)?;
        }
        while !self.reference.waiting.is_empty() || !self.reference.retries.is_empty() {
            if let Some(at) = self.plan(instance, u64::MAX)? {
                prop_assert!(at > self.now, "time does not go on");
                self.now = at;
            }
            self.complete(instance, Outcome::Completed, busy)?;
        }
        // What was to run again may have ended first: the scheduler drops it when it comes to it.
        prop_assert_eq!(self.plan(instance, u64::MAX)?, None, "nothing is left to wait for");
        self.expire()?;
        let lost: Vec<_> = (0..self.admitted).filter(|&id| !self.fates.contains_key(&Ticket(id))).collect();
        prop_assert_eq!(lost, Vec::<u64>::new(), "admitted, and never ended");
        prop_assert!(self.scheduler.remembers_nothing(), "a trace remains: {:?}", self.scheduler);
        self.check_totals()
    }
}
