//! The side of a running request that its caller sees.

use std::sync::Weak;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use trustformers_batching::continuous::Admitted;

use super::engine::Shared;
use super::request::{Finish, GenerationEvent};

/// A request that generates: its events, and its place, which is given up when this is dropped.
pub struct Generating {
    events: mpsc::Receiver<GenerationEvent>,
    shared: Weak<Shared>,
    admitted: Admitted,
    /// Texts that have not ended.
    open: Vec<u32>,
    cached_tokens: u32,
}

impl Generating {
    /// Of a request that was admitted with so many texts.
    pub(super) fn new(
        events: mpsc::Receiver<GenerationEvent>,
        shared: Weak<Shared>,
        admitted: Admitted,
        choices: u32,
    ) -> Self {
        Self { events, shared, admitted, open: (0..choices).collect(), cached_tokens: 0 }
    }

    /// The next that happens; `None` after the ends of all texts. Each has one, also where the engine is gone
    /// without a word.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        if self.open.is_empty() {
            return Poll::Ready(None);
        }
        let event = match ready!(self.events.poll_recv(context)) {
            Some(event) => Some(event),
            None => self.open.first().map(|&choice| GenerationEvent::Ended {
                choice,
                how: Finish::Failed("the model is gone".to_owned()),
                cached_tokens: self.cached_tokens,
            }),
        };
        if let Some(GenerationEvent::Ended { choice, cached_tokens, .. }) = event {
            self.ended(choice, cached_tokens);
        }
        Poll::Ready(event)
    }

    fn ended(&mut self, choice: u32, cached_tokens: u32) {
        self.open.retain(|&other| other != choice);
        self.cached_tokens = cached_tokens;
    }

    /// Tokens of the prompt that had been computed for others; known when a text has ended.
    pub fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// Ends one text that has begun: its caller has enough of it. Nothing more is said of it.
    pub fn stop(&mut self, choice: u32) {
        let sequence = self.admitted.sequences().nth(choice as usize);
        let (Some(shared), Some(sequence)) = (self.shared.upgrade(), sequence) else { return };
        if let Some(ended) = shared.stop(sequence) {
            self.ended(choice, ended.cached_tokens);
        }
    }
}

impl Drop for Generating {
    fn drop(&mut self) {
        if !self.open.is_empty()
            && let Some(shared) = self.shared.upgrade()
        {
            shared.cancel(self.admitted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use trustformers_batching::continuous::{ContinuousConfig, Deadlines, Request, Scheduler};
    use trustformers_batching::{ClientId, Priority, Time};

    use super::*;

    #[test]
    fn texts_whose_engine_is_gone_without_a_word_have_failed() {
        let mut scheduler = Scheduler::new(ContinuousConfig::default());
        let request = Request {
            prompt: vec![1],
            max_tokens: 4,
            sequences: 2,
            priority: Priority::Normal,
            client: ClientId::default(),
            salt: None,
            scores_prompt: false,
            deadlines: Deadlines::default(),
        };
        let admitted = scheduler.submit(Time::ZERO, request).unwrap();
        let (engine, events) = mpsc::channel(4);
        let end = GenerationEvent::Ended { choice: 0, how: Finish::Stopped, cached_tokens: 0 };
        engine.try_send(end.clone()).unwrap();
        drop(engine);
        let mut generating = Generating::new(events, Weak::new(), admitted, 2);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(generating.poll_next(&mut context), Poll::Ready(Some(end)));
        let how = Finish::Failed("the model is gone".to_owned());
        let gone = GenerationEvent::Ended { choice: 1, how, cached_tokens: 0 };
        assert_eq!(generating.poll_next(&mut context), Poll::Ready(Some(gone)));
        assert_eq!(generating.poll_next(&mut context), Poll::Ready(None));
    }
}
