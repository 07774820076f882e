//! The texts of one request: submitted together, growing side by side, counted once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use serde::Serialize;
use trustformers_batching::Rejection;
use trustformers_batching::continuous::{End, Refusal};

use super::options::Options;
use crate::generation::Generator;
use crate::generation::choice::{Choice, Delta};
use crate::generation::generating::Generating;
use crate::generation::request::{Finish, GenerationEvent, GenerationRequest, Refused};
use crate::generation::sampling::{Logprobs, Sampling};
use crate::http::error::{ApiError, Code};
use crate::http::infer::already_counted;
use crate::http::request_id::RequestId;
use crate::registry::{Running, Terms, Version};
use crate::text::Tokenizer;

/// What a request asks of the engine, for each of its prompts.
pub(in crate::http) struct Ask<'a> {
    pub(in crate::http) id: &'a RequestId,
    pub(in crate::http) version: &'a Arc<Version>,
    pub(in crate::http) options: &'a Options,
    /// Where the prompts stand in the body.
    pub(in crate::http) field: &'static str,
    pub(in crate::http) sampling: Sampling,
    /// Whether the prompts' tokens are scored as well.
    pub(in crate::http) scores_prompt: bool,
    /// Most tokens of a text, where the request does not say; never more than the context and the KV cache have room
    /// for, and never fewer than it has to have.
    pub(in crate::http) usual_tokens: u32,
    pub(in crate::http) terms: Terms,
    /// Whether the time limit is the client's own, and so counts for the whole of the text. The server's own is
    /// about the first token: how long a text becomes is up to it.
    pub(in crate::http) timed: bool,
    pub(in crate::http) arrived: Instant,
}

/// The texts of one request, prompt by prompt.
pub(in crate::http) struct Texts {
    prompts: Vec<Prompted>,
    /// Texts of each prompt.
    each: usize,
    /// The stop tokens that the request names: they are told as the reason of an end.
    named_stops: Box<[u32]>,
    /// Read ahead, so that an error before the first token has a status of its own.
    first: Option<Result<Update, ApiError>>,
    tokenizer: Arc<Tokenizer>,
    version: Arc<Version>,
    arrived: Instant,
    /// Keeps the model until the texts have ended.
    _running: Arc<Running>,
}

struct Prompted {
    generating: Generating,
    choices: Vec<Choice>,
    prompt: Vec<u32>,
    /// Whether what comes after the prompt is wanted.
    answers: bool,
    /// Whether it was counted as answered or failed.
    counted: bool,
}

/// Something new about one text.
#[derive(Debug)]
pub(in crate::http) struct Update {
    /// Its place among all texts of the request, those of the first prompt first.
    pub(in crate::http) index: usize,
    pub(in crate::http) delta: Delta,
    /// Tokens of the prompt and how likely they were; comes before the text, and of its first text alone.
    pub(in crate::http) scored: Vec<(u32, Logprobs)>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptTokens,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct PromptTokens {
    pub(super) cached_tokens: usize,
}

impl Texts {
    /// Submits all prompts; when one is refused, those before it are taken back.
    pub(in crate::http) fn submit(
        ask: &Ask<'_>,
        running: &Arc<Running>,
        generator: &Generator,
        prompts: &[Vec<u32>],
    ) -> Result<Self, Box<Refused>> {
        let tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
        generator.engine.refuse_early(prompts.len(), tokens, ask.options.best_of)?;
        let sampling = Arc::new(ask.sampling.clone());
        let stop_tokens: Arc<[u32]> = ask.options.all_stop_tokens(generator).into();
        let text = ask.options.text();
        let deadline = ask.terms.deadline;
        let limits = generator.engine.config();
        let mut submitted = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let choices = (0..ask.options.best_of)
                .map(|_| Choice::new(&generator.tokenizer, prompt, text.clone()))
                .collect();
            let room = limits.most_tokens(prompt.len(), ask.options.best_of);
            let usual = ask.usual_tokens.min(room).max(ask.options.min_tokens);
            let request = GenerationRequest {
                id: ask.id.shared(),
                prompt: prompt.clone(),
                choices: ask.options.best_of,
                // A prompt that is only scored is fed like any other, and what comes after it is not looked at.
                max_tokens: ask.options.max_tokens.unwrap_or(usual).max(1),
                sampling: Arc::clone(&sampling),
                stop_tokens: Arc::clone(&stop_tokens),
                priority: ask.terms.priority,
                client: ask.terms.client,
                salt: ask.options.salt,
                scores_prompt: ask.scores_prompt,
                first_token: (!ask.timed).then_some(deadline),
                deadline: ask.timed.then_some(deadline),
            };
            let generating = generator.engine.submit(request)?;
            let answers = ask.options.max_tokens != Some(0);
            submitted.push(Prompted { generating, choices, prompt: prompt.clone(), answers, counted: false });
        }
        Ok(Self {
            prompts: submitted,
            each: ask.options.best_of as usize,
            named_stops: ask.options.stop_token_ids().into(),
            first: None,
            tokenizer: Arc::clone(&generator.tokenizer),
            version: Arc::clone(ask.version),
            arrived: ask.arrived,
            _running: Arc::clone(running),
        })
    }

    /// Waits for the first update; its error is that of the whole request.
    pub(in crate::http) async fn begin(&mut self) -> Result<(), ApiError> {
        match self.next().await {
            Some(Err(error)) => Err(error),
            first => {
                self.first = first;
                Ok(())
            }
        }
    }

    /// The next update; `None` when all texts have ended. An error is the last.
    pub(in crate::http) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same for those who poll.
    pub(in crate::http) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Update, ApiError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let mut all_ended = true;
        for (place, prompted) in self.prompts.iter_mut().enumerate() {
            loop {
                match prompted.generating.poll_next(context) {
                    Poll::Pending => {
                        all_ended = false;
                        break;
                    }
                    Poll::Ready(None) => {
                        if !std::mem::replace(&mut prompted.counted, true) {
                            self.version.metrics().ended(None);
                        }
                        break;
                    }
                    Poll::Ready(Some(event)) => match prompted.take_in(event, &self.named_stops) {
                        Ok(None) => {}
                        Ok(Some(mut update)) => {
                            update.index += place * self.each;
                            return Poll::Ready(Some(Ok(update)));
                        }
                        Err(error) => {
                            prompted.counted = true;
                            self.version.metrics().ended(Some(error.code.name()));
                            return Poll::Ready(Some(Err(already_counted(error))));
                        }
                    },
                }
            }
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The `n` best texts of each prompt, best first, when all have ended; `add` adds an update to its text.
    pub(in crate::http) async fn wholes<T: Default>(
        &mut self,
        n: usize,
        mut add: impl FnMut(&mut T, Update),
    ) -> Result<Vec<T>, ApiError> {
        let mut wholes: Vec<_> = (0..self.prompts.len() * self.each).map(|_| T::default()).collect();
        while let Some(update) = self.next().await {
            let update = update?;
            add(&mut wholes[update.index], update);
        }
        Ok(self.best(n).into_iter().map(|place| std::mem::take(&mut wholes[place])).collect())
    }

    /// What makes texts of their tokens.
    pub(in crate::http) fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// Texts of each prompt.
    pub(in crate::http) fn each(&self) -> usize {
        self.each
    }

    /// Tokens so far.
    pub(in crate::http) fn usage(&self) -> Usage {
        let prompt_tokens = self.prompts.iter().map(|prompted| prompted.prompt.len()).sum();
        let choices = self.prompts.iter().flat_map(|prompted| &prompted.choices);
        let completion_tokens = choices.map(|choice| choice.tokens() as usize).sum();
        let cached = self.prompts.iter().map(|prompted| prompted.generating.cached_tokens() as usize);
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokens { cached_tokens: cached.sum() },
        }
    }

    /// The places of each prompt's `n` best texts, best first.
    fn best(&self, n: usize) -> Vec<usize> {
        let of = |(place, prompted): (usize, &Prompted)| {
            let mut order: Vec<usize> = (0..prompted.choices.len()).collect();
            if order.len() > n {
                let mean = |&choice: &usize| prompted.choices[choice].mean_logprob();
                order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            }
            order.into_iter().take(n).map(move |choice| place * self.each + choice)
        };
        self.prompts.iter().enumerate().flat_map(of).collect()
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        for _ in self.prompts.iter().filter(|prompted| !prompted.counted) {
            self.version.metrics().ended(Some("cancelled"));
        }
        self.version.metrics().call_took(self.arrived.elapsed());
    }
}

impl Prompted {
    /// What an event says of which text; nothing of one that has ended.
    fn take_in(&mut self, event: GenerationEvent, named_stops: &[u32]) -> Result<Option<Update>, ApiError> {
        let index = match &event {
            GenerationEvent::Token { choice, .. } | GenerationEvent::Ended { choice, .. } => *choice as usize,
            GenerationEvent::Scored { .. } => 0,
        };
        let Some(choice) = self.choices.get_mut(index).filter(|choice| !choice.has_ended()) else {
            return Ok(None);
        };
        let failed = |error: crate::text::TextError| ApiError::new(Code::ModelFailed, error.to_string());
        let delta = match event {
            GenerationEvent::Scored { position, logprobs } => {
                let tokens = self.prompt[position as usize..].iter().copied();
                let scored = tokens.zip(logprobs).collect();
                return Ok(Some(Update { index, delta: Delta::default(), scored }));
            }
            GenerationEvent::Token { .. } if !self.answers => return Ok(None),
            GenerationEvent::Token { token, stops, logprobs, .. } => {
                let named = named_stops.contains(&token);
                let delta = choice.token(token, stops, named, logprobs).map_err(failed)?;
                if choice.has_ended() {
                    self.generating.stop(u32::try_from(index).unwrap_or(u32::MAX));
                }
                delta
            }
            GenerationEvent::Ended { how: how @ (Finish::Stopped | Finish::Length), .. } => {
                choice.end(how == Finish::Length || !self.answers)
            }
            GenerationEvent::Ended { how: Finish::Failed(reason), .. } => {
                return Err(ApiError::new(Code::ModelFailed, reason));
            }
            GenerationEvent::Ended { how: Finish::Expired(end), .. } => return Err(expired(end)),
            GenerationEvent::Ended { how: Finish::Closed, .. } => {
                return Err(ApiError::new(
                    Code::ShuttingDown,
                    "the model was unloaded, or the server is stopping",
                ));
            }
        };
        Ok(Some(Update { index, delta, scored: Vec::new() }))
    }
}

fn expired(end: End) -> ApiError {
    let message = match end {
        End::ExpiredFirstToken | End::ExpiredInQueue => {
            "the time for the first token was over before it was there"
        }
        _ => "the time for the text was over before its end",
    };
    ApiError::new(Code::DeadlineExceeded, message)
}

/// What a refused request tells its client, whose prompts stand in `field`.
pub(in crate::http) fn explain(refused: &Refused, field: &'static str, options: &Options) -> ApiError {
    let says = refused.refusal.to_string();
    match &refused.refusal {
        Refusal::Rejected(Rejection::NeverFits { cost, limit }) => ApiError::invalid(format!(
            "prompt and text have up to {cost} tokens, and the KV cache holds {limit}: shorten the prompt or max_tokens"
        )),
        Refusal::Rejected(rejection) => ApiError::rejected(rejection, refused.drain),
        Refusal::EmptyPrompt | Refusal::QueueSize { .. } | Refusal::QueueTokens { .. } => {
            ApiError::of_field(field, says)
        }
        Refusal::ContextExceeded { prompt, limit, .. } => {
            let param = if *prompt >= u64::from(*limit) { field } else { "max_tokens" };
            ApiError::beyond_context(param, says)
        }
        Refusal::NothingToGenerate => ApiError::of_field("max_tokens", says),
        Refusal::Sequences { .. } => ApiError::of_field(options.field_of_texts(), says),
    }
}
