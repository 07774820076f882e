//! What the token-level scheduler did, and what it holds now.

use std::time::Duration;

use serde::Serialize;

use super::block_pool::BlockCounts;
use super::scheduler::Refusal;
use super::sequence::End;

/// What it did since it was made, and what it holds now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// Blocks by what they are for.
    pub blocks: BlockCounts,
    /// Sequences of requests that wait to run for the first time.
    pub sequences_waiting: u64,
    /// Sequences that hold blocks, or begin as soon as their prompt has run.
    pub sequences_running: u64,
    /// Sequences that lost their blocks and wait to run again.
    pub sequences_preempted: u64,
    /// Requests that wait to run for the first time.
    pub queued_requests: u64,
    /// The tokens of their prompts.
    pub queued_prompt_tokens: u64,
    /// Seconds until all that waits and runs has ended, as predicted; `None` before enough steps ended.
    pub predicted_drain: Option<Duration>,
    /// What the steps' times are predicted from.
    pub step_time: StepTimeSummary,
    /// The part of `max_tokens` that sequences use, 0 to 1, as learned.
    pub output_share: f64,
    /// All that only grows.
    pub counters: Counters,
}

/// How long a step takes, as learned, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepTimeSummary {
    /// Before its first token.
    pub step: f64,
    /// For each sequence that decodes.
    pub decode: f64,
    /// For each token of a prompt.
    pub prompt_token: f64,
    /// For each token in the context of one that decodes.
    pub decode_context: f64,
    /// For each pair of a prompt's token and one that it attends to.
    pub prompt_pair: f64,
    /// Running mean of `|predicted - actual| / actual`.
    pub relative_error: f64,
}

/// Counters that only grow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests let in.
    pub admitted: u64,
    /// Requests that were not, by [`Refusal::REASONS`].
    pub refused: [u64; Refusal::REASONS.len()],
    /// Sequences that ended, by [`End::ALL`].
    pub ended: [u64; End::ALL.len()],
    /// Sequences whose callers left.
    pub cancelled: u64,
    /// Steps that ended.
    pub steps: u64,
    /// How long they ran, in nanoseconds.
    pub busy_nanos: u128,
    /// Tokens of the prompts of requests that began to run.
    pub prompt_tokens: u64,
    /// Those of them that were found in the prefix cache.
    pub cached_prompt_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Tokens fed, those of preempted sequences again and again.
    pub fed_tokens: u64,
    /// Sequences that lost their blocks, for want of blocks or of a place for a more urgent one.
    pub preemptions: u64,
    /// Tokens whose keys and values were lost with them.
    pub preempted_tokens: u64,
    /// Blocks copied because somebody else held them.
    pub copies: u64,
    /// Blocks whose content was forgotten to make room.
    pub evictions: u64,
}

impl Counters {
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.refused[refusal.index()] += 1;
    }

    pub(super) fn ended(&mut self, end: End) {
        self.ended[end as usize] += 1;
    }
}
