//! Batching decisions as pure state machines, and the loop that drives a model with them.
//!
//! Invariants, those about absences first:
//! - Nothing that decides reads a clock, owns a thread or a socket, or knows what a tensor is: every
//!   call of [`Scheduler`] takes `now`, so the same calls give the same batches ([`replay`] checks it).
//! - No lock is held while a model runs or a caller is answered.
//! - Every admitted request is answered exactly once, or cancelled by its caller.
//! - Nothing grows without a bound: [`SchedulerConfig`] bounds the queue in requests and in cost.
//!
//! Code map:
//! - [`time`], [`entry`]: instants, and what the scheduler knows of a request
//! - [`queue`]: waiting entries by shape, ordered by priority and deadline
//! - [`policy`]: when the waiting entries of one shape are worth a batch
//! - [`cost_model`], [`rate`]: how long a batch runs, and how fast requests arrive
//! - [`bucket`], [`padding`]: which lengths share a batch, and how a batch is split by length
//! - [`memory`]: what a batch needs in bytes, and what it may have
//! - [`breaker`]: when a model that keeps failing is left alone
//! - [`scheduler`]: submit, cancel, plan, complete, expire
//! - [`batcher`]: scheduler and payloads behind one short mutex
//! - [`driver`]: an instance's loop (plan, run, complete), and the expiry timer
//! - [`replay`]: the log of a scheduler's calls, and its replay

#![forbid(unsafe_code)]

pub mod batcher;
pub mod breaker;
pub mod bucket;
pub mod cost_model;
pub mod driver;
pub mod entry;
pub mod memory;
pub mod padding;
pub mod policy;
pub mod queue;
pub mod rate;
pub mod replay;
pub mod scheduler;
pub mod time;

#[cfg(test)]
mod tests;

pub use batcher::{Batcher, Failure, Observer, Reply, Submission};
pub use driver::{Instances, Model, ModelError};
pub use entry::{BatchId, Entry, InstanceId, Priority, ShapeKey, Ticket};
pub use policy::{Dispatch, Mode};
pub use scheduler::{BatchReport, Next, Planned, Rejection, Scheduler, SchedulerConfig, Verdict};
pub use time::{Clock, MonotonicClock, Time};
