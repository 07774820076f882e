//! `[batching]`: its keys, their defaults, and what contradicts what.

use std::path::PathBuf;
use std::time::Duration;

use trustformers_batching::{
    AdaptiveConfig, BreakerConfig, BucketConfig, Dispatch, Isolation, Mode, OptimizationTarget,
    PaddingStrategy, Priority, SchedulerConfig,
};

use super::kinds::{boolean, choice, duration, integer, integers, number, path, size};
use super::section::Section;

const MODES: &[(&str, Mode)] =
    &[("dynamic", Mode::Dynamic), ("fixed", Mode::Fixed), ("adaptive", Mode::Adaptive)];
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

/// `[batching]`, or what a model makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchingSettings {
    /// How batches are sized.
    pub mode: Mode,
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

impl BatchingSettings {
    /// What the scheduler must know of it, on a device of which a model may use `device_limit` bytes.
    pub fn scheduler_config(&self, device_limit: Option<u64>) -> SchedulerConfig {
        let limits = [self.memory_limit, device_limit].into_iter().flatten();
        let aware = self.dynamic.memory_aware;
        SchedulerConfig {
            mode: self.mode,
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
    let mode = s.read("mode", &choice(MODES), Mode::Dynamic);
    let dispatch = match mode {
        Mode::Fixed => Dispatch::Window,
        Mode::Dynamic | Mode::Adaptive => Dispatch::Eager,
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
    let fixed = settings.mode == Mode::Fixed;
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
