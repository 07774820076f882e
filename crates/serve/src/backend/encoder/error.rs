//! Why an encoder does not load, and why a text or its tokens are refused.

use tch::TchError;

use crate::backend::checkpoint::CheckpointError;

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file is missing, damaged or asks for what is not implemented.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
