//! Tests as specifications: exact times for decisions, real threads only for the batcher.

mod adaptive;
mod batcher;
mod breaker;
mod bucket;
mod cost_model;
mod memory;
mod model;
mod padding;
mod properties;
mod rate;
mod scheduler;
mod sim;
mod stress;
mod support;
mod threads;
