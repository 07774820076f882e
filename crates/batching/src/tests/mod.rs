//! Tests as specifications: exact times for decisions, real threads only for the batcher.

mod adaptive;
mod advice;
mod batcher;
mod bisect;
mod breaker;
mod bucket;
mod continuous;
mod cost_model;
mod fairness;
mod interleavings;
mod memory;
mod model;
mod objectives;
mod overload;
mod padding;
mod properties;
mod rate;
mod reference;
mod scheduler;
mod sim;
mod stats;
mod stream;
mod stress;
mod support;
mod threads;
mod virtual_time;
