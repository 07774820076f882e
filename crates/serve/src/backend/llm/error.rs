//! Why a language model does not load, and why a step is refused.

use tch::TchError;

use crate::backend::checkpoint::CheckpointError;
use crate::torch::gauge::is_out_of_memory;

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A file is missing, damaged or asks for what is not implemented.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer makes tokens that the model has no embedding for.
    #[error(
        "the tokenizer has ids up to {highest}, the model's weights are for a vocabulary of {vocabulary}"
    )]
    Vocabulary {
        /// The tokenizer's highest id.
        highest: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// The cache cannot be made as asked for.
    #[error("a KV cache of {blocks} blocks of {block_size} tokens: {reason}")]
    Cache {
        /// Blocks asked for.
        blocks: usize,
        /// Tokens of one.
        block_size: usize,
        /// What is wrong with that.
        reason: String,
    },
    /// LibTorch refused an operation.
    #[error("LibTorch: {0}")]
    Torch(#[from] TchError),
}

/// Why a step did not run. Nothing of it counts: its sequences may be fed again.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A work's tokens, positions or blocks do not fit the model or its cache.
    #[error("work {index}: {reason}")]
    Work {
        /// Its place in the step.
        index: usize,
        /// What does not fit.
        reason: String,
    },
    /// A copy of a block that is not there.
    #[error("a copy from block {from} to block {to}, of {blocks}")]
    Copy {
        /// To be read.
        from: u32,
        /// To be written.
        to: u32,
        /// Blocks of the cache.
        blocks: usize,
    },
    /// Memory was wanting: a smaller step may succeed.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// LibTorch refused an operation.
    #[error("LibTorch: {0}")]
    Torch(String),
}

impl From<TchError> for BackendError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        match text.lines().find(|line| is_out_of_memory(line)) {
            Some(line) => Self::OutOfMemory(line.trim().to_owned()),
            None => Self::Torch(text),
        }
    }
}
