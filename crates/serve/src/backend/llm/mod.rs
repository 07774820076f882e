//! Decoders that generate text, run natively from Hugging Face checkpoint folders.
//!
//! Invariants:
//! - Nothing here decides what runs in a step, draws a token or knows a text: it computes logits.
//! - Nothing is padded: the tokens of a step are the rows of one matrix, and only attention knows whose they are, so
//!   a sequence's logits do not depend on its company but for rounding.
//! - On a CPU no page of the cache is ever copied to be read.
//! - Weights are in memory once: embeddings in place in the mapped file, products packed for the CPU (or copied to
//!   the GPU), their file pages given back.
//!
//! Code map: [`config`] describes a decoder and [`families`] say how a config.json maps to that, [`rotary`] and
//! [`names`] with them; [`generation`] and [`json`] read files, and [`loader`] reads the checkpoint by role;
//! [`step`] lays a step out, [`decoder`] computes it with [`projection`], [`attention`] and [`norm`] in
//! [`activations`] and over [`cache`]; [`runner`] is what others call, and [`error`] what it says.

mod activations;
mod attention;
mod cache;
mod config;
mod decoder;
mod error;
mod families;
mod generation;
mod json;
mod loader;
mod names;
mod norm;
mod projection;
mod rotary;
mod runner;
mod step;

pub use self::attention::Means;
pub use self::cache::CacheSize;
pub use self::config::{DecoderConfig, LayerAttention, NormKind, Perceptron, Positions, Settings, read};
pub use self::error::{BackendError, LlmError};
pub use self::families::is_language_model;
pub use self::generation::Generation;
pub use self::rotary::{Rotary, Scaling};
pub use self::runner::{LlmOptions, LoadedDecoder, Quantization, Runner, load};
pub use crate::torch::product::GateActivation;
