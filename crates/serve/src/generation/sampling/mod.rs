//! How the next token of a sequence is drawn from its logits.
//!
//! Invariants:
//! - Nothing here reads a clock, holds a tensor or keeps a random state: a draw depends on its row of logits, the
//!   request's [`Sampling`], the tokens before it, and (seed, choice, index of the token) alone. What else is in the
//!   batch never changes a draw.
//! - The vocabulary is never sorted. A row is read a few times from front to back; only the tokens around a limit
//!   are compared with each other.
//! - A row that has no meaning (NaN, infinity) is an error of its sequence and of no other.
//! - After the first tokens a draw allocates nothing, but for the list of log-probabilities that it answers.
//!
//! The steps, in vLLM's order (its V1 sampler, `docs.vllm.ai/en/v0.20.0/api/vllm/v1/sample/sampler`):
//! 1. log-probabilities are taken from the model's own logits, before all that follows;
//! 2. `min_tokens` takes the end tokens away, `logit_bias` is added;
//! 3. penalties, on logits: repetition (Keskar et al., 2019, "CTRL", section 4.1: a positive logit is divided by it,
//!    a negative one multiplied), then frequency and presence (OpenAI's: `count * frequency` and, once a token was
//!    generated, `presence` are subtracted);
//! 4. temperature 0 takes the greatest logit, the lowest id among equals, and ends here; another one divides;
//! 5. `min_p` keeps the tokens at least `min_p` times as likely as the likeliest (Nguyen et al., 2024, "Turning up
//!    the heat: min-p sampling");
//! 6. `top_k` keeps the `k` likeliest (Fan et al., 2018);
//! 7. `top_p` keeps the fewest likeliest tokens that hold the share `top_p` of what the steps before left (Holtzman
//!    et al., 2020, "The curious case of neural text degeneration": nucleus sampling);
//! 8. one of the tokens left is drawn by its probability: the first, by id, at which the running sum exceeds a
//!    random share of the total.
//!
//! Among equal logits the lower id counts as the likelier, so that `top_k` keeps exactly `k`.
//!
//! Code map: [`check`](Sampling::check) refuses settings; `sampler` takes the steps: `random` numbers, `adjust` for
//! 2 and 3, `peaks` of blocks of a row, `weights` of its tokens, `candidates` for 5 to 7 with `nucleus`, and
//! `likelihoods` for 1.

mod adjust;
mod candidates;
mod check;
mod likelihoods;
mod nucleus;
mod peaks;
mod random;
mod sampler;
#[cfg(test)]
mod tests;
mod weights;

pub use self::check::SamplingError;
pub use self::likelihoods::Logprobs;
pub use self::peaks::NotANumber;
pub use self::sampler::{Drawn, Sampler, Scratch, score};

/// How the tokens of one request are drawn. The defaults change nothing: the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 draws the likeliest token (the lowest id among equals).
    pub temperature: f32,
    /// How many of the likeliest tokens may be drawn; none: all. More than the vocabulary has means all.
    pub top_k: Option<u32>,
    /// The share of the probability that the likeliest tokens which may be drawn hold.
    pub top_p: f32,
    /// The least probability that a token which may be drawn has, as a share of the likeliest one's.
    pub min_p: f32,
    /// Divides the positive logits, and multiplies the negative ones, of tokens of the prompt and generated ones.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of generated tokens.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens, once for each time they were generated.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens; the biases of a token named twice add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// A token's draw depends on (seed, choice, index of the token) and its logits alone.
    pub seed: u64,
    /// The log-probabilities to answer: the drawn token's, and those of so many likeliest; of the model's own
    /// logits, whatever the other settings are.
    pub logprobs: Option<u32>,
    /// Before so many tokens no end token is drawn.
    pub min_tokens: u32,
    /// The tokens that `min_tokens` holds back. Ids beyond the vocabulary hold nothing back.
    pub end_tokens: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            min_tokens: 0,
            end_tokens: Vec::new(),
        }
    }
}
