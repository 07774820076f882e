//! Generation of text by a language model: how its tokens are drawn, and what becomes of them.
//!
//! Code map: [`sampling`] draws tokens from logits.

pub mod sampling;
