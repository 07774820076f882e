//! What a program sets of its batching; everything has a default.

use std::time::Duration;

use trustformers_batching::{
    AdaptiveConfig, BreakerConfig, BucketConfig, Dispatch, Isolation, Mode, OptimizationTarget,
    PaddingStrategy, SchedulerConfig,
};

pub use trustformers_batching::Mode as BatchingMode;

/// What happens to a request that the queue has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Backpressure {
    /// It is refused at once.
    #[default]
    Drop,
    /// It waits for a place, as long as its deadline allows.
    Block,
    /// It runs alone at once, on an instance that is kept for such requests: the model needs two.
    Passthrough,
}

/// How a [`super::DynamicBatchingService`] batches.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchingConfig {
    /// Most requests in a batch.
    pub max_batch_size: usize,
    /// A smaller batch waits for more, for `max_wait_time` at most.
    pub min_batch_size: usize,
    /// Longest wait of a request for company while an instance is free; a bound and not a delay.
    pub max_wait_time: Duration,
    /// In `Dynamic` mode: let the limits follow load and latency, as `Adaptive` does.
    pub enable_adaptive_batching: bool,
    /// How batches are sized.
    pub mode: BatchingMode,
    /// What a start is weighed by.
    pub optimization_target: OptimizationTarget,
    /// Most bytes that a batch may need.
    pub memory_limit: Option<u64>,
    /// Whether priorities count.
    pub enable_priority_scheduling: bool,
    /// The time that a request should take in all.
    pub latency_slo: Option<Duration>,
    /// Most requests that wait.
    pub max_queue_size: usize,
    /// What happens to more.
    pub backpressure: Backpressure,
    /// Instances of the built-in model, which share its weights.
    pub instances: usize,
    /// What the dynamic modes add.
    pub dynamic_config: DynamicBatchConfig,
}

impl Default for BatchingConfig {
    fn default() -> Self {
        let scheduler = SchedulerConfig::default();
        Self {
            max_batch_size: scheduler.max_batch_size as usize,
            min_batch_size: scheduler.min_batch_size as usize,
            max_wait_time: scheduler.max_wait,
            enable_adaptive_batching: false,
            mode: scheduler.mode,
            optimization_target: scheduler.optimization_target,
            memory_limit: None,
            enable_priority_scheduling: true,
            latency_slo: None,
            max_queue_size: scheduler.max_queue_size as usize,
            backpressure: Backpressure::default(),
            instances: 1,
            dynamic_config: DynamicBatchConfig::default(),
        }
    }
}

/// What the dynamic modes add.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicBatchConfig {
    /// Whether `memory_limit` holds for what batches were found to need, and not only after failures.
    pub memory_aware: bool,
    /// The length that the requests of a batch are padded to, by a model that pads.
    pub padding_strategy: PaddingStrategy,
    /// Whether only requests of similar length share a batch, for a model that pads.
    pub enable_bucketing: bool,
    /// The buckets' greatest lengths; empty: learned.
    pub bucket_boundaries: Vec<u32>,
    /// Above this share of busy time, `Balanced` gives device time its full weight.
    pub target_utilization: f64,
    /// A start is deferred only for batches of a multiple of this size.
    pub size_increment: usize,
    /// What `Adaptive` mode goes by.
    pub adaptive: AdaptiveConfig,
}

impl Default for DynamicBatchConfig {
    fn default() -> Self {
        let scheduler = SchedulerConfig::default();
        Self {
            memory_aware: true,
            padding_strategy: PaddingStrategy::Minimal,
            enable_bucketing: true,
            bucket_boundaries: vec![128, 256, 512, 1024, 2048],
            target_utilization: scheduler.target_utilization,
            size_increment: scheduler.size_increment as usize,
            adaptive: scheduler.adaptive,
        }
    }
}

impl BatchingConfig {
    /// What the scheduler is told.
    pub(super) fn scheduler(&self, instances: usize) -> SchedulerConfig {
        let dynamic = &self.dynamic_config;
        let adaptive = self.enable_adaptive_batching && self.mode == Mode::Dynamic;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        SchedulerConfig {
            mode: if adaptive { Mode::Adaptive } else { self.mode },
            dispatch: if self.mode == Mode::Fixed { Dispatch::Window } else { Dispatch::Eager },
            isolation: Isolation::Bisect,
            instances: count(instances),
            max_batch_size: count(self.max_batch_size).max(1),
            min_batch_size: count(self.min_batch_size).max(1),
            max_wait: self.max_wait_time,
            max_queue_size: count(self.max_queue_size),
            optimization_target: self.optimization_target,
            latency_slo: self.latency_slo,
            target_utilization: dynamic.target_utilization,
            size_increment: count(dynamic.size_increment).max(1),
            priorities: self.enable_priority_scheduling,
            adaptive: dynamic.adaptive.clone(),
            buckets: BucketConfig {
                enabled: dynamic.enable_bucketing,
                boundaries: dynamic.bucket_boundaries.clone(),
                strategy: dynamic.padding_strategy,
            },
            memory_limit: self.memory_limit.filter(|_| dynamic.memory_aware),
            breaker: Some(BreakerConfig::default()),
            ..SchedulerConfig::default()
        }
    }
}
