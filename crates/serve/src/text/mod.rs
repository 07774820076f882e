//! Texts of language models: to tokens and back, stop strings, conversations as prompts.
//!
//! Nothing here knows tensors, requests or a clock.

mod chat;
mod detokenizer;
mod error;
mod pieces;
mod stop;
mod tokenizer;

pub use chat::{ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop::{Released, StopStrings};
pub use tokenizer::Tokenizer;
