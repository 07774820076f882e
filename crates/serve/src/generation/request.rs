//! What the engine is asked, and what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trustformers_batching::continuous::{End, Refusal};
use trustformers_batching::{ClientId, Priority};

use super::sampling::{Logprobs, Sampling};

/// What a caller asks a language model for.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// Its name in replies, log lines and traces.
    pub id: Arc<str>,
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Texts that go on from the prompt, each on its own.
    pub choices: u32,
    /// Most tokens of each.
    pub max_tokens: u32,
    /// How tokens are drawn.
    pub sampling: Arc<Sampling>,
    /// Each of these ends a text.
    pub stop_tokens: Arc<[u32]>,
    /// How urgent it is.
    pub priority: Priority,
    /// Whom it came from.
    pub client: ClientId,
    /// Prompts share what was computed only with those of the same salt.
    pub salt: Option<u64>,
    /// Whether the prompt's tokens are to be scored as well: `sampling.logprobs` likeliest of each.
    pub scores_prompt: bool,
    /// When its first token must have been drawn.
    pub first_token: Option<Instant>,
    /// When all of it must have ended.
    pub deadline: Option<Instant>,
}

/// What happens to one of the texts.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerationEvent {
    /// It goes on.
    Token {
        /// Which of the texts.
        choice: u32,
        /// With what.
        token: u32,
        /// Whether this is one of `stop_tokens`; the end follows.
        stops: bool,
        /// Where they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// Tokens of the prompt were scored, the one at `position` and those after it. Only the first text says so, in
    /// order of positions; of the first token nothing is said, as it follows on nothing.
    Scored {
        /// Of the first.
        position: u32,
        /// How likely each was.
        logprobs: Vec<Logprobs>,
    },
    /// It ends; said once of each.
    Ended {
        /// Which of the texts.
        choice: u32,
        /// How.
        how: Finish,
        /// Tokens of the prompt that had been computed for others.
        cached_tokens: u32,
    },
}

/// How a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// With a token that ends texts.
    Stopped,
    /// It has as many tokens as it may.
    Length,
    /// The time for it was over.
    Expired(End),
    /// The model failed; why.
    Failed(String),
    /// The model was taken away.
    Closed,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub refusal: Refusal,
    /// How long what waits and runs will take, as predicted.
    pub drain: Option<Duration>,
}
