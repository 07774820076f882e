//! The token-level scheduler: who runs in the next step, with which tokens, in which blocks.

mod admission;
mod ahead;
mod commit;
mod config;
mod planning;
mod preemption;
mod starting;

use std::collections::BTreeSet;

pub use self::admission::{Admitted, Refusal};
use self::ahead::Ahead;
pub use self::config::ContinuousConfig;
pub use self::planning::Scheduled;
use super::block_pool::{BlockCounts, BlockPool};
use super::outlook::Outlook;
use super::sequence::{Deadlines, End, Ended, RequestId, Sequence, SequenceId, State};
use super::stats::{Counters, Stats, StepTimeSummary};
use super::step::StepId;
use super::step_time::{StepLoad, StepTime};
use crate::entry::{GroupKey, Ticket};
use crate::hash::FastMap;
use crate::queue::Queue;
use crate::time::Time;

/// All requests of one model may share a step.
const GROUP: GroupKey = GroupKey { shape: crate::entry::ShapeKey(0), bound: 0 };

/// An admitted request whose sequences have not all ended.
#[derive(Debug, Clone)]
struct Live {
    /// The first of its sequences, which alone feeds the prompt; the others are named after it.
    first: SequenceId,
    sequences: u32,
    /// Those that have not ended.
    left: u32,
    arrived: Time,
    deadlines: Deadlines,
    /// The soonest deadline that still counts, as it stands in the scheduler's order of them.
    due: Time,
    /// Whether a first token was drawn.
    answered: bool,
    cached_tokens: u32,
}

/// The step that runs.
#[derive(Debug, Clone)]
struct Running {
    id: StepId,
    work: Vec<SequenceId>,
    load: StepLoad,
}

/// The state machine: every call takes `now`, and none blocks.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: ContinuousConfig,
    pool: BlockPool,
    /// Requests that wait for their first step, by [`RequestId`].
    queue: Queue,
    requests: FastMap<RequestId, Live>,
    sequences: FastMap<SequenceId, Sequence>,
    /// Those that have a place in steps, in the order in which they got it.
    running: Vec<SequenceId>,
    preempted: Vec<SequenceId>,
    /// Preempted since the last plan.
    just_preempted: Vec<SequenceId>,
    /// Each request's next deadline, soonest first.
    dues: BTreeSet<(Time, RequestId)>,
    step: Option<Running>,
    /// What was planned for the step after it.
    ahead: Option<Ahead>,
    next_request: u64,
    next_sequence: u64,
    next_step: u64,
    /// Sequences that waiting requests are to become, and the most tokens that those may generate.
    queued_sequences: u64,
    queued_output: u64,
    draining: bool,
    times: StepTime,
    outlook: Outlook,
    counters: Counters,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: ContinuousConfig) -> Self {
        let config = config.normalised();
        Self {
            pool: BlockPool::new(config.blocks, config.block_size, config.prefix_caching),
            queue: Queue::new(config.ageing),
            requests: FastMap::default(),
            sequences: FastMap::default(),
            running: Vec::new(),
            preempted: Vec::new(),
            just_preempted: Vec::new(),
            dues: BTreeSet::new(),
            step: None,
            ahead: None,
            next_request: 0,
            next_sequence: 0,
            next_step: 0,
            queued_sequences: 0,
            queued_output: 0,
            draining: false,
            times: StepTime::default(),
            outlook: Outlook::default(),
            counters: Counters::default(),
            config,
        }
    }

    /// The limits in force.
    pub fn config(&self) -> &ContinuousConfig {
        &self.config
    }

    /// Whether anything waits, runs or was preempted.
    pub fn has_work(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether a step was planned and not committed yet.
    pub fn steps(&self) -> bool {
        self.step.is_some()
    }

    /// Takes no more requests; those admitted go on to their ends.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether it takes no more requests.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// When [`Self::expire`] has something to do next; `None` while no request has a deadline.
    pub fn next_deadline(&self) -> Option<Time> {
        self.dues.first().map(|&(due, _)| due)
    }

    /// Forgets a request whose caller left, wherever it is: its blocks are free for the next step, and nothing
    /// more is said of its sequences. False when it had ended.
    pub fn cancel(&mut self, _now: Time, request: RequestId) -> bool {
        let lives = self.requests.contains_key(&request);
        self.end_request(request, None, &mut Vec::new());
        lives
    }

    /// Ends one sequence that has drawn tokens, as one that stopped: its text met a stop string. `None` when it had
    /// ended or has drawn none yet.
    pub fn stop_sequence(&mut self, _now: Time, sequence: SequenceId) -> Option<Ended> {
        self.sequences.get(&sequence).filter(|sequence| sequence.generated() > 0)?;
        let mut ended = Vec::new();
        self.end_sequence(sequence, Some(End::Stopped), &mut ended);
        ended.pop()
    }

    /// Ends requests whose deadline has passed, wherever they are, and says when to call again.
    pub fn expire(&mut self, now: Time) -> (Vec<Ended>, Option<Time>) {
        let mut ended = Vec::new();
        while let Some(&(due, request)) = self.dues.first()
            && due <= now
        {
            let end = self.requests.get(&request).map(|live| live.expired(now));
            self.end_request(request, end, &mut ended);
            // The front always lives; the loop must end even if it did not.
            self.dues.remove(&(due, request));
        }
        (ended, self.next_deadline())
    }

    /// Blocks by what they are for.
    pub fn blocks(&self) -> BlockCounts {
        self.pool.counts()
    }

    /// What it did, and what it holds now.
    pub fn stats(&self) -> Stats {
        let total = self.queue.total();
        let running = self.running.iter().map(|id| u64::from(self.sequences[id].places()));
        let preempted = self.preempted.iter().map(|id| u64::from(self.sequences[id].places()));
        let ([step, decode, prompt_token, decode_context, prompt_pair], relative_error) =
            self.times.coefficients();
        Stats {
            blocks: self.pool.counts(),
            sequences_waiting: self.queued_sequences,
            sequences_running: running.sum(),
            sequences_preempted: preempted.sum(),
            queued_requests: total.entries as u64,
            queued_prompt_tokens: total.cost,
            predicted_drain: self.predicted_drain(),
            step_time: StepTimeSummary {
                step,
                decode,
                prompt_token,
                decode_context,
                prompt_pair,
                relative_error,
            },
            output_share: self.outlook.share(),
            counters: Counters { evictions: self.pool.evictions(), ..self.counters.clone() },
        }
    }

    /// Ends what is left of a request; said in `ended` unless its caller left (`None`).
    fn end_request(&mut self, request: RequestId, end: Option<End>, ended: &mut Vec<Ended>) {
        let Some(live) = self.requests.get(&request) else { return };
        let ids = live.first.0..live.first.0 + u64::from(live.sequences);
        for id in ids.map(SequenceId) {
            self.end_sequence(id, end, ended);
        }
    }

    /// Ends a sequence, and with it those that were to begin where its prompt ends.
    fn end_sequence(&mut self, id: SequenceId, end: Option<End>, ended: &mut Vec<Ended>) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        match sequence.state {
            State::Waiting => {
                self.queue.remove(Ticket(sequence.request.0));
                self.left_queue(sequence.places(), sequence.max_tokens);
            }
            State::Running => self.running.retain(|&other| other != id),
            State::Preempted(_) => self.preempted.retain(|&other| other != id),
        }
        self.just_preempted.retain(|&other| other != id);
        self.pool.release_all(&sequence.blocks);
        if let Some(End::Stopped | End::Length) = end {
            self.outlook.ended(sequence.generated(), sequence.max_tokens);
        }
        for id in (id.0..).map(SequenceId).take(sequence.places() as usize) {
            self.say(sequence.request, id, end, ended);
        }
    }

    /// A sequence of the request is no more.
    fn say(&mut self, request: RequestId, sequence: SequenceId, end: Option<End>, ended: &mut Vec<Ended>) {
        let Some(live) = self.requests.get_mut(&request) else { return };
        live.left -= 1;
        let (last, due, cached_tokens) = (live.left == 0, live.due, live.cached_tokens);
        if last {
            self.requests.remove(&request);
            if self.requests.is_empty() {
                // Of nobody.
                self.ahead = None;
            }
            self.dues.remove(&(due, request));
        }
        match end {
            Some(end) => {
                self.counters.ended(end);
                ended.push(Ended { request, sequence, end, last, cached_tokens });
            }
            None => self.counters.cancelled += 1,
        }
    }

    /// A request of so many sequences, each of which may generate so much, waits no longer.
    fn left_queue(&mut self, sequences: u32, max_tokens: u32) {
        self.queued_sequences -= u64::from(sequences);
        self.queued_output -= u64::from(sequences) * u64::from(max_tokens);
    }

    /// Which of the request's deadlines counts next has changed.
    fn follow_due(&mut self, request: RequestId) {
        let Some(live) = self.requests.get_mut(&request) else { return };
        let waits = self.sequences.get(&live.first).is_some_and(|sequence| sequence.state == State::Waiting);
        let due = live.next_due(waits);
        if due != live.due {
            self.dues.remove(&(live.due, request));
            live.due = due;
            if due != Time::MAX {
                self.dues.insert((due, request));
            }
        }
    }

    /// Places in steps that are taken, those of sequences still to begin included.
    fn places_taken(&self) -> u32 {
        self.running.iter().map(|id| self.sequences[id].places()).sum()
    }

    /// The pool, for tests that look after every call.
    #[cfg(test)]
    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The blocks of every sequence that holds any.
    #[cfg(test)]
    pub(crate) fn holdings(&self) -> Vec<(SequenceId, Vec<super::block_pool::BlockId>)> {
        self.sequences.iter().map(|(&id, sequence)| (id, sequence.blocks.clone())).collect()
    }

    /// Whether it remembers nothing of any request: what ended must leave no trace.
    #[cfg(test)]
    pub(crate) fn remembers_nothing(&self) -> bool {
        self.requests.is_empty()
            && self.sequences.is_empty()
            && self.running.is_empty()
            && self.preempted.is_empty()
            && self.just_preempted.is_empty()
            && self.dues.is_empty()
            && self.ahead.is_none()
            && self.queue.holds_nothing()
            && self.queued_sequences == 0
            && self.queued_output == 0
            && self.pool.counts().used == 0
    }
}

impl Live {
    fn next_due(&self, waits: bool) -> Time {
        let Deadlines { queue, first_token, total } = self.deadlines;
        let queue = queue.filter(|_| waits);
        let first_token = first_token.filter(|_| !self.answered);
        [queue, first_token, total].into_iter().flatten().min().unwrap_or(Time::MAX)
    }

    /// Which deadline has passed, the last of them where more than one has.
    fn expired(&self, now: Time) -> End {
        let Deadlines { first_token, total, .. } = self.deadlines;
        let passed = |due: Option<Time>| due.is_some_and(|due| due <= now);
        if passed(total) {
            End::ExpiredTotal
        } else if !self.answered && passed(first_token) {
            End::ExpiredFirstToken
        } else {
            End::ExpiredInQueue
        }
    }
}
