//! The token-level scheduler, by examples and against a model of the KV cache's content.

mod blocks;
mod properties;
mod world;
