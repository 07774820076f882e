//! What a server's log says: which requests came, how long batches took, and what it came to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::arrivals::Arrival;
use super::report::{Report, Tally};
use super::service::{BatchTime, Noise, Service};
use super::service_group;
use crate::bucket::{Buckets, padded};
use crate::cost_model::CostModel;
use crate::entry::{BatchId, Entry, GroupKey, InstanceId, Ticket};
use crate::replay::Event;
use crate::scheduler::{Outcome, SchedulerConfig, Verdict};
use crate::time::Time;

/// A recorded run, for simulations of the same requests.
#[derive(Debug, Clone)]
pub struct Trace {
    /// What the server's scheduler was made with.
    pub config: SchedulerConfig,
    /// Every request, admitted or not, the first at [`Time::ZERO`].
    pub arrivals: Vec<Arrival>,
    /// What happened to them then.
    pub report: Report,
    costs: CostModel,
    /// Those that completed, in the order of their ends.
    batches: Vec<Ran>,
    origin: Time,
}

impl Trace {
    /// A device as fast as the recorded one, and as variable; `None` where no batch completed.
    pub fn service(&self, seed: u64) -> Option<Service> {
        let factors = self.batches.iter().filter_map(|batch| {
            let Shape { group, items, elements } = batch.shape;
            let expected = self.costs.predict(group, items, elements)?.as_secs_f64();
            let began = Time::ZERO + batch.began.since(self.origin);
            (expected > 0.0).then(|| (began, batch.took.as_secs_f64() / expected))
        });
        let mut factors: Vec<(Time, f64)> = factors.collect();
        factors.sort_by_key(|(began, _)| *began);
        (!factors.is_empty()).then(|| Service {
            time: BatchTime::Fitted(Box::new(self.costs.clone())),
            noise: Noise::Recorded(factors),
            failures: 0.0,
            seed,
        })
    }

    /// The fitted time of a batch: seconds before its first item, for each item, and for each element.
    pub fn fit(&self) -> (f64, f64, f64) {
        self.costs.fits().first().map_or((0.0, 0.0, 0.0), |fit| (fit.a, fit.b, fit.c))
    }
}

/// Reads a log, event by event.
#[derive(Debug, Default)]
pub struct Recording {
    run: Option<Run>,
}

/// The part of a log that begins with its last start.
#[derive(Debug)]
struct Run {
    config: SchedulerConfig,
    origin: Option<Time>,
    arrivals: Vec<Arrival>,
    tally: Tally,
    buckets: Buckets,
    /// Admitted and not ended: the group it waits in, and its place among the arrivals.
    live: BTreeMap<Ticket, (Entry, GroupKey, usize)>,
    running: BTreeMap<BatchId, Running>,
    /// When the last batch ended of each instance that has not planned since: if it finds work when it does,
    /// what it did until then (answering callers, above all) kept that work waiting.
    between: BTreeMap<InstanceId, Time>,
    costs: CostModel,
    batches: Vec<Ran>,
}

#[derive(Debug)]
struct Running {
    instance: InstanceId,
    began: Time,
    shape: Shape,
}

/// A batch that completed.
#[derive(Debug, Clone)]
struct Ran {
    began: Time,
    took: Duration,
    shape: Shape,
}

/// What a batch's time depends on.
#[derive(Debug, Clone, Copy)]
struct Shape {
    group: GroupKey,
    items: u32,
    elements: u64,
}

impl Recording {
    /// A log of which nothing is read.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next event. One that begins a new scheduler makes those before it forgotten; one before the
    /// first start says nothing.
    pub fn read(&mut self, event: Event) {
        if let Event::Start { config } = event {
            self.run = Some(Run::new(config));
        } else if let Some(run) = &mut self.run {
            run.read(event);
        }
    }

    /// What was read; `None` without a request.
    pub fn finish(self) -> Option<Trace> {
        let Run { config, origin, arrivals, tally, costs, batches, .. } = self.run?;
        let report = tally.report(config.instances.max(1));
        Some(Trace { config, arrivals, report, costs, batches, origin: origin? })
    }
}

impl Run {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            buckets: Buckets::new(config.buckets.clone()),
            config,
            origin: None,
            arrivals: Vec::new(),
            tally: Tally::default(),
            live: BTreeMap::new(),
            running: BTreeMap::new(),
            between: BTreeMap::new(),
            costs: CostModel::default(),
            batches: Vec::new(),
        }
    }

    fn read(&mut self, event: Event) {
        match event {
            Event::Submit { now, entry, rejection } => {
                self.arrived(now, &entry);
                match rejection {
                    Some(rejection) => self.tally.refused(rejection.reason()),
                    None => self.admitted(entry),
                }
            }
            Event::Cancel { now, ticket } => {
                // Ended, or unknown, when there is nobody to miss.
                if let Some((entry, _, place)) = self.live.remove(&ticket) {
                    self.arrivals[place].patience = Some(now.since(entry.arrived));
                    self.tally.cancelled();
                }
            }
            Event::Plan { now, instance, batch, verdicts, .. } => {
                self.ended(now, &verdicts);
                let began = self.between.remove(&instance).unwrap_or(now);
                if let Some((id, tickets)) = batch
                    && let Some(shape) = self.started(now, &tickets)
                {
                    self.running.insert(id, Running { instance, began, shape });
                }
            }
            Event::Complete { now, batch, report, verdicts } => {
                if let Some(running) = self.running.remove(&batch) {
                    self.tally.ended(now, report.busy);
                    self.learn(now, running, report.outcome);
                }
                self.ended(now, &verdicts);
            }
            Event::Expire { now, verdicts } => self.ended(now, &verdicts),
            Event::Start { .. } | Event::Flush { .. } | Event::Drain | Event::ResetBreaker => {}
        }
    }

    fn arrived(&mut self, now: Time, entry: &Entry) {
        self.tally.submitted(now);
        let origin = *self.origin.get_or_insert(now);
        self.arrivals.push(Arrival {
            at: Time::ZERO + now.since(origin),
            client: entry.client,
            cost: entry.cost,
            seq_len: entry.seq_len,
            bytes: entry.bytes,
            shape: entry.shape,
            priority: entry.priority,
            timeout: entry.deadline.map(|deadline| deadline.since(now)),
            patience: None,
        });
    }

    /// As the scheduler does, so that buckets are where they were.
    fn admitted(&mut self, entry: Entry) {
        let mut bound = 0;
        if entry.seq_len > 0 {
            self.buckets.observe(entry.seq_len);
            bound = self.buckets.bound(entry.seq_len);
        }
        let group = GroupKey { shape: entry.shape, bound };
        self.live.insert(entry.ticket, (entry, group, self.arrivals.len() - 1));
    }

    fn started(&mut self, now: Time, tickets: &[Ticket]) -> Option<Shape> {
        let found: Vec<_> = tickets.iter().filter_map(|ticket| self.live.get(ticket)).collect();
        let entries: Vec<Entry> = found.iter().map(|(entry, ..)| entry.clone()).collect();
        let (_, group, _) = found.first()?;
        let longest = entries.iter().map(|entry| entry.seq_len).max().unwrap_or_default();
        let elements = match longest {
            0 => entries.iter().map(|entry| u64::from(entry.cost)).sum(),
            _ => {
                let length = padded(self.config.buckets.strategy, group.bound, longest);
                entries.len() as u64 * u64::from(length)
            }
        };
        self.tally.started(now, &entries, elements);
        let items = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        Some(Shape { group: service_group(&entries), items, elements })
    }

    /// The whole time that the instance was not free, not the model's alone.
    fn learn(&mut self, now: Time, batch: Running, outcome: Outcome) {
        self.between.insert(batch.instance, now);
        if outcome == Outcome::Completed {
            let Running { began, shape, .. } = batch;
            let took = now.since(began);
            self.costs.observe(shape.group, shape.items, shape.elements, took);
            self.batches.push(Ran { began, took, shape });
        }
    }

    fn ended(&mut self, now: Time, verdicts: &[(Ticket, Verdict)]) {
        for (ticket, verdict) in verdicts {
            let Some((entry, ..)) = self.live.remove(ticket) else { continue };
            match verdict {
                Verdict::Completed => self.tally.completed(now, &entry),
                _ => self.tally.lost(now, *verdict),
            }
        }
    }
}
