//! Every order in which a few requests can meet with everything that may happen to them.
//!
//! Depth first over the calls. A scheduler has no equality, so two orders count as one state when all that
//! it was told so far leaves the same to decide: who waits in which order, who runs with whom, who is to
//! run again, whose deadline is near, and who has ended.

use std::collections::HashSet;
use std::time::Duration;

use crate::{
    BatchId, BatchReport, Entry, InstanceId, Isolation, Next, Outcome, Priority, Scheduler, SchedulerConfig,
    Ticket, Time, Verdict,
};

const REQUESTS: u64 = 4;
/// When the entries with a deadline expire.
const DEADLINE: Time = Time::from_nanos(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Submit {
        urgent: bool,
        expires: bool,
    },
    Cancel(Ticket),
    /// The clock passes the deadline, and what is due is told.
    Expire,
    Plan(InstanceId),
    Complete(InstanceId, u8),
}

const OUTCOMES: [Outcome; 3] = [Outcome::Completed, Outcome::Failed, Outcome::OutOfMemory];

/// What happened to each request, as its caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Live { urgent: bool, expires: bool },
    Ended,
}

/// All that decides about the future.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Trace {
    requests: Vec<State>,
    /// The batch of each instance.
    running: Vec<Option<Vec<Ticket>>>,
    /// Halves that wait, in order; kept by the test from what batches failed.
    again: Vec<Vec<Ticket>>,
    late: bool,
    /// What a failed allocation left of the largest batch.
    most: u64,
}

#[derive(Clone)]
struct World {
    scheduler: Scheduler,
    trace: Trace,
    batches: Vec<Option<BatchId>>,
    bisect: bool,
}

impl World {
    fn new(config: &SchedulerConfig) -> Self {
        let instances = config.instances as usize;
        let trace = Trace {
            requests: Vec::new(),
            running: vec![None; instances],
            again: Vec::new(),
            late: false,
            most: u64::MAX,
        };
        Self {
            scheduler: Scheduler::new(config.clone()),
            trace,
            batches: vec![None; instances],
            bisect: config.isolation == Isolation::Bisect,
        }
    }

    fn now(&self) -> Time {
        if self.trace.late { DEADLINE } else { Time::ZERO }
    }

    /// What may happen next.
    fn calls(&self) -> Vec<Call> {
        let mut calls = Vec::new();
        if (self.trace.requests.len() as u64) < REQUESTS {
            calls.push(Call::Submit { urgent: false, expires: false });
            calls.push(Call::Submit { urgent: true, expires: false });
            if !self.trace.late {
                calls.push(Call::Submit { urgent: false, expires: true });
            }
        }
        for (ticket, state) in (0..).map(Ticket).zip(&self.trace.requests) {
            if matches!(state, State::Live { .. }) {
                calls.push(Call::Cancel(ticket));
            }
        }
        if !self.trace.late {
            calls.push(Call::Expire);
        }
        for (instance, running) in (0..).map(InstanceId).zip(&self.trace.running) {
            match running {
                None => calls.push(Call::Plan(instance)),
                Some(_) => calls.extend((0..OUTCOMES.len() as u8).map(|at| Call::Complete(instance, at))),
            }
        }
        calls
    }

    fn apply(&mut self, call: Call) {
        match call {
            Call::Submit { urgent, expires } => {
                let entry = Entry {
                    ticket: Ticket(self.trace.requests.len() as u64),
                    cost: 1,
                    priority: if urgent { Priority::High } else { Priority::Normal },
                    deadline: expires.then_some(DEADLINE),
                    arrived: self.now(),
                    ..Entry::default()
                };
                let refused = self.scheduler.submit(self.now(), entry).is_err();
                let state = State::Live { urgent, expires };
                self.trace.requests.push(if refused { State::Ended } else { state });
            }
            Call::Cancel(ticket) => {
                self.scheduler.cancel(self.now(), ticket);
                self.end(ticket);
            }
            Call::Expire => {
                self.trace.late = true;
                let (verdicts, next) = self.scheduler.expire(DEADLINE);
                assert_eq!(next, None, "all deadlines are the same");
                self.answered(&verdicts);
                let owed = |state: &State| matches!(state, State::Live { expires: true, .. });
                assert!(!self.trace.requests.iter().any(owed), "due, and not answered");
            }
            Call::Plan(instance) => self.plan(instance),
            Call::Complete(instance, at) => self.complete(instance, OUTCOMES[at as usize]),
        }
    }

    fn plan(&mut self, instance: InstanceId) {
        let planned = self.scheduler.plan(self.now(), instance, u64::MAX);
        self.answered(&planned.resolved);
        let index = instance.0 as usize;
        match planned.next {
            Next::Run(batch) => {
                let tickets: Vec<_> = batch.entries.iter().map(|entry| entry.ticket).collect();
                assert!(!tickets.is_empty() && tickets.len() <= 2, "{tickets:?}");
                for &ticket in &tickets {
                    let elsewhere = self.trace.running.iter().flatten().any(|batch| batch.contains(&ticket));
                    assert!(!elsewhere, "#{} runs twice at once", ticket.0);
                    assert_ne!(self.trace.requests[ticket.0 as usize], State::Ended, "ran after its end");
                }
                self.trace.again.retain(|half| !half.iter().any(|ticket| tickets.contains(ticket)));
                self.trace.running[index] = Some(tickets);
                self.batches[index] = Some(batch.id);
            }
            Next::Idle => assert!(self.idle().is_empty(), "idle while {:?} wait", self.idle()),
            Next::WaitUntil(at) => panic!("eager, and told to wait until {at:?}"),
        }
    }

    /// Who is live and in no batch.
    fn idle(&self) -> Vec<Ticket> {
        let live = (0..).map(Ticket).zip(&self.trace.requests).filter(|(_, state)| **state != State::Ended);
        let running: Vec<_> = self.trace.running.iter().flatten().flatten().collect();
        live.map(|(ticket, _)| ticket).filter(|ticket| !running.contains(&ticket)).collect()
    }

    fn complete(&mut self, instance: InstanceId, outcome: Outcome) {
        let index = instance.0 as usize;
        let (Some(batch), Some(tickets)) = (self.batches[index].take(), self.trace.running[index].take())
        else {
            return;
        };
        let report = BatchReport { outcome, busy: Duration::from_nanos(1), peak_bytes: None };
        let verdicts = self.scheduler.complete(self.now(), batch, report);
        let live: Vec<_> = tickets
            .iter()
            .copied()
            .filter(|ticket| self.trace.requests[ticket.0 as usize] != State::Ended)
            .collect();
        let verdict = if outcome == Outcome::Completed { Verdict::Completed } else { Verdict::Failed };
        let again = tickets.len() > 1
            && (outcome == Outcome::OutOfMemory || outcome == Outcome::Failed && self.bisect);
        let owed = if again { Vec::new() } else { live.iter().map(|&ticket| (ticket, verdict)).collect() };
        assert_eq!(verdicts, owed);
        if again {
            self.trace.again.extend(live.into_iter().map(|ticket| vec![ticket]));
        }
        self.trace.most = self.scheduler.memory().max_elements();
        self.answered(&verdicts);
    }

    fn answered(&mut self, verdicts: &[(Ticket, Verdict)]) {
        for &(ticket, _) in verdicts {
            self.end(ticket);
        }
    }

    fn end(&mut self, ticket: Ticket) {
        let before = std::mem::replace(&mut self.trace.requests[ticket.0 as usize], State::Ended);
        assert_ne!(before, State::Ended, "#{} ended twice", ticket.0);
        self.trace.again.iter_mut().for_each(|half| half.retain(|other| *other != ticket));
        self.trace.again.retain(|half| !half.is_empty());
    }

    /// Whatever happened, the rest is answered and leaves no trace.
    fn finish(mut self) {
        for _ in 0..2 * REQUESTS {
            for instance in (0..self.batches.len() as u32).map(InstanceId) {
                if self.batches[instance.0 as usize].is_none() {
                    self.plan(instance);
                }
                self.complete(instance, Outcome::Completed);
            }
        }
        assert!(self.trace.requests.iter().all(|state| *state == State::Ended), "{:?}", self.trace);
        assert!(self.scheduler.remembers_nothing(), "{:?}", self.scheduler);
    }
}

/// Explores every order of calls; the states seen.
fn explore(isolation: Isolation, instances: u32) -> usize {
    let config = SchedulerConfig { isolation, instances, max_batch_size: 2, ..SchedulerConfig::default() };
    let mut seen = HashSet::new();
    visit(World::new(&config), &mut seen);
    seen.len()
}

/// Every call that changes the state brings the end nearer, so the depth needs no bound.
fn visit(world: World, seen: &mut HashSet<Trace>) {
    for call in world.calls() {
        let mut next = world.clone();
        next.apply(call);
        if seen.insert(next.trace.clone()) {
            visit(next, seen);
        }
    }
    world.finish();
}

#[test]
fn in_every_order_each_request_is_answered_once_when_a_batch_fails_as_a_whole() {
    for (instances, least) in [(1, 1_000), (2, 10_000)] {
        let states = explore(Isolation::None, instances);
        assert!(states > least, "only {states} states");
    }
}

#[test]
fn in_every_order_each_request_is_answered_once_when_culprits_are_looked_for() {
    for (instances, least) in [(1, 1_000), (2, 10_000)] {
        let states = explore(Isolation::Bisect, instances);
        assert!(states > least, "only {states} states");
    }
}
