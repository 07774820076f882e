//! The real server over real sockets, and the layout of the repository.
//!
//! Code map:
//! - `client`, `harness`, `process`, `fixtures`: raw HTTP, servers in this process and as a process, models
//! - `routes`, `predict`, `inference`, `embeddings`, `models`, `health`, `metrics`: what is answered
//! - `generation_errors`, `generation_keys`, `generation_life`: what goes wrong with texts, settings, reloads
//! - `completions`: text that is generated, whole and as it grows
//! - `chats`, `responses`, `tokens`: conversations with language models, and what they make of texts
//! - `errors`, `malformed`, `heads`, `clients`: what is refused, and who misbehaves
//! - `timeouts`, `limits`, `batching`, `padding`, `cancellation`, `replay`:
//!   what waits, in which order, for how long
//! - `repository`, `reloading`: models on disk, broken ones, loaded and unloaded under load
//! - `shutdown`, `stopping`, `cli`, `looks`, `simulate`, `examples`: how it ends, and the command line
//! - `isolation`: failing models, full devices, stalled instances, and who is spared
//! - `keys`, `batching_keys`, `tidy`: every configuration key moves something; the arrows between crates

// Everything here is a test: a failed expectation is how it reports.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod client;
mod fixtures;
mod harness;
mod process;

mod batching;
mod batching_keys;
mod cancellation;
mod chats;
mod cli;
mod clients;
mod completions;
mod embeddings;
mod errors;
mod examples;
mod generation_errors;
mod generation_keys;
mod generation_life;
mod heads;
mod health;
mod inference;
mod isolation;
mod keys;
mod limits;
mod looks;
mod malformed;
mod metrics;
mod models;
mod padding;
mod predict;
mod reloading;
mod replay;
mod repository;
mod responses;
mod routes;
mod shutdown;
mod simulate;
mod stopping;
mod tidy;
mod timeouts;
mod tinylm;
mod tokens;
