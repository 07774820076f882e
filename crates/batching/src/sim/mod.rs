//! A simulation: the same scheduler as in a server, on a virtual clock and with a device that only takes time.
//!
//! - `arrivals`: requests by chance; `trace`: requests from the log of a server, and what happened there
//! - `service`: how long batches take
//! - `report`: what it came to
//! - `random`: numbers that are the same for the same seed
//!
//! What a server does between its scheduler's calls takes no time here; what its instances do between two
//! batches is in the times of a trace.

mod arrivals;
pub(crate) mod random;
mod report;
mod service;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::iter::Peekable;
use std::time::Duration;

pub use self::arrivals::{Arrival, Lengths, Process, Traffic};
pub use self::report::Report;
use self::report::Tally;
use self::service::Device;
pub use self::service::{BatchTime, Noise, Service};
pub use self::trace::{Recording, Trace};
use crate::entry::{BatchId, Entry, GroupKey, InstanceId, Ticket};
use crate::scheduler::{Batch, BatchReport, Next, Outcome, Scheduler, SchedulerConfig, Verdict};
use crate::time::Time;

/// Requests between two calls of `progress`.
const PROGRESS_EVERY: u64 = 4_096;

/// Runs `workload`, which comes in order of time, through a scheduler of `config`, whose instances take
/// the time that `service` says; until every request has ended.
///
/// `progress` is called now and then with the number of requests submitted so far.
pub fn simulate(
    config: SchedulerConfig,
    workload: impl IntoIterator<Item = Arrival>,
    service: Service,
    progress: impl FnMut(u64),
) -> Report {
    let instances = config.instances.max(1);
    let simulation = Simulation {
        scheduler: Scheduler::new(config),
        device: service.device(),
        now: Time::ZERO,
        arrivals: workload.into_iter().peekable(),
        tickets: 0,
        free: (0..instances).map(|id| Reverse(InstanceId(id))).collect(),
        running: BinaryHeap::new(),
        wake: None,
        leaving: BinaryHeap::new(),
        leavers: BTreeSet::new(),
        tally: Tally::default(),
        progress,
    };
    simulation.run().report(instances)
}

struct Simulation<I: Iterator<Item = Arrival>, F> {
    scheduler: Scheduler,
    device: Device,
    now: Time,
    arrivals: Peekable<I>,
    /// Requests so far; the last one's ticket.
    tickets: u64,
    /// Instances that do nothing.
    free: BinaryHeap<Reverse<InstanceId>>,
    /// Batches by their end, soonest first.
    running: BinaryHeap<Reverse<Run>>,
    /// When a free instance asks again, having been told to wait.
    wake: Option<Time>,
    /// When callers lose patience, soonest first.
    leaving: BinaryHeap<Reverse<(Time, Ticket)>>,
    /// The impatient that have no answer yet.
    leavers: BTreeSet<Ticket>,
    tally: Tally,
    progress: F,
}

/// A batch on an instance.
struct Run {
    end: Time,
    id: BatchId,
    instance: InstanceId,
    report: BatchReport,
    entries: Vec<Entry>,
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        (self.end, self.id) == (other.end, other.id)
    }
}

impl Eq for Run {}

impl PartialOrd for Run {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Run {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.end, self.id).cmp(&(other.end, other.id))
    }
}

impl<I: Iterator<Item = Arrival>, F: FnMut(u64)> Simulation<I, F> {
    fn run(mut self) -> Tally {
        while let Some(next) = self.next_event() {
            // Never back, and all that happens at one instant happens before anybody plans.
            self.now = self.now.max(next);
            let ended = self.end_batches();
            self.let_callers_leave();
            let arrived = self.submit_arrivals();
            self.expire();
            let woken = self.wake.is_some_and(|wake| wake <= self.now);
            if ended || arrived || woken {
                self.plan();
            }
        }
        (self.progress)(self.tickets);
        self.tally
    }

    /// When something happens next; `None` when all is done.
    fn next_event(&mut self) -> Option<Time> {
        let arrival = self.arrivals.peek().map(|arrival| arrival.at);
        let end = self.running.peek().map(|Reverse(run)| run.end);
        let leave = self.leaving.peek().map(|Reverse((at, _))| *at);
        [arrival, end, leave, self.wake, self.scheduler.next_deadline()].into_iter().flatten().min()
    }

    fn end_batches(&mut self) -> bool {
        let before = self.free.len();
        while let Some(Reverse(run)) = self.running.peek()
            && run.end <= self.now
            && let Some(Reverse(run)) = self.running.pop()
        {
            self.free.push(Reverse(run.instance));
            self.tally.ended(self.now, run.report.busy);
            let verdicts = self.scheduler.complete(self.now, run.id, run.report);
            if run.report.outcome == Outcome::Completed {
                self.complete(&run.entries, &verdicts);
            } else {
                self.lose(&verdicts);
            }
        }
        self.free.len() > before
    }

    /// The verdicts come in the order of the entries, without those that ended before.
    fn complete(&mut self, entries: &[Entry], verdicts: &[(Ticket, Verdict)]) {
        let mut entries = entries.iter();
        for (ticket, _) in verdicts {
            self.leavers.remove(ticket);
            if let Some(entry) = entries.by_ref().find(|entry| entry.ticket == *ticket) {
                self.tally.completed(self.now, entry);
            }
        }
    }

    fn lose(&mut self, verdicts: &[(Ticket, Verdict)]) {
        for (ticket, verdict) in verdicts {
            self.leavers.remove(ticket);
            self.tally.lost(self.now, *verdict);
        }
    }

    fn let_callers_leave(&mut self) {
        while let Some(&Reverse((at, ticket))) = self.leaving.peek()
            && at <= self.now
        {
            self.leaving.pop();
            if self.leavers.remove(&ticket) {
                self.scheduler.cancel(self.now, ticket);
                self.tally.cancelled();
            }
        }
    }

    fn submit_arrivals(&mut self) -> bool {
        let before = self.tickets;
        while let Some(arrival) = self.arrivals.next_if(|arrival| arrival.at <= self.now) {
            self.tickets += 1;
            self.submit(Ticket(self.tickets), &arrival);
            if self.tickets.is_multiple_of(PROGRESS_EVERY) {
                (self.progress)(self.tickets);
            }
        }
        self.tickets > before
    }

    fn submit(&mut self, ticket: Ticket, arrival: &Arrival) {
        self.tally.submitted(self.now);
        let entry = Entry {
            ticket,
            client: arrival.client,
            cost: arrival.cost,
            seq_len: arrival.seq_len,
            bytes: arrival.bytes,
            shape: arrival.shape,
            priority: arrival.priority,
            deadline: arrival.timeout.map(|timeout| self.now + timeout),
            arrived: self.now,
        };
        match self.scheduler.submit(self.now, entry) {
            Err(rejection) => self.tally.refused(rejection.reason()),
            Ok(()) => {
                if let Some(patience) = arrival.patience {
                    self.leaving.push(Reverse((self.now + patience, ticket)));
                    self.leavers.insert(ticket);
                }
            }
        }
    }

    fn expire(&mut self) {
        if self.scheduler.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            let (verdicts, _) = self.scheduler.expire(self.now);
            self.lose(&verdicts);
        }
    }

    /// Free instances ask for work until there is none.
    fn plan(&mut self) {
        self.wake = None;
        while let Some(&Reverse(instance)) = self.free.peek() {
            let planned = self.scheduler.plan(self.now, instance, u64::MAX);
            self.lose(&planned.resolved);
            match planned.next {
                Next::Idle => break,
                Next::WaitUntil(at) => {
                    // Later than now in any case, or time would stand still.
                    self.wake = Some(at.max(self.now + Duration::from_nanos(1)));
                    break;
                }
                Next::Run(batch) => {
                    self.free.pop();
                    self.start(instance, batch);
                }
            }
        }
    }

    fn start(&mut self, instance: InstanceId, batch: Batch) {
        let Batch { id, entries, elements, .. } = batch;
        self.tally.started(self.now, &entries, elements);
        let items = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let (busy, failed) = self.device.run(self.now, service_group(&entries), items, elements);
        let outcome = if failed { Outcome::Failed } else { Outcome::Completed };
        let report = BatchReport { outcome, busy, peak_bytes: None };
        self.running.push(Reverse(Run { end: self.now + busy, id, instance, report, entries }));
    }
}

/// The group whose batches take as long as this one: those of one shape, whatever bucket they are in.
fn service_group(entries: &[Entry]) -> GroupKey {
    GroupKey { shape: entries.first().map(|entry| entry.shape).unwrap_or_default(), bound: 0 }
}
