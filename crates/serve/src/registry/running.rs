//! A model version that answers, whatever kind of model it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trustformers_batching::queue::Total;
use trustformers_batching::{BreakerState, ClientId, Priority};

use super::batches::Batches;
use super::hosting::Hosting;
use crate::generation::Generator;

/// A model version that answers.
pub struct Running {
    /// How long loading and warming up took.
    pub load_time: Duration,
    /// Where it runs.
    pub device: String,
    /// LibTorch threads of each instance.
    pub threads: usize,
    /// How it answers.
    pub work: Work,
}

/// How a model answers.
pub enum Work {
    /// Requests batch by batch.
    Batches(Batches),
    /// With text, token by token.
    Generation(Generator),
    /// Through the program around the server.
    Hosted(Arc<Hosting>),
}

/// What a model version's scheduler is about, at one instant.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// All that waits.
    pub queued: Total,
    /// Whether the model is left alone because it failed; `None` without a breaker.
    pub breaker: Option<BreakerState>,
    /// When an open breaker lets a request in to try.
    pub breaker_pause: Option<Duration>,
    /// Instances whose batch runs for longer than `stall_timeout`.
    pub stalled: Vec<u32>,
    /// Most bytes that a batch may need.
    pub memory_limit: Option<u64>,
}

/// What a call asks besides its items.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How urgent it is.
    pub priority: Priority,
    /// When it must have ended.
    pub deadline: Instant,
    /// Whom it came from.
    pub client: ClientId,
}

impl Running {
    /// The model, where it runs batches of requests.
    pub fn batches(&self) -> Option<&Batches> {
        match &self.work {
            Work::Batches(batches) => Some(batches),
            Work::Generation(_) | Work::Hosted(_) => None,
        }
    }

    /// The model, where it generates text.
    pub fn generator(&self) -> Option<&Generator> {
        match &self.work {
            Work::Batches(_) | Work::Hosted(_) => None,
            Work::Generation(generator) => Some(generator),
        }
    }

    /// The model, where the program around the server runs it.
    pub fn hosting(&self) -> Option<&Arc<Hosting>> {
        match &self.work {
            Work::Hosted(hosting) => Some(hosting),
            Work::Batches(_) | Work::Generation(_) => None,
        }
    }

    /// Requests that wait.
    pub fn queued(&self) -> Total {
        match &self.work {
            Work::Batches(batches) => batches.queued(),
            Work::Generation(generator) => generator.engine.now().queued,
            Work::Hosted(hosting) => hosting.queued(),
        }
    }

    /// Lets requests in again, whatever the model did before.
    pub fn reset_breaker(&self) {
        match &self.work {
            Work::Batches(batches) => batches.reset_breaker(),
            Work::Generation(generator) => generator.engine.reset_breaker(),
            Work::Hosted(hosting) => hosting.reset_breaker(),
        }
    }

    /// What its scheduler is about.
    pub fn now(&self) -> Now {
        match &self.work {
            Work::Batches(batches) => batches.now(),
            Work::Generation(generator) => generator.engine.now(),
            Work::Hosted(hosting) => hosting.now(),
        }
    }

    /// Runs what is queued and ends the threads; blocks until then.
    pub(super) fn drain(&self) {
        match &self.work {
            Work::Batches(batches) => batches.drain(),
            Work::Generation(generator) => generator.engine.drain(),
            Work::Hosted(hosting) => hosting.drain(),
        }
    }

    /// Answers everything at once: the server stops.
    pub(super) fn abort(&self) {
        match &self.work {
            Work::Batches(batches) => batches.abort(),
            Work::Generation(generator) => generator.engine.abort(),
            Work::Hosted(hosting) => hosting.abort(),
        }
    }
}
