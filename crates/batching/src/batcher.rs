//! A scheduler and its payloads behind one short mutex: what callers submit to and instances pull from.

mod answer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

pub use self::answer::{Failure, Reply};
use self::answer::{Payload, answer_batch, answer_unrun, judge, take_payloads};
use crate::driver::{BatchError, ModelError, look_out};
use crate::entry::{BatchId, ClientId, Entry, InstanceId, Priority, ShapeKey, Ticket};
use crate::hash::TicketMap;
use crate::memory::{DeviceBudget, Reservation};
use crate::queue::Total;
use crate::replay::Event;
use crate::scheduler::{Batch, BatchReport, Next, Outcome, Planned, Rejection, Scheduler, SchedulerConfig};
use crate::time::{Clock, Time};

/// A request with its payload.
pub struct Submission<I, O> {
    /// What the model reads. Shared, because it stays here until the verdict.
    pub input: Arc<I>,
    /// See [`Entry::client`].
    pub client: ClientId,
    /// See [`Entry::cost`].
    pub cost: u32,
    /// See [`Entry::seq_len`].
    pub seq_len: u32,
    /// See [`Entry::bytes`].
    pub bytes: u64,
    /// See [`Entry::shape`].
    pub shape: ShapeKey,
    /// See [`Entry::priority`].
    pub priority: Priority,
    /// Time it may take in all, queue and execution; `None`: as long as it needs.
    pub timeout: Option<Duration>,
    /// How its caller learns of its end.
    pub reply: Reply<O>,
}

/// A batch handed to an instance.
pub struct Job<I> {
    /// Its name in [`Batcher::complete`].
    pub id: BatchId,
    /// Inputs in the batch's order.
    pub inputs: Vec<Arc<I>>,
    /// See [`Batch::padded_len`].
    pub padded_len: u32,
    tickets: Vec<Ticket>,
    waits: Vec<Duration>,
    cost: u64,
    elements: u64,
    bytes: u64,
    /// Its share of the device's memory, given back when it ends.
    _memory: Option<Reservation>,
}

/// What a batch was like, for metrics.
#[derive(Debug)]
pub struct BatchRecord<'a> {
    /// Who ran it.
    pub instance: InstanceId,
    /// Entries in it.
    pub size: usize,
    /// Their summed cost.
    pub cost: u64,
    /// What the model had to compute for them: the cost with padding.
    pub elements: u64,
    /// What it was expected to need of memory; 0 where nothing is known.
    pub bytes: u64,
    /// The most bytes that it had allocated at once, where that is known.
    pub peak_bytes: Option<u64>,
    /// How long each waited in the queue.
    pub waits: &'a [Duration],
    /// How long the model ran.
    pub busy: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// Sees what happens, outside the lock; for metrics and logs.
pub trait Observer: Send + Sync + 'static {
    /// An instance begins a batch, whose end is [`Observer::batch_ended`].
    fn batch_started(&self, instance: InstanceId);
    /// A batch ended.
    fn batch_ended(&self, record: &BatchRecord<'_>);
    /// One event of the scheduler, in order, when [`Batcher::new`] was asked to log: called under the
    /// lock, so it may only hand the event on.
    fn event(&self, event: Event);
}

struct State<I, O> {
    scheduler: Scheduler,
    payloads: TicketMap<Payload<I, O>>,
    next_ticket: u64,
    /// Instances asleep until there is work: with none, a submit wakes nobody.
    waiting_instances: usize,
    /// Those of them that wake by themselves: what does not hasten their batches need not wake them.
    timed_instances: usize,
    /// Whether an instance is looking out for work: a submit need not wake another.
    lookout: bool,
    /// When the timer next looks for expired entries: an earlier deadline must wake it.
    timer_wakes: Time,
    closed: bool,
}

/// The meeting point of one model version's callers and instances.
pub struct Batcher<I, O> {
    state: Mutex<State<I, O>>,
    work: Condvar,
    timer: Condvar,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    log_events: bool,
    device: Option<DeviceBudget>,
    /// Counts what an instance on the lookout must not miss: submits, and the closing.
    calls: AtomicU64,
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// An open batcher for the instances of `config`, on a device whose memory it shares with others.
    /// With `log_events`, `observer` gets every call of the scheduler.
    pub fn new(
        config: SchedulerConfig,
        device: Option<DeviceBudget>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        log_events: bool,
    ) -> Self {
        if log_events {
            observer.event(Event::Start { config: config.clone() });
        }
        Self {
            state: Mutex::new(State {
                scheduler: Scheduler::new(config),
                payloads: TicketMap::default(),
                next_ticket: 0,
                waiting_instances: 0,
                timed_instances: 0,
                lookout: false,
                timer_wakes: Time::MAX,
                closed: false,
            }),
            work: Condvar::new(),
            timer: Condvar::new(),
            clock,
            observer,
            log_events,
            device,
            calls: AtomicU64::new(0),
        }
    }

    /// Admits requests under one lock, each on its own: a refused one leaves the others in.
    /// The reply of a refused one is dropped uncalled.
    pub fn submit(
        &self,
        submissions: impl IntoIterator<Item = Submission<I, O>>,
    ) -> Vec<Result<Ticket, Rejection>> {
        // An iterator's steps and the drop of a refused payload are the caller's code: not under the lock.
        let submissions: Vec<_> = submissions.into_iter().collect();
        let mut results = Vec::with_capacity(submissions.len());
        let mut refused = Vec::new();
        let mut state = self.state.lock();
        let now = self.clock.now();
        for submission in submissions {
            let admitted = self.admit(&mut state, now, &submission);
            match &admitted {
                Ok(ticket) => {
                    let Submission { input, reply, .. } = submission;
                    state.payloads.insert(*ticket, Payload { input, reply });
                }
                Err(_) => refused.push(submission),
            }
            results.push(admitted);
        }
        self.wake(&mut state);
        drop(state);
        drop(refused);
        results
    }

    /// Refuses `count` requests that are not made ready yet, if even the smallest would be refused for want
    /// of room or of time; `None`: they may be admitted.
    pub fn refuse_early(
        &self,
        count: usize,
        client: ClientId,
        priority: Priority,
        timeout: Duration,
    ) -> Option<Rejection> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let deadline = Some(now + timeout);
        let entry = Entry { client, priority, deadline, cost: 1, arrived: now, ..Entry::default() };
        if !state.scheduler.refuses_even(now, &entry) {
            return None;
        }
        let refused = (0..count).map(|_| self.admit_entry(&mut state, now, entry.clone()).err());
        refused.last().flatten()
    }

    fn admit(
        &self,
        state: &mut State<I, O>,
        now: Time,
        submission: &Submission<I, O>,
    ) -> Result<Ticket, Rejection> {
        let entry = Entry {
            ticket: Ticket::default(),
            client: submission.client,
            cost: submission.cost,
            seq_len: submission.seq_len,
            bytes: submission.bytes,
            shape: submission.shape,
            priority: submission.priority,
            deadline: submission.timeout.map(|timeout| now + timeout),
            arrived: now,
        };
        self.admit_entry(state, now, entry)
    }

    /// Under the next ticket.
    fn admit_entry(&self, state: &mut State<I, O>, now: Time, entry: Entry) -> Result<Ticket, Rejection> {
        let ticket = Ticket(state.next_ticket);
        state.next_ticket += 1;
        let entry = Entry { ticket, ..entry };
        let logged = self.log_events.then(|| entry.clone());
        let result = state.scheduler.submit(now, entry);
        if let Some(entry) = logged {
            self.observer.event(Event::Submit { now, entry, rejection: result.clone().err() });
        }
        result.map(|()| ticket)
    }

    /// Wakes one instance, which wakes the next if work remains, and the timer if a deadline came nearer.
    fn wake(&self, state: &mut State<I, O>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let hastened = state.scheduler.take_hastened();
        if !state.lookout && (hastened || state.timed_instances == 0) {
            self.wake_instance(state);
        }
        if state.scheduler.next_deadline().is_some_and(|deadline| deadline < state.timer_wakes) {
            self.timer.notify_one();
        }
    }

    fn wake_instance(&self, state: &State<I, O>) {
        if state.waiting_instances > 0 && state.scheduler.has_work() {
            self.work.notify_one();
        }
    }

    /// Forgets a request whose caller left; one that was still queued never runs.
    /// True when it was still queued.
    pub fn cancel(&self, ticket: Ticket) -> bool {
        let mut state = self.state.lock();
        let Some(payload) = state.payloads.remove(&ticket) else { return false };
        let now = self.clock.now();
        let queued = state.scheduler.cancel(now, ticket);
        if self.log_events {
            self.observer.event(Event::Cancel { now, ticket });
        }
        self.wake_closed_timer(&state);
        drop(state);
        drop(payload);
        queued
    }

    /// Blocks until there is a batch for `instance`; `None` once closed and drained.
    pub fn next(&self, instance: InstanceId) -> Option<Job<I>> {
        let mut state = self.state.lock();
        loop {
            match self.start(&mut state, instance) {
                Ok(job) => return Some(job),
                Err(Some(at)) => {
                    let wait = at.since(self.clock.now());
                    self.wait_for_work(&mut state, Some(wait));
                }
                Err(None) if state.closed => return None,
                Err(None) if self.look_out(&mut state) => {}
                Err(None) => self.wait_for_work(&mut state, None),
            }
        }
    }

    /// A batch for `instance` if one can start at once. For who ran its last one, while nobody waits in
    /// [`Self::next`] for that instance.
    pub fn try_next(&self, instance: InstanceId) -> Option<Job<I>> {
        self.start(&mut self.state.lock(), instance).ok()
    }

    /// Starts a batch, or says when one can start, as far as is known. Answers what expired, unlocked.
    fn start(
        &self,
        state: &mut MutexGuard<'_, State<I, O>>,
        instance: InstanceId,
    ) -> Result<Job<I>, Option<Time>> {
        loop {
            let now = self.clock.now();
            let (planned, memory) = self.plan(state, now, instance);
            let expired = take_payloads(&mut state.payloads, &planned.resolved);
            if let Next::Run(batch) = planned.next {
                self.wake_instance(state);
                let job = job(state, batch, memory, now);
                MutexGuard::unlocked(state, || {
                    self.observer.batch_started(instance);
                    answer_unrun(expired);
                });
                return Ok(job);
            }
            if expired.is_empty() {
                return Err(match planned.next {
                    Next::WaitUntil(at) => Some(at),
                    _ => None,
                });
            }
            self.wake_closed_timer(state);
            MutexGuard::unlocked(state, || answer_unrun(expired));
        }
    }

    fn plan(
        &self,
        state: &mut State<I, O>,
        now: Time,
        instance: InstanceId,
    ) -> (Planned, Option<Reservation>) {
        // Locked until the batch has its share: else two models could both take what only one can have.
        let mut device = self.device.as_ref().map(DeviceBudget::lock);
        let free = device.as_ref().map_or(u64::MAX, |device| device.free());
        let planned = state.scheduler.plan(now, instance, free);
        if self.log_events {
            self.observer.event(Event::plan(now, instance, free, &planned));
        }
        let Next::Run(batch) = &planned.next else { return (planned, None) };
        let memory = device.as_mut().map(|device| device.reserve(batch.bytes));
        (planned, memory)
    }

    /// Waits awake, and unlocked, for the next submit; true when there was one. One instance at a time.
    fn look_out(&self, state: &mut MutexGuard<'_, State<I, O>>) -> bool {
        if state.lookout {
            return false;
        }
        state.lookout = true;
        let seen = self.calls.load(Ordering::Relaxed);
        let called = || self.calls.load(Ordering::Relaxed) != seen;
        MutexGuard::unlocked(state, || look_out(called));
        state.lookout = false;
        called()
    }

    fn wait_for_work(&self, state: &mut MutexGuard<'_, State<I, O>>, at_most: Option<Duration>) {
        state.waiting_instances += 1;
        match at_most {
            Some(wait) => {
                state.timed_instances += 1;
                self.work.wait_for(state, wait);
                state.timed_instances -= 1;
            }
            None => self.work.wait(state),
        }
        state.waiting_instances -= 1;
    }

    /// Ends `job` with the model's results, and answers those of its callers whom no second run awaits.
    ///
    /// Results fewer or more than the batch's entries fail the whole batch: nothing says whose they are.
    pub fn complete(
        &self,
        instance: InstanceId,
        job: Job<I>,
        results: Result<Vec<Result<O, ModelError>>, BatchError>,
        busy: Duration,
        peak_bytes: Option<u64>,
    ) {
        let size = job.tickets.len();
        let (outcome, results) = judge(results, size);
        let report = BatchReport { outcome, busy, peak_bytes };
        let mut state = self.state.lock();
        let now = self.clock.now();
        let verdicts = state.scheduler.complete(now, job.id, report);
        let payloads = take_payloads(&mut state.payloads, &verdicts);
        if self.log_events {
            self.observer.event(Event::Complete { now, batch: job.id, report, verdicts });
        }
        self.wake_instance(&state);
        self.wake_closed_timer(&state);
        drop(state);
        // Before the answers, so that a caller who has its answer finds it counted.
        self.observer.batch_ended(&BatchRecord {
            instance,
            size,
            cost: job.cost,
            elements: job.elements,
            bytes: job.bytes,
            peak_bytes,
            waits: &job.waits,
            busy,
            outcome,
        });
        answer_batch(&job.tickets, payloads, results);
    }

    /// Answers what expired, then blocks until something may have; false once closed and drained.
    /// The timer thread's whole work.
    pub fn expire(&self) -> bool {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let (verdicts, next) = state.scheduler.expire(now);
        if self.log_events && !verdicts.is_empty() {
            self.observer.event(Event::Expire { now, verdicts: verdicts.clone() });
        }
        let expired = take_payloads(&mut state.payloads, &verdicts);
        if !expired.is_empty() {
            drop(state);
            answer_unrun(expired);
            return true;
        }
        if state.closed && state.payloads.is_empty() {
            return false;
        }
        state.timer_wakes = next.unwrap_or(Time::MAX);
        match next {
            Some(at) => drop(self.timer.wait_for(&mut state, at.since(now))),
            None => self.timer.wait(&mut state),
        }
        state.timer_wakes = Time::MAX;
        true
    }

    /// Lets what is queued now run without waiting for company.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.scheduler.flush(now);
        if self.log_events {
            self.observer.event(Event::Flush { now });
        }
        self.wake(&mut state);
    }

    /// Takes no more work. What is queued still runs, without waiting for company; then instances end.
    pub fn close(&self) {
        self.stop_admitting(&mut self.state.lock());
        self.work.notify_all();
        self.timer.notify_all();
    }

    fn stop_admitting(&self, state: &mut State<I, O>) {
        if state.closed {
            return;
        }
        state.closed = true;
        self.calls.fetch_add(1, Ordering::Relaxed);
        state.scheduler.drain();
        if self.log_events {
            self.observer.event(Event::Drain);
        }
    }

    /// Closes, and answers everything at once: what waits with [`Failure::ClosedInQueue`], what runs with
    /// [`Failure::ClosedRunning`].
    pub fn abort(&self) {
        let mut state = self.state.lock();
        // Under one lock with the cancelling: else free instances would start what waits.
        self.stop_admitting(&mut state);
        let now = self.clock.now();
        let payloads = std::mem::take(&mut state.payloads);
        let mut closed = Vec::with_capacity(payloads.len());
        for (ticket, payload) in payloads {
            let queued = state.scheduler.cancel(now, ticket);
            if self.log_events {
                self.observer.event(Event::Cancel { now, ticket });
            }
            closed.push((payload, if queued { Failure::ClosedInQueue } else { Failure::ClosedRunning }));
        }
        drop(state);
        self.work.notify_all();
        self.timer.notify_all();
        for (payload, failure) in closed {
            payload.answer(Err(failure));
        }
    }

    /// The timer ends with the last request of a closed batcher.
    fn wake_closed_timer(&self, state: &State<I, O>) {
        if state.closed && state.payloads.is_empty() {
            self.timer.notify_all();
        }
    }

    /// What waits to run for the first time.
    pub fn queued(&self) -> Total {
        self.state.lock().scheduler.queued()
    }

    /// How long what waits will take; `None` before the first batch.
    pub fn predicted_drain(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.scheduler.predicted_drain(self.clock.now())
    }

    /// Lets requests in again, whatever the model did before.
    pub fn reset_breaker(&self) {
        let mut state = self.state.lock();
        state.scheduler.reset_breaker();
        if self.log_events {
            self.observer.event(Event::ResetBreaker);
        }
    }

    /// Looks at the scheduler, with the present instant.
    pub fn inspect<T>(&self, look: impl FnOnce(&Scheduler, Time) -> T) -> T {
        let state = self.state.lock();
        look(&state.scheduler, self.clock.now())
    }

    #[cfg(test)]
    pub(crate) fn waiting_instances(&self) -> usize {
        self.state.lock().waiting_instances
    }

    /// Whether nothing of any request is kept: what ended must leave no trace.
    #[cfg(test)]
    pub(crate) fn remembers_nothing(&self) -> bool {
        let state = self.state.lock();
        state.payloads.is_empty() && state.scheduler.remembers_nothing()
    }
}

fn job<I, O>(state: &State<I, O>, batch: Batch, memory: Option<Reservation>, now: Time) -> Job<I> {
    let mut job = Job {
        id: batch.id,
        inputs: Vec::with_capacity(batch.entries.len()),
        padded_len: batch.padded_len,
        tickets: Vec::with_capacity(batch.entries.len()),
        waits: Vec::with_capacity(batch.entries.len()),
        cost: 0,
        elements: batch.elements,
        bytes: batch.bytes,
        _memory: memory,
    };
    for entry in batch.entries {
        // A planned entry is live, and a live entry has its payload: both leave under the same lock.
        let Some(payload) = state.payloads.get(&entry.ticket) else { continue };
        job.inputs.push(Arc::clone(&payload.input));
        job.tickets.push(entry.ticket);
        job.waits.push(now.since(entry.arrived));
        job.cost += u64::from(entry.cost);
    }
    job
}
