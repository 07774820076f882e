//! Why a language model does not load, and why a step is refused.

use std::io;
use std::path::PathBuf;

use tch::TchError;

use crate::torch::gauge::is_out_of_memory;

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is not valid: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file asks for something that is not implemented.
    #[error("{} asks for {what}, which is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What would be accepted.
        supported: String,
    },
    /// The folder holds no weights in a form that is read.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The checkpoint lacks a weight.
    #[error("{} has no weight {tensor}", path.display())]
    MissingWeight {
        /// The checkpoint's folder, or the shard that should hold the weight.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
    },
    /// A weight does not fit config.json.
    #[error("weight {tensor} in {} has shape {got:?}, config.json asks for {expected:?}", path.display())]
    WeightShape {
        /// The shard.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
        /// By config.json.
        expected: Vec<i64>,
        /// By the checkpoint.
        got: Vec<i64>,
    },
    /// A weight has an element type that is not computed with.
    #[error("weight {tensor} in {} has type {got}; supported: F32, F16, BF16", path.display())]
    WeightType {
        /// The shard.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
        /// Its type.
        got: String,
    },
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
