//! The limits and the policy of one model version.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::breaker::BreakerConfig;
use crate::bucket::BucketConfig;
use crate::policy::adaptive::AdaptiveConfig;
use crate::policy::{Dispatch, Mode, OptimizationTarget};

/// What happens to the others when a batch fails as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The batch is run again in halves until only the culprits fail.
    Bisect,
    /// All of it fails.
    #[default]
    None,
}

/// The limits and the policy of one model version. The default is without those that are optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// How batches are sized.
    pub mode: Mode,
    /// When a batch that is not full may leave; `fixed` mode always goes by the window.
    pub dispatch: Dispatch,
    /// What happens to the others when a batch fails.
    pub isolation: Isolation,
    /// Instances that pull batches; at least 1.
    pub instances: u32,
    /// Most entries in a batch; at least 1.
    pub max_batch_size: u32,
    /// A smaller batch waits for more until its window ends.
    pub min_batch_size: u32,
    /// Most cost in a batch, padding included; an entry above it is refused.
    pub max_batch_cost: Option<u64>,
    /// Longest wait of an entry for others to join it while an instance is free.
    pub max_wait: Duration,
    /// Most entries in the queue.
    pub max_queue_size: u32,
    /// Most cost in the queue.
    pub max_queue_cost: Option<u64>,
    /// Most payload bytes in the queue.
    pub max_queue_bytes: Option<u64>,
    /// What an eager start is weighed by.
    pub optimization_target: OptimizationTarget,
    /// The time that a request should take in all. `adaptive` mode sizes batches by it, a deferred start
    /// keeps within it, and a request predicted to wait far longer is refused.
    pub latency_slo: Option<Duration>,
    /// Above this share of busy time, `balanced` gives device time its full weight; 0 to 1.
    pub target_utilization: f64,
    /// A start is deferred only for batches of a multiple of this size.
    pub size_increment: u32,
    /// Whether priorities count; otherwise all entries are normal.
    pub priorities: bool,
    /// After this long one place in [`crate::queue::OVERDUE_SHARE`] goes to the longest waiting.
    pub ageing: Option<Duration>,
    /// Limits that follow load and latency, in `adaptive` mode.
    pub adaptive: AdaptiveConfig,
    /// Which lengths share a batch, where the model pads.
    pub buckets: BucketConfig,
    /// Most bytes that a batch may need.
    pub memory_limit: Option<u64>,
    /// What a batch needs for each of its elements (padded tokens, or items); `None`: learned.
    pub bytes_per_element: Option<u64>,
    /// When a failing model is left alone.
    pub breaker: Option<BreakerConfig>,
    /// A batch that runs longer marks its instance as stalled.
    pub stall_after: Option<Duration>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            dispatch: Dispatch::default(),
            isolation: Isolation::default(),
            instances: 1,
            max_batch_size: 32,
            min_batch_size: 1,
            max_batch_cost: None,
            max_wait: Duration::from_millis(50),
            max_queue_size: 4_096,
            max_queue_cost: None,
            max_queue_bytes: None,
            optimization_target: OptimizationTarget::default(),
            latency_slo: None,
            target_utilization: 0.8,
            size_increment: 4,
            priorities: true,
            ageing: None,
            adaptive: AdaptiveConfig::default(),
            buckets: BucketConfig::default(),
            memory_limit: None,
            bytes_per_element: None,
            breaker: None,
            stall_after: None,
        }
    }
}
