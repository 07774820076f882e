//! Tests as specifications: exact times for decisions, real threads only for the batcher.

mod batcher;
mod breaker;
mod bucket;
mod memory;
mod model;
mod padding;
mod properties;
mod scheduler;
mod stress;
mod support;
mod threads;
