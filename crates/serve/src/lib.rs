//! An inference server on LibTorch.
//!
//! Invariants, those about absences first:
//! - Nothing here decides what is batched with what: that is `trustformers_batching`.
//! - No process globals: two servers live in one process. Only [`commands`] installs signal handlers, and
//!   only [`logging`] the one subscriber of log lines that a process has, when its embedder asks for it.
//! - No lock is held across an await; nothing that blocks runs on the async runtime's workers.
//! - `unsafe` stands in [`torch`] only.
//!
//! Code map:
//! - [`cli`], [`commands`]: the command line, and what it does
//! - [`simulate`]: its command that tries settings without a server
//! - [`config`]: settings from file, environment and flags, each value with its source
//! - [`server`], [`app`]: a server in this process; its state and its loop
//! - [`http`]: routes, bodies, errors
//! - [`registry`]: models by name and version, loading and unloading
//! - [`backend`]: model formats; [`tensor`]: tensors in host memory; [`torch`]: what tch lacks
//! - [`hosted`]: models that the program around the server runs
//! - [`generation`]: text from language models, token by token
//! - [`service`]: the scheduler and a model inside a Rust program, without HTTP
//! - [`text`]: texts of language models as tokens, and back
//! - [`metrics`]: every metric family; [`logging`]: log lines on standard error

#![deny(unsafe_code)]

pub mod app;
pub mod backend;
pub mod cli;
pub mod commands;
pub mod config;
pub mod generation;
pub mod hosted;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod registry;
pub mod server;
pub mod service;
pub mod simulate;
pub mod tensor;
pub mod text;
pub mod torch;

pub use service::{
    Backpressure, BatchingConfig, BatchingMode, DynamicBatchConfig, DynamicBatchingService, MetricsSummary,
    Request, RequestId, RequestInput, Response, ServiceError, ServiceStats,
};
pub use trustformers_batching::{OptimizationTarget, PaddingStrategy, Priority};
