//! What a step feeds, and how its sequences lie in one flat batch.

use trustformers_batching::continuous::Work;

use super::error::BackendError;
use crate::torch::paged::Span;

/// Sizes that a step must fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) vocabulary: i64,
    pub(super) context: i64,
    pub(super) blocks: usize,
    pub(super) block_size: usize,
}

/// A step's rows: one for each token, sequence after sequence.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<i64>,
    pub(super) positions: Vec<i64>,
    /// Of each row, where its keys and values go: block times block size, plus a place in it.
    pub(super) slots: Vec<i64>,
    pub(super) spans: Vec<Span>,
    /// Blocks of all sequences, one after another, each only as far as the step reads.
    pub(super) table: Vec<i32>,
    /// Rows whose logits are wanted.
    pub(super) sampled: Vec<i64>,
}

impl Batch {
    /// Lays the works out and checks all that kernels rely on.
    pub(super) fn new(work: &[Work], limits: Limits) -> Result<Self, BackendError> {
        let mut batch = Self::default();
        for (index, work) in work.iter().enumerate() {
            batch.add(work, limits).map_err(|reason| BackendError::Work { index, reason })?;
        }
        Ok(batch)
    }

    fn add(&mut self, work: &Work, limits: Limits) -> Result<(), String> {
        if work.tokens.is_empty() {
            return Err("no tokens".into());
        }
        let size = limits.block_size;
        let end = work.start as usize + work.tokens.len();
        if i64::try_from(end).unwrap_or(i64::MAX) > limits.context {
            return Err(format!("position {} of a model with {} positions", end - 1, limits.context));
        }
        let needed = end.div_ceil(size);
        let Some(blocks) = work.blocks.get(..needed) else {
            return Err(format!("{} blocks for {end} tokens, which need {needed}", work.blocks.len()));
        };
        if let Some(block) = blocks.iter().find(|block| block.0 as usize >= limits.blocks) {
            return Err(format!("block {} of {}", block.0, limits.blocks));
        }
        if let Some(token) = work.tokens.iter().find(|&&token| i64::from(token) >= limits.vocabulary) {
            return Err(format!("token {token} of a vocabulary of {}", limits.vocabulary));
        }
        let long = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.spans.push(Span {
            row: long(self.tokens.len()),
            rows: long(work.tokens.len()),
            start: i64::from(work.start),
            table: long(self.table.len()),
        });
        for (offset, &token) in work.tokens.iter().enumerate() {
            let position = work.start as usize + offset;
            self.tokens.push(i64::from(token));
            self.positions.push(long(position));
            self.slots.push(i64::from(blocks[position / size].0) * long(size) + long(position % size));
        }
        self.table.extend(blocks.iter().map(|block| i32::try_from(block.0).unwrap_or(i32::MAX)));
        let rows = match (work.scores, work.samples) {
            (true, _) => work.tokens.len(),
            (false, true) => 1,
            (false, false) => 0,
        };
        self.sampled.extend(long(self.tokens.len() - rows)..long(self.tokens.len()));
        Ok(())
    }
}
