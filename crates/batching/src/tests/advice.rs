//! Each suggestion: given where following it helps, by about as much as it says; not given where all is well.

use std::time::Duration;

use super::virtual_time::{Run, World, poisson};
use crate::advice::Action;
use crate::bucket::BucketConfig;
use crate::{Dispatch, Mode, OptimizationTarget, SchedulerConfig, Suggestion};

/// Long enough that a minute of it is past its beginning.
const SECONDS: f64 = 65.0;

fn actions(run: &Run) -> Vec<Action> {
    run.advice.iter().map(|suggestion| suggestion.action).collect()
}

/// The only suggestion, which must be for `action`.
fn only(run: &Run, action: Action) -> &Suggestion {
    assert_eq!(actions(run), [action], "{:#?}\n{:#?}", run.advice, run.stats);
    &run.advice[0]
}

fn near(what: &str, actual: f64, predicted: f64, tolerance: f64) {
    let off = (actual / predicted - 1.0).abs();
    assert!(off <= tolerance, "{what}: {actual}, predicted {predicted}");
}

/// Follows a suggestion and compares what changes with what it predicted.
fn follow(
    world: &World,
    config: &SchedulerConfig,
    action: Action,
    followed: impl Fn(SchedulerConfig, f64) -> SchedulerConfig,
    measure: impl Fn(&Run) -> f64,
) {
    let before = world.run(config);
    let suggestion = only(&before, action);
    let gain = &suggestion.predicted_gain;
    near("before", measure(&before), gain.before, 0.1);
    let after = world.run(&followed(config.clone(), suggestion.proposed));
    near("after", measure(&after), gain.after, 0.1);
    assert!(gain.value > 0.0 && (gain.value - (gain.before - gain.after).abs()).abs() < 1e-9);
    let again = after.advice.iter().find(|suggestion| suggestion.action == action);
    assert_eq!(again, None, "it is not asked for twice");
}

fn throughput(run: &Run) -> f64 {
    run.stats.throughput.last_60_seconds
}

fn latency(run: &Run) -> f64 {
    run.stats.recent.mean_latency_seconds
}

/// 10 ms before the first item and 1 ms for each, of which 1,000 a second come.
fn flooded() -> World {
    World { seconds: [0.010, 0.001, 0.0], bytes: 0, arrivals: poisson(1_000.0, SECONDS, |_| 0) }
}

#[test]
fn full_batches_with_others_left_behind_ask_for_larger_ones() {
    let config = SchedulerConfig { max_batch_size: 32, ..SchedulerConfig::default() };
    let larger = |config, to| SchedulerConfig { max_batch_size: to as u32, ..config };
    follow(&flooded(), &config, Action::RaiseMaxBatchSize, larger, throughput);
}

#[test]
fn larger_batches_keep_within_the_objective() {
    let latency_slo = Some(Duration::from_millis(60));
    let config = SchedulerConfig { max_batch_size: 8, latency_slo, ..SchedulerConfig::default() };
    let run = flooded().run(&config);
    // 16 run 26 ms, and 32 run 42 ms: too long for who comes just after a batch has started.
    let suggestion = run.advice.iter().find(|one| one.action == Action::RaiseMaxBatchSize).unwrap();
    assert_eq!(suggestion.proposed, 16.0);
    near("batch", suggestion.evidence["proposed_batch_seconds"], 0.026, 0.05);
}

#[test]
fn a_size_that_as_many_callers_fill_is_not_raised() {
    // Eight callers who wait for their results: all eight are in each batch, and nobody is left behind.
    let arrivals = (0..3_000).flat_map(|batch| (0..8).map(move |_| (batch * 18_100_000, 0))).collect();
    let world = World { seconds: [0.010, 0.001, 0.0], bytes: 0, arrivals };
    let config = SchedulerConfig { max_batch_size: 8, ..SchedulerConfig::default() };
    assert_eq!(actions(&world.run(&config)), []);
}

#[test]
fn busy_instances_with_batches_as_large_as_pays_ask_for_another() {
    // All the time is the items': no size is better than another.
    let arrivals = poisson(800.0, SECONDS, |_| 0);
    let world = World { seconds: [0.0001, 0.002, 0.0], bytes: 0, arrivals };
    let config = SchedulerConfig { max_batch_size: 16, ..SchedulerConfig::default() };
    let another = |config, to| SchedulerConfig { instances: to as u32, ..config };
    follow(&world, &config, Action::AddInstance, another, throughput);
}

#[test]
fn memory_that_keeps_batches_small_is_asked_for() {
    let world = World { bytes: 1_000_000, ..flooded() };
    let config =
        SchedulerConfig { max_batch_size: 32, memory_limit: Some(8_000_000), ..SchedulerConfig::default() };
    let more = |config, to| SchedulerConfig { memory_limit: Some(to as u64), ..config };
    follow(&world, &config, Action::RaiseMemoryLimit, more, throughput);
}

/// Most are short, some are 256 long.
fn skewed() -> World {
    let length = |roll: f64| if roll < 0.1 { 256 } else { 8 + (roll * 40.0) as u32 };
    World { seconds: [0.001, 0.0, 0.000_02], bytes: 0, arrivals: poisson(2_000.0, SECONDS, length) }
}

#[test]
fn batches_that_are_mostly_padding_ask_for_buckets() {
    let config = SchedulerConfig { max_batch_size: 16, ..SchedulerConfig::default() };
    let run = skewed().run(&config);
    let suggestion = run.advice.iter().find(|one| one.action == Action::EnableBucketing).unwrap();
    assert!(suggestion.evidence["padding_overhead"] > 0.5, "{suggestion:?}");
    near("before", throughput(&run), suggestion.predicted_gain.before, 0.1);
    let buckets = BucketConfig { enabled: true, ..BucketConfig::default() };
    let bucketed = skewed().run(&SchedulerConfig { buckets, ..config });
    near("after", throughput(&bucketed), suggestion.predicted_gain.after, 0.1);
    assert!(!actions(&bucketed).contains(&Action::EnableBucketing));
}

/// 2 ms before the first item and a tenth for each.
fn calm(rate: f64) -> World {
    World { seconds: [0.002, 0.0001, 0.0], bytes: 0, arrivals: poisson(rate, SECONDS, |_| 0) }
}

#[test]
fn full_batches_that_are_waited_for_ask_for_smaller_ones() {
    // A long window, so that a batch leaves when it is full; but at night it was its end that sent them off,
    // which told how long smaller ones take.
    let night = poisson(20.0, 30.0, |_| 0);
    let day = poisson(110.0, SECONDS, |_| 0).into_iter().map(|(at, len)| (at + 30_000_000_000, len));
    let world = World { arrivals: night.into_iter().chain(day).collect(), ..calm(0.1) };
    let config = SchedulerConfig {
        mode: Mode::Fixed,
        max_batch_size: 32,
        max_wait: Duration::from_millis(330),
        ..SchedulerConfig::default()
    };
    let smaller = |config, to| SchedulerConfig { max_batch_size: to as u32, ..config };
    follow(&world, &config, Action::LowerMaxBatchSize, smaller, latency);
}

#[test]
fn a_window_that_saves_nothing_needed_is_asked_to_be_shorter() {
    let config = SchedulerConfig {
        dispatch: Dispatch::Window,
        max_batch_size: 64,
        max_wait: Duration::from_millis(80),
        ..SchedulerConfig::default()
    };
    let shorter = |config, to| SchedulerConfig { max_wait: Duration::from_secs_f64(to), ..config };
    follow(&calm(100.0), &config, Action::LowerMaxWaitTime, shorter, latency);
}

#[test]
fn where_device_time_counts_a_window_is_asked_to_be_longer() {
    let config = SchedulerConfig {
        dispatch: Dispatch::Window,
        optimization_target: OptimizationTarget::Cost,
        latency_slo: Some(Duration::from_millis(100)),
        max_batch_size: 64,
        max_wait: Duration::from_millis(10),
        ..SchedulerConfig::default()
    };
    let longer = |config, to| SchedulerConfig { max_wait: Duration::from_secs_f64(to), ..config };
    let per_item = |run: &Run| run.device_seconds / run.items;
    follow(&calm(200.0), &config, Action::RaiseMaxWaitTime, longer, per_item);
}

#[test]
fn what_is_well_configured_gets_no_suggestion() {
    let eager = SchedulerConfig::default();
    for rate in [20.0, 200.0, 2_000.0] {
        let run = calm(rate).run(&eager);
        assert_eq!(actions(&run), [], "at {rate}/s: {:#?}", run.advice);
    }
    // Busy, but with batches that take whatever waits.
    let roomy = SchedulerConfig { max_batch_size: 256, ..eager };
    assert_eq!(actions(&World { arrivals: poisson(800.0, SECONDS, |_| 0), ..flooded() }.run(&roomy)), []);
}

#[test]
fn little_evidence_gives_no_suggestion() {
    let world = World { arrivals: poisson(1_000.0, 0.8, |_| 0), ..flooded() };
    let run = world.run(&SchedulerConfig { max_batch_size: 8, ..SchedulerConfig::default() });
    assert!(run.stats.recent.batches > 30 && run.advice.is_empty(), "{:#?}", run.advice);
}
