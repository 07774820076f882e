//! One step of the model: what it is asked to run, and what it reports.

use std::time::Duration;

use super::block_pool::BlockId;
use super::sequence::SequenceId;

/// Names one step; issued in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// One step of the model: every sequence that runs, each with the tokens it feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// The step's name, for its outcome.
    pub id: StepId,
    /// First those that decode (one token each), then chunks of prompts; never empty.
    pub work: Vec<Work>,
    /// Copies of blocks to make before the step (copy on write): from, to. In this order, one after the
    /// other or all read before any is written: both give the same.
    pub copies: Vec<(BlockId, BlockId)>,
    /// Preempted since the last plan, for the trace.
    pub preempted: Vec<SequenceId>,
    /// How long the step is predicted to take; `None` before the first that ended.
    pub predicted: Option<Duration>,
}

/// What one sequence does in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// Tokens fed in this step, in order; their keys and values are written at positions
    /// `start .. start + tokens.len()`. Never empty.
    pub tokens: Vec<u32>,
    /// Position of the first.
    pub start: u32,
    /// All blocks of the sequence, in order: position p lies in `blocks[p / block_size]`.
    pub blocks: Vec<BlockId>,
    /// Whether the logits of the last token are wanted: true unless the prompt goes on after this chunk.
    pub samples: bool,
    /// Whether the logits of all its tokens are wanted, as its prompt is to be scored: that of position p says how
    /// likely the token at p + 1 was. After a preemption some positions may come again.
    pub scores: bool,
    /// Sequences that begin with the same logits (`n > 1`): a token is drawn for each of these as well.
    pub forks: Vec<SequenceId>,
}

/// What the engine reports after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOutcome {
    /// The plan's name.
    pub id: StepId,
    /// How long the model ran.
    pub busy: Duration,
    /// For each work with `samples`, and each of its forks: the token drawn, and whether the sequence ended
    /// with it (stop, end of text, ...).
    pub tokens: Vec<(SequenceId, u32, bool)>,
    /// Sequences that failed alone (NaN logits). One that samples and is in neither list failed too.
    pub failed: Vec<SequenceId>,
}
