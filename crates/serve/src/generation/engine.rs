//! A language model's thread: plans, runs and commits one step after the other.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::Value;
use trustformers_batching::breaker::Breaker;
use trustformers_batching::continuous::{
    Admitted, ContinuousConfig, Deadlines, End, Ended, Refusal, Request, RequestId, Scheduled, Scheduler,
    SequenceId, Stats, StepOutcome, StepPlan,
};
use trustformers_batching::queue::Total;
use trustformers_batching::{BreakerConfig, Clock, MonotonicClock, Rejection, Ticket, Time};

use super::clerk::{Clerk, Report};
use super::generating::Generating;
use super::request::{Finish, GenerationEvent, GenerationRequest, Refused};
use super::sampling::Sampler;
use super::seats::{Mail, Seats, Use};
use super::steps::{Outcome, Scored, Stepped, Steps};
use super::trace::{Aside, Errand, Span, Trace};
use crate::backend::llm::Runner;
use crate::metrics::GenerationMetrics;
use crate::registry::Now;

/// Runs a language model on a thread of its own. Dropping it ends what generates.
pub struct Engine {
    shared: Arc<Shared>,
    /// Taken by whoever waits for its end first.
    thread: Mutex<Option<JoinHandle<()>>>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Something was submitted, or the model is taken away.
    work: Condvar,
    clock: MonotonicClock,
    metrics: GenerationMetrics,
    trace: Trace,
}

struct State {
    scheduler: Scheduler,
    seats: Seats,
    breaker: Option<Breaker>,
    /// Since when the step that runs does.
    stepping: Option<Time>,
    stall_after: Duration,
    /// All has ended but the step that runs.
    closed: bool,
}

/// When an engine is left alone, and what counts as stalled.
#[derive(Debug, Clone)]
pub struct Guard {
    /// `None`: it is never left alone.
    pub breaker: Option<BreakerConfig>,
    /// A step that runs longer shows the model as stalled.
    pub stall_after: Duration,
}

impl Engine {
    /// Starts the threads of a model: one that runs its steps, and one beside it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        name: &str,
        runner: Runner,
        config: ContinuousConfig,
        guard: Guard,
        metrics: GenerationMetrics,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                scheduler: Scheduler::new(config),
                seats: Seats::default(),
                breaker: guard.breaker.map(Breaker::new),
                stepping: None,
                stall_after: guard.stall_after,
                closed: false,
            }),
            work: Condvar::new(),
            clock: MonotonicClock::default(),
            metrics,
            trace: Trace::default(),
        });
        let clerk = Clerk::start(name, Arc::clone(&shared))?;
        let body = {
            let shared = Arc::clone(&shared);
            move || {
                // Also where it panics: nobody must wait for what nobody runs.
                let _closing = Closing(&shared);
                shared.run(Steps::new(runner), &clerk);
                clerk.finish();
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Refuses `prompts` of `tokens` tokens together, of `choices` texts each, if nothing could come of them now,
    /// before anything is made for them. What it lets pass may still be refused when it is submitted.
    ///
    /// # Errors
    /// The reason, and how long what waits and runs will take.
    pub fn refuse_early(&self, prompts: usize, tokens: u64, choices: u32) -> Result<(), Box<Refused>> {
        let mut state = self.shared.state.lock();
        match state.scheduler.refuse_early(prompts, tokens, choices) {
            None => Ok(()),
            Some(refusal) => Err(self.refused(&state, refusal)),
        }
    }

    /// Admits a request, or says at once why not.
    ///
    /// # Errors
    /// The reason, and how long what waits and runs will take.
    pub fn submit(&self, request: GenerationRequest) -> Result<Generating, Box<Refused>> {
        let samplers = (0..request.choices)
            .map(|choice| Sampler::new(Arc::clone(&request.sampling), &request.prompt, choice))
            .collect();
        let now = self.shared.clock.now();
        let mut state = self.shared.state.lock();
        let admitted = state.admit(now, &request).map_err(|refusal| self.refused(&state, refusal))?;
        let events = state.seats.add(now, admitted, &request, samplers);
        drop(state);
        self.shared.work.notify_one();
        Ok(Generating::new(events, Arc::downgrade(&self.shared), admitted, request.choices))
    }

    fn refused(&self, state: &State, refusal: Refusal) -> Box<Refused> {
        self.shared.metrics.refused(&refusal);
        Box::new(Refused { refusal, drain: state.scheduler.predicted_drain() })
    }

    /// Lets requests in again, whatever the model did before.
    pub fn reset_breaker(&self) {
        if let Some(breaker) = &mut self.shared.state.lock().breaker {
            breaker.reset();
        }
    }

    /// What its scheduler is about.
    pub fn now(&self) -> Now {
        let now = self.shared.clock.now();
        let state = self.shared.state.lock();
        let stats = state.scheduler.stats();
        let breaker = state.breaker.as_ref().map(|breaker| breaker.state(now));
        let stalled = state.stepping.is_some_and(|since| now.since(since) > state.stall_after);
        Now {
            queued: Total {
                entries: stats.queued_requests as usize,
                cost: stats.queued_prompt_tokens,
                ..Total::default()
            },
            breaker,
            breaker_pause: breaker.and_then(|breaker| breaker.pause(now)),
            stalled: stalled.then_some(0).into_iter().collect(),
            memory_limit: None,
        }
    }

    /// What its scheduler did, and what it holds now.
    pub fn stats(&self) -> Stats {
        self.shared.state.lock().scheduler.stats()
    }

    /// The limits in force.
    pub fn config(&self) -> ContinuousConfig {
        self.shared.state.lock().scheduler.config().clone()
    }

    /// The last steps and texts as events of Chrome's trace format, of process `process`, which is called `name`;
    /// times in microseconds of a clock that says `now`.
    pub fn trace(&self, process: usize, name: &str, now: Duration) -> Vec<Value> {
        let own = self.shared.clock.now().since(Time::ZERO);
        self.shared.trace.events(process, name, now.saturating_sub(own))
    }

    /// Brings counters and gauges up to date; called before they are read, of the engine that answers.
    pub fn refresh(&self) {
        self.shared.metrics.refresh(|| self.stats());
    }

    /// Takes no more requests, lets those that are there end, and ends the thread; blocks until then.
    pub fn drain(&self) {
        self.shared.state.lock().scheduler.drain();
        self.shared.work.notify_one();
        self.join();
    }

    /// Ends everything at once but the step that runs.
    pub fn abort(&self) {
        self.shared.abort();
    }

    fn join(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // It ends by itself, and what it panicked with was printed.
            drop(thread.join());
        }
        // Not the gauges: they may be its replacement's by now.
        self.shared.metrics.count(|| self.stats());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort();
        self.join();
    }
}

/// A step that begins.
struct Begun {
    plan: StepPlan,
    uses: Vec<Use>,
    planned: Time,
}

/// A step that has ended.
struct Done {
    span: Span,
    plan: StepPlan,
    stepped: Stepped,
}

/// Ends all that generates when it is dropped.
pub(super) struct Closing<'a>(pub(super) &'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl State {
    fn admit(&mut self, now: Time, request: &GenerationRequest) -> Result<Admitted, Refusal> {
        if self.closed {
            return Err(Rejection::Draining.into());
        }
        let wall = Instant::now();
        let time = |at: Instant| now + at.saturating_duration_since(wall);
        let request = Request {
            prompt: request.prompt.clone(),
            max_tokens: request.max_tokens,
            sequences: request.choices,
            priority: request.priority,
            client: request.client,
            salt: request.salt,
            scores_prompt: request.scores_prompt,
            deadlines: Deadlines {
                queue: None,
                first_token: request.first_token.map(time),
                total: request.deadline.map(time),
            },
        };
        let breaker = &mut self.breaker;
        self.scheduler.submit_past(now, request, |RequestId(id)| match breaker {
            None => Ok(()),
            Some(breaker) => {
                breaker.admit(now, Ticket(id)).map_err(|retry_after| Rejection::BreakerOpen { retry_after })
            }
        })
    }

    /// What the scheduler says of sequences that ended.
    fn ended(
        &mut self,
        now: Time,
        ended: &[Ended],
        failures: &[(SequenceId, String)],
        trace: &Trace,
    ) -> Vec<Mail> {
        let mut mail = Vec::new();
        for end in ended {
            if let Some(seat) = self.seats.get_mut(end.sequence) {
                trace.life(seat.life(end.sequence, end.end.name(), Some(end.cached_tokens), now));
            }
            let how = match end.end {
                End::Stopped => Finish::Stopped,
                End::Length => Finish::Length,
                End::Failed => {
                    let reason = failures.iter().find(|(sequence, _)| *sequence == end.sequence);
                    Finish::Failed(
                        reason.map_or_else(|| "the model failed".to_owned(), |(_, why)| why.clone()),
                    )
                }
                expired => Finish::Expired(expired),
            };
            mail.extend(self.seats.end(end, how));
            if end.last {
                self.probe_ended(end.request);
            }
        }
        mail
    }

    /// A request that ended without having run tells the breaker nothing.
    fn probe_ended(&mut self, request: RequestId) {
        if let Some(breaker) = &mut self.breaker {
            breaker.ended(Ticket(request.0));
        }
    }
}

impl Shared {
    /// The thread: plans, runs and commits until it is drained or aborted.
    fn run(&self, mut steps: Steps, clerk: &Clerk) {
        let mut last = None;
        while let Some(Begun { plan, uses, planned }) = self.next(last, clerk) {
            let began = self.clock.now();
            let stepped = steps.run(&plan, uses);
            let ended = self.clock.now();
            self.metrics.step_ended(&plan, ended.since(began));
            last = Some(Done { span: Span { planned, began, ended }, plan, stepped });
        }
    }

    /// Takes in what the last step brought, and waits for one to run; `None` when there will be none. What else is to
    /// be done about the last waits until the next one has begun.
    fn next(&self, last: Option<Done>, clerk: &Clerk) -> Option<Begun> {
        let mut state = self.state.lock();
        let mut report = last.map(|done| self.commit(&mut state, done)).unwrap_or_default();
        let begun = loop {
            if state.closed {
                break None;
            }
            let now = self.clock.now();
            let Scheduled { ended, plan } = state.scheduler.schedule(now);
            report.mail.extend(state.ended(now, &ended, &[], &self.trace));
            if let Some(plan) = plan {
                let uses = self.begin(now, &mut state, &plan);
                break Some(Begun { plan, uses, planned: now });
            }
            if !report.is_empty() {
                let report = std::mem::take(&mut report);
                MutexGuard::unlocked(&mut state, || clerk.attend(report));
                continue;
            }
            if state.scheduler.is_draining() && !state.scheduler.has_work() {
                state.closed = true;
                break None;
            }
            self.wait(&mut state);
        };
        drop(state);
        if !report.is_empty() {
            clerk.attend(report);
        }
        begun
    }

    /// Beside the step that runs: tells callers what the last one brought, and plans the next.
    pub(super) fn attend(&self, report: Report) {
        let Report { mail, step, failures } = report;
        let number = step.as_ref().map(|(_, plan, _)| plan.id);
        // Before anybody hears of it: who then looks finds the step.
        if let Some((span, plan, blocks)) = step {
            self.trace.step(span, &plan, blocks);
        }
        let (began, told) = (self.clock.now(), mail.len());
        mail.into_iter().for_each(Mail::send);
        if let Some((_, reason)) = failures.first() {
            tracing::warn!(sequences = failures.len(), reason, "sequences failed");
        }
        let Some(last) = number else { return };
        let ended = self.clock.now();
        self.trace.aside(Aside { errand: Errand::Tell, last, count: told, began, ended });
        let mut state = self.state.lock();
        let began = self.clock.now();
        let count = state.scheduler.plan_ahead(began);
        drop(state);
        if count > 0 {
            self.trace.aside(Aside { errand: Errand::Plan, last, count, began, ended: self.clock.now() });
        }
    }

    /// Until something happens, or the next deadline.
    fn wait(&self, state: &mut MutexGuard<'_, State>) {
        match state.scheduler.next_deadline() {
            None => self.work.wait(state),
            Some(due) => {
                let wait = due.since(self.clock.now());
                self.work.wait_for(state, wait);
            }
        }
    }

    fn begin(&self, now: Time, state: &mut State, plan: &StepPlan) -> Vec<Use> {
        state.stepping = Some(now);
        self.metrics.step_began();
        for work in &plan.work {
            if let Some(seat) = state.seats.get_mut(work.sequence)
                && seat.began.is_none()
            {
                seat.began = Some(now);
                self.metrics.waited(now.since(seat.arrived));
            }
        }
        state.seats.uses(plan)
    }

    /// Takes a step's outcome in; what its callers are to be told.
    fn commit(&self, state: &mut State, done: Done) -> Report {
        let Done { span, plan, stepped } = done;
        let works = stepped.works();
        let Stepped { outcomes, drawings, scored } = stepped;
        let now = span.ended;
        let busy = now.since(span.began);
        let mut outcome = StepOutcome { id: plan.id, busy, tokens: Vec::new(), failed: Vec::new() };
        let (mut mail, mut failures) = (Vec::with_capacity(outcomes.len()), Vec::new());
        state.stepping = None;
        for drawing in drawings {
            state.seats.put_back(drawing);
        }
        for Scored { sequence, position, logprobs } in scored {
            mail.extend(state.seats.scored(sequence, position, logprobs));
        }
        for (sequence, of) in outcomes {
            match of {
                Outcome::Failed(reason) => {
                    outcome.failed.push(sequence);
                    failures.push((sequence, reason));
                }
                Outcome::Drawn(drawn, stops) => {
                    outcome.tokens.push((sequence, drawn.token, stops));
                    self.drawn(now, state, sequence);
                    mail.extend(state.seats.mail(sequence, |choice| GenerationEvent::Token {
                        choice,
                        token: drawn.token,
                        stops,
                        logprobs: drawn.logprobs,
                    }));
                }
            }
        }
        if let (Some(breaker), Some(works)) = (&mut state.breaker, works) {
            if works { breaker.succeeded(now) } else { breaker.failed(now) }
        }
        let ended = state.scheduler.commit(now, outcome);
        mail.extend(state.ended(now, &ended, &failures, &self.trace));
        Report { mail, step: Some((span, plan, state.scheduler.blocks())), failures }
    }

    fn drawn(&self, now: Time, state: &mut State, sequence: SequenceId) {
        let Some(seat) = state.seats.get_mut(sequence) else { return };
        match seat.last_token.replace(now) {
            None => {
                seat.first_token = Some(now);
                self.metrics.first_token(now.since(seat.arrived));
            }
            Some(last) => self.metrics.next_token(now.since(last)),
        }
    }

    /// Ends a sequence whose text met a stop string; `None` where it has ended by itself. Its caller knows.
    pub(super) fn stop(&self, sequence: SequenceId) -> Option<Ended> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let ended = state.scheduler.stop_sequence(now, sequence)?;
        drop(state.ended(now, &[ended], &[], &self.trace));
        Some(ended)
    }

    pub(super) fn cancel(&self, admitted: Admitted) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.scheduler.cancel(now, admitted.request);
        for sequence in admitted.sequences() {
            if let Some(seat) = state.seats.get_mut(sequence) {
                self.trace.life(seat.life(sequence, "cancelled", None, now));
            }
        }
        state.seats.forget(admitted.sequences());
        state.probe_ended(admitted.request);
    }

    fn abort(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.closed = true;
        let mut mail = Vec::new();
        for (request, last) in state.seats.close() {
            state.scheduler.cancel(now, request);
            mail.push(last);
        }
        drop(state);
        self.work.notify_one();
        mail.into_iter().for_each(Mail::send);
    }
}
