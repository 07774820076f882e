//! Who is let in, and how long who is let in will wait.

use std::time::Duration;

use super::{Live, Scheduler};
use crate::continuous::sequence::{Request, RequestId, Sequence, SequenceId, State, most_fed};
use crate::continuous::step_time::{StepLoad, StepTime};
use crate::entry::{Entry, Priority, Ticket};
use crate::scheduler::Rejection;
use crate::time::Time;

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As any scheduler may.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is nothing to go on from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// It asks for no token.
    #[error("max_tokens is 0")]
    NothingToGenerate,
    /// It asks for no sequence, or for more than ever run at once.
    #[error("{asked} sequences are asked for, and 1 to {limit} can be generated at once")]
    Sequences {
        /// What it asks for.
        asked: u32,
        /// The most.
        limit: u32,
    },
    /// The model cannot attend to as much.
    #[error(
        "the model's context is {limit} tokens, and the request has {prompt} in the prompt \
         and {max_tokens} to generate"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: u64,
        /// The most that each sequence generates.
        max_tokens: u32,
        /// The model's context.
        limit: u32,
    },
    /// The queue never holds so many prompts at once.
    #[error("{prompts} prompts are sent, and the queue holds {limit} (max_queue_size)")]
    QueueSize {
        /// Prompts that were sent together.
        prompts: u64,
        /// The most.
        limit: u32,
    },
    /// The queue never holds so many tokens of prompts at once.
    #[error("{prompt} tokens of prompts are sent, and the queue holds {limit} (max_queue_tokens)")]
    QueueTokens {
        /// Tokens of the prompts that were sent together.
        prompt: u64,
        /// The most.
        limit: u64,
    },
}

impl Refusal {
    /// Every reason, in the order of the variants; part of the metrics' interface.
    pub const REASONS: [&str; Rejection::REASONS.len() + Self::OWN.len()] = {
        let mut all = [""; Rejection::REASONS.len() + Self::OWN.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = match index.checked_sub(Rejection::REASONS.len()) {
                None => Rejection::REASONS[index],
                Some(own) => Self::OWN[own],
            };
            index += 1;
        }
        all
    };
    const OWN: [&str; 6] = [
        "empty_prompt",
        "nothing_to_generate",
        "sequences",
        "context_exceeded",
        "queue_size",
        "queue_tokens",
    ];

    /// Why, in a word.
    pub fn reason(&self) -> &'static str {
        Self::REASONS[self.index()]
    }

    /// The reason's place in [`Refusal::REASONS`].
    pub(crate) fn index(&self) -> usize {
        let own = match self {
            Refusal::Rejected(rejection) => return rejection.index(),
            Refusal::EmptyPrompt => 0,
            Refusal::NothingToGenerate => 1,
            Refusal::Sequences { .. } => 2,
            Refusal::ContextExceeded { .. } => 3,
            Refusal::QueueSize { .. } => 4,
            Refusal::QueueTokens { .. } => 5,
        };
        Rejection::REASONS.len() + own
    }
}

/// The names of an admitted request and of its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// The request.
    pub request: RequestId,
    first: SequenceId,
    sequences: u32,
}

impl Admitted {
    /// Its sequences, as many as it asked for, in order.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = SequenceId> + use<> {
        let first = self.first.0;
        (0..self.sequences).map(move |index| SequenceId(first + u64::from(index)))
    }
}

impl Scheduler {
    /// Refuses `requests` of `prompt_tokens` tokens together, of `sequences` sequences each, if nothing could come of
    /// them now: overload has to be cheap. What it does not refuse may still be refused when it is submitted. While
    /// draining it refuses nothing: a replacement may take them.
    pub fn refuse_early(&mut self, requests: usize, prompt_tokens: u64, sequences: u32) -> Option<Refusal> {
        if self.draining {
            return None;
        }
        let room = self.fits_at_once(requests as u64, prompt_tokens, sequences);
        let refusal = room.and_then(|()| self.queue_has_room(requests, prompt_tokens)).err()?;
        self.counters.refused(&refusal);
        Some(refusal)
    }

    /// Admits a request, or says at once why not.
    pub fn submit(&mut self, now: Time, request: Request) -> Result<Admitted, Refusal> {
        self.submit_past(now, request, |_| Ok(()))
    }

    /// The same where `gate` has the last word on what would be admitted, by the name it would have.
    pub fn submit_past(
        &mut self,
        now: Time,
        mut request: Request,
        gate: impl FnOnce(RequestId) -> Result<(), Rejection>,
    ) -> Result<Admitted, Refusal> {
        if !self.config.priorities {
            request.priority = Priority::Normal;
        }
        let id = RequestId(self.next_request);
        let admitted = self.admit(now, &request).and_then(|()| Ok(gate(id)?));
        if let Err(refusal) = admitted {
            self.counters.refused(&refusal);
            return Err(refusal);
        }
        self.counters.admitted += 1;
        let first = SequenceId(self.next_sequence);
        let admitted = Admitted { request: id, first, sequences: request.sequences };
        self.next_request += 1;
        self.next_sequence += u64::from(request.sequences);
        self.queued_sequences += u64::from(request.sequences);
        self.queued_output += u64::from(request.sequences) * u64::from(request.max_tokens);

        self.queue.push(
            super::GROUP,
            Entry {
                ticket: Ticket(id.0),
                client: request.client,
                cost: request.prompt.len() as u32,
                priority: request.priority,
                deadline: request.deadlines.soonest(),
                arrived: now,
                ..Entry::default()
            },
        );
        self.requests.insert(
            id,
            Live {
                first,
                sequences: request.sequences,
                left: request.sequences,
                arrived: now,
                deadlines: request.deadlines,
                due: Time::MAX,
                answered: false,
                cached_tokens: 0,
            },
        );
        self.sequences.insert(
            first,
            Sequence {
                request: id,
                state: State::Waiting,
                prompt: request.prompt.len(),
                scored: if request.scores_prompt { 0 } else { request.prompt.len() },
                tokens: request.prompt,
                computed: 0,
                blocks: Vec::new(),
                chain: Vec::new(),
                known: 0,
                shared: 0,
                salt: request.salt,
                max_tokens: request.max_tokens,
                forks: request.sequences - 1,
                priority: request.priority,
                rank: request.priority,
                fed: 0,
                planned: 0,
                resumed: false,
            },
        );
        self.follow_due(id);
        Ok(admitted)
    }

    fn admit(&self, now: Time, request: &Request) -> Result<(), Refusal> {
        if self.draining {
            return Err(Rejection::Draining.into());
        }
        self.could_ever_fit(request)?;
        if request.deadlines.soonest().is_some_and(|deadline| deadline <= now) {
            return Err(Rejection::DeadlinePassed.into());
        }
        self.queue_has_room(1, request.prompt.len() as u64)?;
        self.in_time(now, request)
    }

    fn could_ever_fit(&self, request: &Request) -> Result<(), Refusal> {
        let (prompt, max_tokens) = (request.prompt.len() as u64, request.max_tokens);
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(Refusal::NothingToGenerate);
        }
        self.fits_at_once(1, prompt, request.sequences)?;
        let limit = self.config.max_context;
        if prompt + u64::from(max_tokens) > u64::from(limit) {
            return Err(Refusal::ContextExceeded { prompt, max_tokens, limit });
        }
        let (cost, limit) =
            (most_fed(request.prompt.len(), max_tokens), self.config.most_fed(request.sequences));
        if cost > limit { Err(Rejection::NeverFits { cost, limit }.into()) } else { Ok(()) }
    }

    /// Whether an empty queue holds so much, and steps so many sequences of one request.
    fn fits_at_once(&self, requests: u64, prompt: u64, asked: u32) -> Result<(), Refusal> {
        let limit = self.config.max_sequences;
        if asked == 0 || asked > limit {
            return Err(Refusal::Sequences { asked, limit });
        }
        let limit = self.config.max_queue_size;
        if requests > u64::from(limit) {
            return Err(Refusal::QueueSize { prompts: requests, limit });
        }
        match self.config.max_queue_tokens {
            Some(limit) if prompt > limit => Err(Refusal::QueueTokens { prompt, limit }),
            _ => Ok(()),
        }
    }

    fn queue_has_room(&self, requests: usize, prompt_tokens: u64) -> Result<(), Refusal> {
        let queued = self.queue.total();
        let limit = self.config.max_queue_size;
        if queued.entries + requests > limit as usize {
            return Err(Rejection::QueueFull { limit }.into());
        }
        match self.config.max_queue_tokens {
            Some(limit) if queued.cost + prompt_tokens > limit => {
                let cost = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
                Err(Rejection::QueueCostFull { cost, queued: queued.cost, limit }.into())
            }
            _ => Ok(()),
        }
    }

    /// Refuses what would only take a place from others: its first token cannot be drawn in time.
    fn in_time(&self, now: Time, request: &Request) -> Result<(), Refusal> {
        // What is idle is tried, whatever the model was like before: else a wrong prediction would last.
        if !self.has_work() {
            return Ok(());
        }
        let deadlines = [request.deadlines.first_token, request.deadlines.total];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return Ok(()) };
        match self.predicted_first_token(request.priority, request.prompt.len()) {
            Some(predicted) if now + predicted > deadline => {
                Err(Rejection::DeadlineUnmeetable { predicted }.into())
            }
            _ => Ok(()),
        }
    }

    /// How long until the first token of a request submitted now. `None` before enough steps have ended.
    ///
    /// It waits for the prompts ahead of it, and where all places are taken for as many ends as there are
    /// sequences ahead of it; nothing is counted on the prefix cache.
    pub fn predicted_first_token(&self, priority: Priority, prompt: usize) -> Option<Duration> {
        let times = self.times.known()?;
        let ahead = self.queue.ahead_of(priority);
        let crowd = self.crowd();
        let running = f64::from(self.places_taken());
        let waiting = (ahead.entries + self.preempted.len() + 1) as f64;
        let decodes = (running + waiting - 1.0).min(crowd.together);
        let chunk = self.usual_chunk(times, decodes, crowd.context);
        let prompts = ahead.cost as f64 + crowd.pending + prompt as f64;
        // So many must end first, of those that run: one ends whenever its share of all output is drawn.
        let ends = (running + waiting - crowd.together).max(0.0);
        let for_place = ends * crowd.output_each / decodes.max(1.0) + (prompt as f64 / chunk).ceil();
        let steps = for_place.max((prompts / chunk).ceil());
        let load = StepLoad {
            decodes,
            prompt_tokens: prompts / steps,
            decode_context: decodes * crowd.context,
            prompt_pairs: prompts / steps * crowd.context / 2.0,
        };
        Some(scaled(times.predict(load)?, steps))
    }

    /// How long until all that waits and runs has ended: what `Retry-After` goes by. `None` before enough
    /// steps have ended.
    pub fn predicted_drain(&self) -> Option<Duration> {
        let times = self.times.known()?;
        if !self.has_work() {
            return Some(Duration::ZERO);
        }
        let crowd = self.crowd();
        let prompts = self.queue.total().cost as f64 + crowd.pending;
        let decodes = crowd.together.min(crowd.sequences).max(1.0);
        let chunk = self.usual_chunk(times, decodes, crowd.context);
        let output = crowd.output_each * crowd.sequences;
        let steps = (output / decodes).max(prompts / chunk).ceil().max(1.0);
        let load = StepLoad {
            decodes: output / steps,
            prompt_tokens: prompts / steps,
            decode_context: output / steps * crowd.context,
            prompt_pairs: prompts / steps * crowd.context / 2.0,
        };
        Some(scaled(times.predict(load)?, steps))
    }

    /// Tokens of prompts that a step takes beside so many decodes.
    fn usual_chunk(&self, times: &StepTime, decodes: f64, context: f64) -> f64 {
        let load = StepLoad { decodes, decode_context: decodes * context, ..StepLoad::default() };
        let left = (self.config.max_step_tokens as usize).saturating_sub(decodes as usize).max(1);
        let least = left.min(self.config.block_size as usize);
        self.chunk_beside(Some(times), load, 0, left).max(least) as f64
    }

    /// All that is not at its end: how many sequences, what they are expected to generate, how many of them
    /// fit beside each other.
    fn crowd(&self) -> Crowd {
        let (mut sequences, mut output, mut pending, mut context) = (0.0, 0.0, 0.0, 0.0);
        for id in self.running.iter().chain(&self.preempted) {
            let sequence = &self.sequences[id];
            let places = f64::from(sequence.places());
            sequences += places;
            output += places * self.outlook.expected(sequence.allowed()) as f64;
            context += places * sequence.tokens.len() as f64;
            // What the step that runs feeds is not there yet.
            let left = sequence.tokens.len() - sequence.computed;
            if left > 1 {
                pending += left as f64;
            }
        }
        let waiting = self.queued_sequences as f64;
        sequences += waiting;
        output += self.outlook.share() * self.queued_output as f64;
        if let Some(each) = self.queue.total().cost.checked_div(self.queue.total().entries as u64) {
            context += waiting * each as f64;
        }
        let output_each = output / sequences.max(1.0);
        let context = context / sequences.max(1.0) + output_each / 2.0;
        let tokens = f64::from(self.config.blocks) * f64::from(self.config.block_size);
        let together = (tokens / context.max(1.0)).min(f64::from(self.config.max_sequences)).max(1.0);
        Crowd { sequences, output_each, pending, context, together }
    }
}

/// Means over all that waits and runs.
struct Crowd {
    sequences: f64,
    /// Tokens that each is expected still to generate.
    output_each: f64,
    /// Tokens of prompts that have begun.
    pending: f64,
    /// Tokens that each has in its context, halfway.
    context: f64,
    /// How many run at once where places and blocks are all taken.
    together: f64,
}

fn scaled(step: Duration, steps: f64) -> Duration {
    Duration::try_from_secs_f64(step.as_secs_f64() * steps).unwrap_or(Duration::MAX)
}
