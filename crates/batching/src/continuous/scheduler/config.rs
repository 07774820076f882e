//! The limits of one model's token-level scheduler.

use std::time::Duration;

/// The limits of one model's token-level scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct ContinuousConfig {
    /// Blocks in the KV cache; at least 1.
    pub blocks: u32,
    /// Tokens in a block; at least 1.
    pub block_size: u32,
    /// Most tokens that a sequence may have, generated ones included: the model's context.
    pub max_context: u32,
    /// Most sequences that run at once; at least 1. No more than `max_step_tokens` do.
    pub max_sequences: u32,
    /// Most tokens in a step; at least 1.
    pub max_step_tokens: u32,
    /// Most tokens of prompts in a step in which others decode; `None`: as the other limits have it.
    pub prefill_chunk: Option<u32>,
    /// How long a sequence that generates may have to wait from one token to the next. Prompts get what this
    /// leaves of a step, but always some; `None`: all of it.
    pub inter_token_target: Option<Duration>,
    /// Whether full blocks are kept for sequences that begin alike.
    pub prefix_caching: bool,
    /// Whether sequences may be preempted. Otherwise each is let in only where all it may ever need is left.
    pub preemption: bool,
    /// Most requests that wait for their first step.
    pub max_queue_size: u32,
    /// Most tokens of prompts that wait for their first step.
    pub max_queue_tokens: Option<u64>,
    /// Whether priorities count; otherwise all requests are normal.
    pub priorities: bool,
    /// What waited for this long is served before more urgent ones now and then, and is not preempted for them.
    pub ageing: Option<Duration>,
}

impl Default for ContinuousConfig {
    fn default() -> Self {
        Self {
            blocks: 1_024,
            block_size: 16,
            max_context: 4_096,
            max_sequences: 64,
            max_step_tokens: 2_048,
            prefill_chunk: None,
            inter_token_target: None,
            prefix_caching: true,
            preemption: true,
            max_queue_size: 4_096,
            max_queue_tokens: None,
            priorities: true,
            ageing: Some(Duration::from_secs(10)),
        }
    }
}

impl ContinuousConfig {
    /// Most tokens that may ever follow a prompt of `prompt` tokens, in each of `sequences` texts of one request:
    /// what the context and the cache have room for, maybe none.
    pub fn most_tokens(&self, prompt: usize, sequences: u32) -> u32 {
        let prompt = prompt as u64;
        let context = u64::from(self.max_context).saturating_sub(prompt);
        // The last token is drawn and never fed.
        let cache = (self.most_fed(sequences) + 1).saturating_sub(prompt);
        u32::try_from(context.min(cache)).unwrap_or(u32::MAX)
    }

    /// Most tokens whose keys and values each of `sequences` texts of one request may ever hold.
    pub(super) fn most_fed(&self, sequences: u32) -> u64 {
        // They can run one after the other, unless none may be preempted.
        let together = if self.preemption { 1 } else { sequences.max(1) };
        u64::from(self.blocks / together) * u64::from(self.block_size)
    }

    /// With everything that must be at least 1 being so.
    pub(super) fn normalised(mut self) -> Self {
        for least_one in [
            &mut self.blocks,
            &mut self.block_size,
            &mut self.max_context,
            &mut self.max_sequences,
            &mut self.max_step_tokens,
        ] {
            *least_one = (*least_one).max(1);
        }
        self.max_sequences = self.max_sequences.min(self.max_step_tokens);
        self
    }
}
