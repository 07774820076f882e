//! What is wrong with a text, its tokens or a conversation.

/// Why a text could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A token id that the tokenizer has no token for.
    #[error("token {id} is not in the vocabulary; the largest id is {highest}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Largest id with a token.
        highest: u32,
    },
    /// The chat template itself refuses the conversation, by `raise_exception`.
    #[error("the model's chat template refuses the messages: {0}")]
    Refused(String),
    /// The chat template failed on the conversation.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The chat template works or writes without an end.
    #[error("the model's chat template takes more than {limit} {unit} for the messages")]
    TemplateLimit {
        /// How much it may take.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// There is no message whose text could be continued, or the template leaves that text out.
    #[error("the last message cannot be continued: {0}")]
    NotContinued(&'static str),
}
