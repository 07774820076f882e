//! `[batching]`: its keys, their defaults, and what contradicts what.

use std::path::PathBuf;
use std::time::Duration;

use trustformers_batching::continuous::ContinuousConfig;
use trustformers_batching::{
    AdaptiveConfig, BreakerConfig, BucketConfig, Dispatch, Isolation, Mode, OptimizationTarget,
    PaddingStrategy, Priority, SchedulerConfig,
};

use super::kinds::{boolean, choice, duration, integer, integers, number, path, size};
use super::section::Section;

const MODES: &[(&str, BatchingMode)] = &[
    ("dynamic", BatchingMode::Requests(Mode::Dynamic)),
    ("fixed", BatchingMode::Requests(Mode::Fixed)),
    ("adaptive", BatchingMode::Requests(Mode::Adaptive)),
    ("continuous", BatchingMode::Continuous),
];
const DISPATCHES: &[(&str, Dispatch)] = &[("eager", Dispatch::Eager), ("window", Dispatch::Window)];
const ISOLATIONS: &[(&str, Isolation)] = &[("bisect", Isolation::Bisect), ("none", Isolation::None)];
const TARGETS: &[(&str, OptimizationTarget)] = &[
    ("balanced", OptimizationTarget::Balanced),
    ("throughput", OptimizationTarget::Throughput),
    ("latency", OptimizationTarget::Latency),
    ("cost", OptimizationTarget::Cost),
];
const PADDINGS: &[(&str, PaddingStrategy)] = &[
    ("minimal", PaddingStrategy::Minimal),
    ("maximum", PaddingStrategy::Maximum),
    ("none", PaddingStrategy::None),
    ("dynamic", PaddingStrategy::Dynamic),
];
const PRIORITIES: &[(&str, Priority)] = &[
    ("low", Priority::Low),
    ("normal", Priority::Normal),
    ("high", Priority::High),
    ("critical", Priority::Critical),
];
/// TOML's integers end here.
const MOST: u64 = i64::MAX as u64;
/// The least that separates two instants on every clock.
const SHORTEST: Duration = Duration::from_micros(1);

/// What is batched with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchingMode {
    /// Whole requests, sized so.
    Requests(Mode),
    /// Tokens: every step of the model runs whoever can run.
    Continuous,
}

impl BatchingMode {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// `[batching]`, or what a model makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchingSettings {
    /// What is batched with what; `None`: tokens for models that generate text, else `Mode::Dynamic`.
    pub mode: Option<BatchingMode>,
    /// When a batch that is not full may leave.
    pub dispatch: Dispatch,
    /// What happens to the others when a batch fails.
    pub isolation: Isolation,
    /// Most requests in a batch.
    pub max_batch_size: u32,
    /// A smaller batch waits for more until its window ends.
    pub min_batch_size: u32,
    /// Longest wait of a request for others to join it while an instance is free.
    pub max_wait_time: Duration,
    /// Most requests in the queue; more are refused.
    pub max_queue_size: u32,
    /// Most tokens in the queue.
    pub max_queue_tokens: Option<u64>,
    /// Most bytes of input in the queue.
    pub max_queue_bytes: Option<u64>,
    /// Most tokens in a batch; a longer request is refused.
    pub max_batch_tokens: Option<u64>,
    /// What an eager start is weighed by.
    pub optimization_target: OptimizationTarget,
    /// The time that a request should take in all; one that would wait far longer is refused.
    pub latency_slo: Option<Duration>,
    /// Most bytes that a batch may need.
    pub memory_limit: Option<u64>,
    /// Whether priorities count; otherwise all requests are normal.
    pub enable_priority_scheduling: bool,
    /// After this long one place in eight goes to the longest waiting.
    pub priority_ageing: Duration,
    /// The highest priority that a request may ask for.
    pub max_priority: Priority,
    /// A batch that runs longer marks its instance as stalled.
    pub stall_timeout: Duration,
    /// A directory that gets the replayable log of each load of a model, `MODEL@VERSION.N.jsonl`.
    pub event_log: Option<PathBuf>,
    /// `[batching.timeout_multipliers]`
    pub timeout_multipliers: TimeoutMultipliers,
    /// `[batching.breaker]`
    pub breaker: BreakerConfig,
    /// `[batching.dynamic]`
    pub dynamic: DynamicSettings,
    /// `[batching.adaptive]`
    pub adaptive: AdaptiveConfig,
    /// `[batching.continuous]`
    pub continuous: ContinuousSettings,
}

/// `[batching.timeout_multipliers]`: the time of a request that names none, in `server.request_timeout`s.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // one a priority
pub struct TimeoutMultipliers {
    pub low: f64,
    pub normal: f64,
    pub high: f64,
    pub critical: f64,
}

impl TimeoutMultipliers {
    /// That of a request of `priority`.
    pub fn of(&self, priority: Priority) -> f64 {
        match priority {
            Priority::Low => self.low,
            Priority::Normal => self.normal,
            Priority::High => self.high,
            Priority::Critical => self.critical,
        }
    }
}

/// `[batching.dynamic]`
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicSettings {
    /// Above this share of busy time, `balanced` gives device time its full weight.
    pub target_utilization: f64,
    /// A start is deferred only for batches of a multiple of this size.
    pub size_increment: u32,
    /// What a batch of sequences is padded to.
    pub padding_strategy: PaddingStrategy,
    /// Whether sequences are grouped by length.
    pub enable_bucketing: bool,
    /// The longest sequence of each bucket; empty: learned from recent lengths.
    pub bucket_boundaries: Vec<u32>,
    /// Whether batches keep within limits of memory.
    pub memory_aware: bool,
    /// What a batch needs for each of its elements (padded tokens, or items); `None`: learned.
    pub bytes_per_element: Option<u64>,
}

/// `[batching.continuous]`: models that generate text.
#[derive(Debug, Clone, PartialEq)]
pub struct ContinuousSettings {
    /// Tokens whose keys and values make a block of the cache.
    pub block_size: u32,
    /// Bytes of the cache; `None`: half of what is free, and no more than `max_sequences` can fill.
    pub kv_cache_memory: Option<u64>,
    /// Most sequences that generate at once.
    pub max_sequences: u32,
    /// Most tokens in a step of the model.
    pub max_step_tokens: u32,
    /// Most tokens of prompts in a step in which others generate; `None`: what the other limits leave.
    pub prefill_chunk: Option<u32>,
    /// How long a sequence that generates may have to wait for a token while prompts are read.
    pub inter_token_target: Option<Duration>,
    /// Whether prompts that begin alike share what was computed for their beginning.
    pub prefix_caching: bool,
    /// Whether sequences may lose their blocks to others, and be computed again.
    pub preemption: bool,
}

impl BatchingSettings {
    /// What the scheduler of a model that generates text must know of it: `blocks` in its cache, and the most
    /// tokens of a sequence.
    pub fn continuous_config(&self, blocks: u32, max_context: u32) -> ContinuousConfig {
        let continuous = &self.continuous;
        ContinuousConfig {
            blocks,
            block_size: continuous.block_size,
            max_context,
            max_sequences: continuous.max_sequences,
            max_step_tokens: continuous.max_step_tokens,
            prefill_chunk: continuous.prefill_chunk,
            inter_token_target: continuous.inter_token_target,
            prefix_caching: continuous.prefix_caching,
            preemption: continuous.preemption,
            max_queue_size: self.max_queue_size,
            max_queue_tokens: self.max_queue_tokens,
            priorities: self.enable_priority_scheduling,
            ageing: Some(self.priority_ageing),
        }
    }

    /// What the scheduler must know of it, on a device of which a model may use `device_limit` bytes.
    pub fn scheduler_config(&self, device_limit: Option<u64>) -> SchedulerConfig {
        let limits = [self.memory_limit, device_limit].into_iter().flatten();
        let aware = self.dynamic.memory_aware;
        SchedulerConfig {
            mode: match self.mode {
                Some(BatchingMode::Requests(mode)) => mode,
                Some(BatchingMode::Continuous) | None => Mode::Dynamic,
            },
            dispatch: self.dispatch,
            isolation: self.isolation,
            max_batch_size: self.max_batch_size,
            min_batch_size: self.min_batch_size,
            max_batch_cost: self.max_batch_tokens,
            max_wait: self.max_wait_time,
            max_queue_size: self.max_queue_size,
            max_queue_cost: self.max_queue_tokens,
            max_queue_bytes: self.max_queue_bytes,
            optimization_target: self.optimization_target,
            latency_slo: self.latency_slo,
            target_utilization: self.dynamic.target_utilization,
            size_increment: self.dynamic.size_increment,
            priorities: self.enable_priority_scheduling,
            ageing: Some(self.priority_ageing),
            adaptive: self.adaptive.clone(),
            buckets: BucketConfig {
                enabled: self.dynamic.enable_bucketing,
                boundaries: self.dynamic.bucket_boundaries.clone(),
                strategy: self.dynamic.padding_strategy,
            },
            memory_limit: limits.min().filter(|_| aware),
            bytes_per_element: self.dynamic.bytes_per_element.filter(|_| aware),
            breaker: Some(self.breaker.clone()).filter(|breaker| breaker.failures > 0),
            stall_after: Some(self.stall_timeout),
            ..SchedulerConfig::default()
        }
    }
}

pub(super) fn read_batching(s: &mut Section<'_>) -> BatchingSettings {
    let mode = s.optional("mode", &choice(MODES), None);
    let dispatch = match mode {
        Some(BatchingMode::Requests(Mode::Fixed)) => Dispatch::Window,
        _ => Dispatch::Eager,
    };
    let (ms, s10) = (|ms| Duration::from_millis(ms), Duration::from_secs(10));
    // Tables last: printed, they would take the keys that follow them.
    let settings = BatchingSettings {
        mode,
        dispatch: s.read("dispatch", &choice(DISPATCHES), dispatch),
        isolation: s.read("isolation", &choice(ISOLATIONS), Isolation::Bisect),
        max_batch_size: s.read("max_batch_size", &integer(1..=65_536), 32),
        min_batch_size: s.read("min_batch_size", &integer(1..=65_536), 1),
        max_wait_time: s.read("max_wait_time", &duration(Duration::ZERO, "ms"), ms(50)),
        max_queue_size: s.read("max_queue_size", &integer(1..=10_000_000), 4096),
        max_queue_tokens: s.optional("max_queue_tokens", &integer(1..=MOST), None),
        max_queue_bytes: s.optional("max_queue_bytes", &size(), None),
        max_batch_tokens: s.optional("max_batch_tokens", &integer(1..=MOST), None),
        optimization_target: s.read("optimization_target", &choice(TARGETS), OptimizationTarget::Balanced),
        latency_slo: s.optional("latency_slo", &duration(SHORTEST, "ms"), None),
        memory_limit: s.optional("memory_limit", &size(), None),
        enable_priority_scheduling: s.read("enable_priority_scheduling", &boolean(), true),
        priority_ageing: s.read("priority_ageing", &duration(SHORTEST, "s"), s10),
        max_priority: s.read("max_priority", &choice(PRIORITIES), Priority::Critical),
        stall_timeout: s.read("stall_timeout", &duration(SHORTEST, "s"), Duration::from_secs(30)),
        event_log: s.optional("event_log", &path(), None),
        timeout_multipliers: s.subsection("timeout_multipliers", read_multipliers),
        breaker: s.subsection("breaker", |s| BreakerConfig {
            failures: s.read("failures", &integer(0..=1_000_000), 5),
            window: s.read("window", &duration(SHORTEST, "s"), s10),
            open: s.read("open", &duration(SHORTEST, "s"), s10),
        }),
        dynamic: s.subsection("dynamic", read_dynamic),
        adaptive: s.subsection("adaptive", read_adaptive),
        continuous: s.subsection("continuous", read_continuous),
    };
    check_batching(s, &settings);
    settings
}

fn read_multipliers(s: &mut Section<'_>) -> TimeoutMultipliers {
    let factor = || number(0.001..=1000.0);
    TimeoutMultipliers {
        low: s.read("low", &factor(), 2.0),
        normal: s.read("normal", &factor(), 1.0),
        high: s.read("high", &factor(), 0.5),
        critical: s.read("critical", &factor(), 0.25),
    }
}

fn read_dynamic(s: &mut Section<'_>) -> DynamicSettings {
    DynamicSettings {
        target_utilization: s.read("target_utilization", &number(0.01..=1.0), 0.8),
        size_increment: s.read("size_increment", &integer(1..=65_536), 4),
        padding_strategy: s.read("padding_strategy", &choice(PADDINGS), PaddingStrategy::Minimal),
        enable_bucketing: s.read("enable_bucketing", &boolean(), true),
        bucket_boundaries: s.read(
            "bucket_boundaries",
            &integers(1..=1_000_000),
            vec![128, 256, 512, 1024, 2048],
        ),
        memory_aware: s.read("memory_aware", &boolean(), true),
        bytes_per_element: s.optional("bytes_per_element", &size(), None),
    }
}

fn read_continuous(s: &mut Section<'_>) -> ContinuousSettings {
    let settings = ContinuousSettings {
        block_size: s.read("block_size", &integer(16..=1024), 16),
        kv_cache_memory: s.optional("kv_cache_memory", &size(), None),
        max_sequences: s.read("max_sequences", &integer(1..=65_536), 64),
        max_step_tokens: s.read("max_step_tokens", &integer(1..=1_000_000), 2048),
        prefill_chunk: s.optional("prefill_chunk", &integer(1..=1_000_000), None),
        inter_token_target: s.optional("inter_token_target", &duration(SHORTEST, "ms"), None),
        prefix_caching: s.read("prefix_caching", &boolean(), true),
        preemption: s.read("preemption", &boolean(), true),
    };
    if !settings.block_size.is_multiple_of(16) {
        s.invalid("block_size", format!("is {}; a multiple of 16 will do", settings.block_size));
    }
    let (sequences, tokens) = (settings.max_sequences, settings.max_step_tokens);
    if sequences > tokens && s.decides(&["max_sequences", "max_step_tokens"]) {
        s.invalid("max_sequences", format!("is {sequences}, but a step has max_step_tokens = {tokens}"));
    }
    settings
}

fn read_adaptive(s: &mut Section<'_>) -> AdaptiveConfig {
    let rate = || number(0.0..=1e9);
    let default = AdaptiveConfig::default();
    let adaptive = AdaptiveConfig {
        low_load_threshold: s.read("low_load_threshold", &rate(), default.low_load_threshold),
        high_load_threshold: s.read("high_load_threshold", &rate(), default.high_load_threshold),
        adjustment_interval: s.read(
            "adjustment_interval",
            &duration(Duration::from_millis(10), "s"),
            default.adjustment_interval,
        ),
        high_load_batch_size: s.read(
            "high_load_batch_size",
            &integer(1..=65_536),
            default.high_load_batch_size,
        ),
        low_load_timeout: s.read(
            "low_load_timeout",
            &duration(Duration::ZERO, "ms"),
            default.low_load_timeout,
        ),
    };
    let (low, high) = (adaptive.low_load_threshold, adaptive.high_load_threshold);
    if low > high && s.decides(&["low_load_threshold", "high_load_threshold"]) {
        let at = s.source("high_load_threshold");
        s.invalid(
            "low_load_threshold",
            format!("is {low}, but high_load_threshold is {high} ({at}): a load would be both"),
        );
    }
    adaptive
}

fn check_batching(s: &mut Section<'_>, settings: &BatchingSettings) {
    let fixed = settings.mode == Some(BatchingMode::Requests(Mode::Fixed));
    if fixed && settings.dispatch == Dispatch::Eager && s.decides(&["mode", "dispatch"]) {
        let mode = s.source("mode");
        s.invalid(
            "dispatch",
            format!("is \"eager\", but mode is \"fixed\" ({mode}): a fixed batch waits for its window"),
        );
    }
    if fixed
        && settings.max_queue_size < settings.max_batch_size
        && s.decides(&["mode", "max_queue_size", "max_batch_size"])
    {
        let (queue, batch) = (settings.max_queue_size, settings.max_batch_size);
        let at = s.source("max_batch_size");
        s.invalid(
            "max_queue_size",
            format!("is {queue}, but max_batch_size is {batch} ({at}): no fixed batch would ever be full"),
        );
    }
    if settings.min_batch_size > settings.max_batch_size && s.decides(&["min_batch_size", "max_batch_size"]) {
        let (min, max) = (settings.min_batch_size, settings.max_batch_size);
        let at = s.source("max_batch_size");
        s.invalid("min_batch_size", format!("is {min}, but max_batch_size is {max} ({at})"));
    }
    if let (Some(batch), Some(queue)) = (settings.max_batch_tokens, settings.max_queue_tokens)
        && queue < batch
        && s.decides(&["max_batch_tokens", "max_queue_tokens"])
    {
        let at = s.source("max_batch_tokens");
        s.invalid(
            "max_queue_tokens",
            format!("is {queue}, but max_batch_tokens is {batch} ({at}): no batch would ever be full"),
        );
    }
    if let (Some(limit), Some(element)) = (settings.memory_limit, settings.dynamic.bytes_per_element)
        && limit < element
        && s.decides(&["memory_limit", "dynamic"])
    {
        s.invalid(
            "memory_limit",
            format!("is {limit} bytes, but dynamic.bytes_per_element is {element}: nothing would ever fit"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn scheduler(text: &str) -> SchedulerConfig {
        Settings::from_toml_str(text, "t").unwrap().batching.scheduler_config(None)
    }

    #[test]
    fn the_scheduler_gets_every_limit() {
        let set = scheduler(
            "[batching]\nmode = 'adaptive'\ndispatch = 'window'\nisolation = 'none'\nmax_batch_size = 7\n\
             min_batch_size = 2\nmax_wait_time = '3ms'\nmax_queue_size = 4\nmax_queue_tokens = 6\n\
             max_queue_bytes = '8B'\nmax_batch_tokens = 5\noptimization_target = 'cost'\nlatency_slo = '9ms'\n\
             memory_limit = '10B'\nenable_priority_scheduling = false\npriority_ageing = '11ms'\n\
             stall_timeout = '12ms'\nbreaker = { failures = 13, window = '14ms', open = '15ms' }\n\
             dynamic = { target_utilization = 0.5, size_increment = 16, padding_strategy = 'maximum', \
             enable_bucketing = false, bucket_boundaries = [17], bytes_per_element = '1B' }\n\
             adaptive = { low_load_threshold = 18, high_load_threshold = 19.5, adjustment_interval = '20ms', \
             high_load_batch_size = 21, low_load_timeout = '22ms' }",
        );
        let ms = Duration::from_millis;
        let expected = SchedulerConfig {
            mode: Mode::Adaptive,
            dispatch: Dispatch::Window,
            isolation: Isolation::None,
            instances: 1,
            max_batch_size: 7,
            min_batch_size: 2,
            max_batch_cost: Some(5),
            max_wait: ms(3),
            max_queue_size: 4,
            max_queue_cost: Some(6),
            max_queue_bytes: Some(8),
            optimization_target: OptimizationTarget::Cost,
            latency_slo: Some(ms(9)),
            target_utilization: 0.5,
            size_increment: 16,
            priorities: false,
            ageing: Some(ms(11)),
            adaptive: AdaptiveConfig {
                low_load_threshold: 18.0,
                high_load_threshold: 19.5,
                adjustment_interval: ms(20),
                high_load_batch_size: 21,
                low_load_timeout: ms(22),
            },
            buckets: BucketConfig {
                enabled: false,
                boundaries: vec![17],
                strategy: PaddingStrategy::Maximum,
            },
            memory_limit: Some(10),
            bytes_per_element: Some(1),
            breaker: Some(BreakerConfig { failures: 13, window: ms(14), open: ms(15) }),
            stall_after: Some(ms(12)),
        };
        assert_eq!(set, expected);
    }

    #[test]
    fn the_lesser_of_a_models_and_its_devices_memory_limits() {
        let limit = |text: &str, device| {
            Settings::from_toml_str(text, "t").unwrap().batching.scheduler_config(device).memory_limit
        };
        let own = "batching.memory_limit = '5B'";
        assert_eq!((limit(own, None), limit(own, Some(3)), limit(own, Some(9))), (Some(5), Some(3), Some(5)));
        assert_eq!((limit("", None), limit("", Some(3))), (None, Some(3)));
        assert_eq!(limit(&format!("{own}\nbatching.dynamic.memory_aware = false"), Some(3)), None);
    }

    #[test]
    fn no_failures_are_no_breaker() {
        assert_eq!(scheduler("batching.breaker.failures = 0").breaker, None);
        assert_eq!(scheduler("").breaker, Some(BreakerConfig::default()));
    }

    #[test]
    fn a_model_changes_one_key_of_a_table_and_keeps_the_others() {
        let text =
            "batching.breaker = { failures = 2, open = '3s' }\nmodels.delay.batching.breaker.failures = 4";
        let breaker = &Settings::from_toml_str(text, "t").unwrap().models["delay"].batching.breaker;
        assert_eq!((breaker.failures, breaker.open), (4, Duration::from_secs(3)));
    }

    #[test]
    fn contradictions_name_both() {
        for (text, expected) in [
            (
                "[batching]\nmin_batch_size = 8\nmax_batch_size = 4",
                "t:2: `batching.min_batch_size` is 8, but max_batch_size is 4 (t:3)",
            ),
            (
                "[batching]\nmin_batch_size = 8\n[models.delay.batching]\nmax_batch_size = 4",
                "[batching], t:2: `models.delay.batching.min_batch_size` is 8, but max_batch_size is 4 (t:4)",
            ),
            (
                "[batching.adaptive]\nlow_load_threshold = 200",
                "t:2: `batching.adaptive.low_load_threshold` is 200, but high_load_threshold is 100 (default): \
                 a load would be both",
            ),
            (
                "[batching]\nmemory_limit = '1KB'\ndynamic.bytes_per_element = '2KB'",
                "t:2: `batching.memory_limit` is 1000 bytes, but dynamic.bytes_per_element is 2000: nothing \
                 would ever fit",
            ),
        ] {
            assert_eq!(Settings::from_toml_str(text, "t").unwrap_err().to_string(), expected);
        }
    }
}
