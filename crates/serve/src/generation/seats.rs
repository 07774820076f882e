//! Who generates what: the side of each sequence that its scheduler does not know.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use trustformers_batching::Time;
use trustformers_batching::continuous::{Admitted, Ended, RequestId, SequenceId, StepPlan};

use super::request::{Finish, GenerationEvent, GenerationRequest};
use super::sampling::{Logprobs, Sampler};
use super::trace::Life;

/// One sequence of an admitted request.
#[derive(Debug)]
pub(super) struct Seat {
    id: Arc<str>,
    pub(super) request: RequestId,
    pub(super) choice: u32,
    /// Not there while a step draws with it.
    sampler: Option<Sampler>,
    stop_tokens: Arc<[u32]>,
    /// Where the prompt is to be scored.
    scoring: Option<Scoring>,
    /// Holds as many events as the request can ever cause, so that it is never full.
    events: mpsc::Sender<GenerationEvent>,
    /// When it was admitted, and when its first and its last token were drawn.
    pub(super) arrived: Time,
    pub(super) first_token: Option<Time>,
    pub(super) last_token: Option<Time>,
    /// When a step first fed any of it.
    pub(super) began: Option<Time>,
}

impl Seat {
    /// Its life, which ends now.
    pub(super) fn life(
        &self,
        sequence: SequenceId,
        end: &'static str,
        cached_tokens: Option<u32>,
        now: Time,
    ) -> Life {
        let Self { request, arrived, began, first_token, .. } = *self;
        let id = Arc::clone(&self.id);
        Life { id, request, sequence, end, cached_tokens, arrived, began, first_token, left: now }
    }

    /// An event for its caller, to be sent when no lock is held.
    fn mail(&self, event: GenerationEvent) -> Mail {
        Mail { to: self.events.clone(), event }
    }
}

/// An event on its way to a caller.
#[derive(Debug)]
pub(super) struct Mail {
    to: mpsc::Sender<GenerationEvent>,
    event: GenerationEvent,
}

impl Mail {
    /// A caller who left hears nothing.
    pub(super) fn send(self) {
        drop(self.to.try_send(self.event));
    }
}

/// A sequence that draws a token in a step.
#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) sequence: SequenceId,
    pub(super) sampler: Sampler,
    pub(super) stop_tokens: Arc<[u32]>,
}

/// A prompt whose tokens are to be scored.
#[derive(Debug, Clone)]
pub(super) struct Scoring {
    pub(super) prompt: Arc<[u32]>,
    /// How many of the likeliest tokens are named at each.
    pub(super) count: u32,
    /// The first position that was not scored yet: after a preemption some come again.
    pub(super) next: u32,
}

/// What the logits of one work of a step are for.
#[derive(Debug, Default)]
pub(super) struct Use {
    /// Who draws from the last.
    pub(super) drawing: Vec<Drawing>,
    /// What is scored by each.
    pub(super) scoring: Option<Scoring>,
}

/// All sequences that wait, run or were preempted.
#[derive(Debug, Default)]
pub(super) struct Seats {
    of: HashMap<SequenceId, Seat>,
}

impl Seats {
    /// Takes an admitted request in; its events come through what is answered.
    pub(super) fn add(
        &mut self,
        now: Time,
        admitted: Admitted,
        request: &GenerationRequest,
        samplers: Vec<Sampler>,
    ) -> mpsc::Receiver<GenerationEvent> {
        // Each choice has at most max_tokens tokens and one end; a prompt is scored in as many parts as it has tokens.
        let scored = if request.scores_prompt { request.prompt.len() } else { 0 };
        let most = (request.max_tokens as usize + 1) * samplers.len() + scored;
        let scoring = request.scores_prompt.then(|| Scoring {
            prompt: request.prompt.as_slice().into(),
            count: request.sampling.logprobs.unwrap_or(0),
            next: 1,
        });
        let (events, receiver) = mpsc::channel(most.max(1));
        for ((sequence, sampler), choice) in admitted.sequences().zip(samplers).zip(0..) {
            let seat = Seat {
                id: Arc::clone(&request.id),
                request: admitted.request,
                choice,
                sampler: Some(sampler),
                stop_tokens: Arc::clone(&request.stop_tokens),
                scoring: scoring.clone().filter(|_| choice == 0),
                events: events.clone(),
                arrived: now,
                first_token: None,
                last_token: None,
                began: None,
            };
            self.of.insert(sequence, seat);
        }
        receiver
    }

    /// What the logits of each work are for.
    pub(super) fn uses(&mut self, plan: &StepPlan) -> Vec<Use> {
        let mut drawing = |sequence| {
            let seat = self.of.get_mut(&sequence)?;
            let (sampler, stop_tokens) = (seat.sampler.take()?, Arc::clone(&seat.stop_tokens));
            Some(Drawing { sequence, sampler, stop_tokens })
        };
        let mut uses: Vec<Use> = plan
            .work
            .iter()
            .map(|work| {
                let members = [&[work.sequence], work.forks.as_slice()].concat();
                let members = members.into_iter().filter(|_| work.samples);
                Use { drawing: members.filter_map(&mut drawing).collect(), scoring: None }
            })
            .collect();
        for (work, of) in plan.work.iter().zip(&mut uses).filter(|(work, _)| work.scores) {
            of.scoring = self.of.get(&work.sequence).and_then(|seat| seat.scoring.clone());
        }
        uses
    }

    /// Takes in what was scored of a prompt, for its caller.
    pub(super) fn scored(
        &mut self,
        sequence: SequenceId,
        position: u32,
        logprobs: Vec<Logprobs>,
    ) -> Option<Mail> {
        let seat = self.of.get_mut(&sequence)?;
        seat.scoring.as_mut()?.next = position + logprobs.len() as u32;
        Some(seat.mail(GenerationEvent::Scored { position, logprobs }))
    }

    /// Gives a sequence back what it draws with; nothing where its caller has left.
    pub(super) fn put_back(&mut self, drawing: Drawing) {
        if let Some(seat) = self.of.get_mut(&drawing.sequence) {
            seat.sampler = Some(drawing.sampler);
        }
    }

    pub(super) fn get_mut(&mut self, sequence: SequenceId) -> Option<&mut Seat> {
        self.of.get_mut(&sequence)
    }

    /// What a sequence that lives says.
    pub(super) fn mail(
        &self,
        sequence: SequenceId,
        event: impl FnOnce(u32) -> GenerationEvent,
    ) -> Option<Mail> {
        let seat = self.of.get(&sequence)?;
        Some(seat.mail(event(seat.choice)))
    }

    /// The last that a sequence says.
    pub(super) fn end(&mut self, ended: &Ended, how: Finish) -> Option<Mail> {
        let seat = self.of.remove(&ended.sequence)?;
        let cached_tokens = ended.cached_tokens;
        Some(seat.mail(GenerationEvent::Ended { choice: seat.choice, how, cached_tokens }))
    }

    /// Forgets sequences whose caller left.
    pub(super) fn forget(&mut self, sequences: impl Iterator<Item = SequenceId>) {
        for sequence in sequences {
            self.of.remove(&sequence);
        }
    }

    /// Ends all of them; whose they were.
    pub(super) fn close(&mut self) -> Vec<(RequestId, Mail)> {
        let end = |seat: Seat| {
            let how = Finish::Closed;
            (seat.request, seat.mail(GenerationEvent::Ended { choice: seat.choice, how, cached_tokens: 0 }))
        };
        self.of.drain().map(|(_, seat)| end(seat)).collect()
    }
}
