//! Text generation: what callers ask for, and the thread that runs a language model's steps.
//!
//! Invariants, those about absences first:
//! - Nothing here decides what runs in a step: `trustformers_batching::continuous` does.
//! - The engine's thread waits for no caller, tells none, makes no text of tokens and writes to no socket.
//! - Every sequence that was admitted is told of exactly one end, or its caller left.
//!
//! Code map: [`request`] is what is asked and answered, [`engine`] the thread, `clerk` what is done beside it while
//! a step runs, [`generating`] its callers' side,
//! `seats` who is generating what, `steps` runs a plan and isolates what fails, [`sampling`] draws tokens from logits,
//! [`choice`] makes a text of its tokens, [`insight`] and [`trace`] show what happened.

pub mod choice;
mod clerk;
pub mod engine;
pub mod generating;
pub mod insight;
pub mod request;
pub mod sampling;
mod seats;
mod steps;
pub mod trace;

use std::sync::Arc;

use self::engine::Engine;
use crate::backend::llm::Generation;
use crate::text::Tokenizer;

/// A model that generates text.
pub struct Generator {
    /// Runs its steps.
    pub engine: Arc<Engine>,
    /// Makes tokens of texts, and texts of tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// How its makers want it sampled, and which tokens end a text.
    pub defaults: Generation,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// The most tokens of a prompt and what follows it.
    pub context: u32,
}
