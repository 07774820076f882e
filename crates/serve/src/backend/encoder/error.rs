//! Why an encoder does not load, and why a text or its tokens are refused.

use std::io;
use std::path::PathBuf;

use tch::TchError;

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
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
        supported: &'static str,
    },
    /// The checkpoint lacks a weight.
    #[error("{} has no weight {tensor}", path.display())]
    MissingWeight {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
    },
    /// A weight does not fit config.json.
    #[error("weight {tensor} in {} has shape {got:?}, config.json asks for {expected:?}", path.display())]
    WeightShape {
        /// The checkpoint.
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
        /// The checkpoint.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
        /// Its type.
        got: String,
    },
    /// The limit of tokens does not fit the model.
    #[error("max_length {max_length} does not fit the model, which takes {least} to {most} tokens")]
    MaxLength {
        /// The limit asked for.
        max_length: usize,
        /// Special tokens and one more.
        least: usize,
        /// Positions the model has.
        most: usize,
    },
    /// LibTorch refused an operation.
    #[error("LibTorch: {0}")]
    Torch(#[from] TchError),
    /// The warm-up run failed.
    #[error("warm-up failed: {0}")]
    WarmUp(String),
}

/// Why a text or a caller's token ids are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing to encode.
    #[error("no tokens")]
    Empty,
    /// More tokens than the model takes.
    #[error("{got} tokens, the model takes at most {max_length}")]
    TooLong {
        /// Tokens given.
        got: usize,
        /// The most the model takes.
        max_length: usize,
    },
    /// A text with more tokens than the model takes.
    #[error("the text has {}{got} tokens, more than the {max_length} that the model takes",
        if *.all { "" } else { "at least " })]
    TextTooLong {
        /// Tokens counted.
        got: usize,
        /// Whether all were; a very long text's are not.
        all: bool,
        /// The most the model takes.
        max_length: usize,
    },
    /// An id the model has no embedding for.
    #[error("token id {id} at position {position} is not in the vocabulary of {vocabulary}")]
    OutOfVocabulary {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// Number of ids.
        vocabulary: usize,
    },
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}
