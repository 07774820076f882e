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
//! - [`queue`]: waiting entries in groups that may share a batch, ordered by priority, clients' turns and
//!   deadline; `order`, `share` and `hash` are what makes that cheap and fair
//! - [`cost_model`]: how long a batch takes, the only such estimate; [`rate`] and `load`: what comes when
//! - [`policy`]: when the waiting entries of one group are worth a batch
//! - [`bucket`], [`padding`]: which lengths share a batch
//! - [`memory`]: what a batch needs, and may have
//! - [`breaker`]: when a failing model is left alone
//! - [`scheduler`]: submit, cancel, plan, complete, expire
//! - [`stats`], [`advice`]: what it did, and what would make it better
//! - [`batcher`]: scheduler and payloads behind one short mutex
//! - [`stream`]: the same for one thread that never waits, with batches assembled ahead
//! - [`driver`]: an instance's loop (plan, run, complete), and the expiry timer
//! - [`continuous`]: the token-level scheduler of language models, with its own blocks, cache and steps
//! - [`replay`]: the log of a scheduler's calls, and its replay
//! - [`sim`]: the scheduler on a virtual clock, with arrivals by chance or from a log

#![forbid(unsafe_code)]

pub mod advice;
pub mod batcher;
pub mod breaker;
pub mod bucket;
pub mod continuous;
pub mod cost_model;
pub mod driver;
pub mod entry;
mod hash;
mod load;
pub mod memory;
mod order;
pub mod padding;
pub mod policy;
pub mod queue;
pub mod rate;
pub mod replay;
pub mod scheduler;
mod share;
pub mod sim;
pub mod stats;
pub mod stream;
pub mod time;

#[cfg(test)]
mod tests;

pub use advice::Suggestion;
pub use batcher::{Batcher, Failure, Observer, Reply, Submission};
pub use breaker::{BreakerConfig, BreakerState};
pub use bucket::{BucketConfig, PaddingStrategy};
pub use driver::{BatchError, BatchResults, Instances, Model, ModelError};
pub use entry::{BatchId, ClientId, Entry, GroupKey, InstanceId, Priority, ShapeKey, Ticket};
pub use memory::DeviceBudget;
pub use policy::adaptive::AdaptiveConfig;
pub use policy::{Dispatch, Mode, OptimizationTarget};
pub use scheduler::{
    BatchReport, Isolation, Next, Outcome, Planned, Rejection, Scheduler, SchedulerConfig, Verdict,
};
pub use stats::Snapshot;
pub use stream::{Stream, StreamConfig, StreamStats};
pub use time::{Clock, MonotonicClock, Time};
