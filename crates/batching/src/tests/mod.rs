//! Tests as specifications: exact times for decisions, real threads only for the batcher.

mod batcher;
mod model;
mod properties;
mod scheduler;
mod stress;
mod support;
mod threads;
