//! The counts add up, the percentiles are near, and a snapshot says what happened when.

use std::time::Duration;

use proptest::prelude::*;

use super::virtual_time::{World, poisson};
use crate::scheduler::{BatchReport, Next, Outcome, Scheduler, SchedulerConfig};
use crate::stats::Histogram;
use crate::time::Time;
use crate::{BreakerConfig, Entry, InstanceId, Isolation, Ticket};

const MILLI: u64 = 1_000_000;

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * MILLI)
}

fn entry(ticket: u64, now: Time) -> Entry {
    Entry { ticket: Ticket(ticket), cost: 1, arrived: now, ..Entry::default() }
}

fn report(outcome: Outcome, millis: u64) -> BatchReport {
    BatchReport { outcome, busy: Duration::from_millis(millis), peak_bytes: Some(1_000) }
}

proptest! {
    #[test]
    fn percentiles_are_within_three_percent(
        mut values in prop::collection::vec(prop_oneof![0_u64..200, 0_u64..(1 << 40)], 1..500),
        q in 0.0..1.0_f64,
    ) {
        let mut histogram = Histogram::new(43);
        values.iter().for_each(|&value| histogram.record(value));
        values.sort_unstable();
        let exact = values[((q * values.len() as f64).ceil() as usize).max(1) - 1] as f64;
        let found = histogram.quantile(q);
        prop_assert!((found - exact).abs() <= 0.03 * exact, "{found}, not {exact}");
        let distribution = histogram.distribution(1.0);
        prop_assert_eq!(distribution.max, *values.last().unwrap() as f64);
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
        prop_assert!((distribution.mean - mean).abs() <= 1e-9 * mean);
        let in_bars: u64 = histogram.bars().iter().map(|bar| bar.count).sum();
        let in_octaves: u64 = histogram.octaves(1.0).iter().map(|bar| bar.count).sum();
        prop_assert_eq!((in_bars, in_octaves), (values.len() as u64, values.len() as u64));
    }

    #[test]
    fn every_request_is_counted_in_one_place(
        steps in prop::collection::vec((0_u8..12, 0_u64..30), 1..200),
        bisect in any::<bool>(),
    ) {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            isolation: if bisect { Isolation::Bisect } else { Isolation::None },
            max_batch_size: 4,
            max_queue_size: 8,
            instances: 2,
            breaker: Some(BreakerConfig { failures: 3, ..BreakerConfig::default() }),
            ..SchedulerConfig::default()
        });
        let (mut now, mut tickets, mut refused) = (0, 0, 0);
        let mut running = Vec::new();
        for (step, number) in steps {
            now += number;
            let time = at(now);
            match step {
                0..=4 => {
                    let deadline = (step == 0).then(|| time + Duration::from_millis(20));
                    let admitted = scheduler.submit(time, Entry { deadline, ..entry(tickets, time) });
                    tickets += 1;
                    refused += u64::from(admitted.is_err());
                }
                5..=7 if running.len() < 2 => {
                    if let Next::Run(batch) = scheduler.plan(time, InstanceId(0), u64::MAX).next {
                        running.push(batch.id);
                    }
                }
                8..=10 if !running.is_empty() => {
                    let outcome = [Outcome::Completed, Outcome::Failed, Outcome::OutOfMemory][step as usize - 8];
                    scheduler.complete(time, running.remove(0), report(outcome, number));
                }
                11 => drop(scheduler.cancel(time, Ticket(tickets.saturating_sub(number)))),
                _ => drop(scheduler.expire(time)),
            }
            let stats = scheduler.stats(time);
            let is = stats.requests;
            prop_assert_eq!(is.admitted + refused, tickets);
            prop_assert_eq!(stats.rejected.values().sum::<u64>(), refused);
            let ended = is.completed + is.failed + is.never_fits + is.expired_in_queue + is.given_up;
            let ended = ended + is.expired_running + is.cancelled;
            prop_assert_eq!(ended + is.queued + is.running, is.admitted);
            prop_assert_eq!(stats.latency_seconds.count, is.completed);
            prop_assert_eq!(stats.batches.started - stats.batches.ended, running.len() as u64);
        }
    }
}

#[test]
fn a_snapshot_tells_times_sizes_padding_and_use() {
    let mut scheduler = Scheduler::new(SchedulerConfig { max_batch_size: 2, ..SchedulerConfig::default() });
    // A minute after the origin, which is not when it began to work.
    let start = 60_000;
    for (ticket, seq_len) in [(0, 10), (1, 30), (2, 20)] {
        scheduler.submit(at(start), Entry { seq_len, cost: seq_len, ..entry(ticket, at(start)) }).unwrap();
    }
    for batch in 0..2 {
        let Next::Run(batch) = scheduler.plan(at(start + 100 * batch), InstanceId(0), u64::MAX).next else {
            panic!("there is work")
        };
        let end = at(start + 100 * (batch.id.0 + 1));
        scheduler.complete(end, batch.id, report(Outcome::Completed, 100));
    }
    let stats = scheduler.stats(at(start + 1_000));
    assert_eq!(stats.seconds, 1.0);
    let near = |actual: f64, expected: f64| {
        assert!((actual - expected).abs() <= 0.016 * expected, "{actual}, not {expected}");
    };
    near(stats.latency_seconds.mean, 0.4 / 3.0);
    near(stats.latency_seconds.p50, 0.1);
    near(stats.latency_seconds.p99, 0.2);
    near(stats.queue_wait_seconds.mean, 0.1 / 3.0);
    near(stats.batch_duration_seconds.p95, 0.1);
    let sizes: Vec<_> = stats.batch_size_histogram.iter().map(|bar| (bar.up_to, bar.count)).collect();
    assert_eq!(sizes, [(1.0, 1), (2.0, 1)]);
    assert_eq!((stats.padding.tokens, stats.padding.padded_tokens), (60, 80));
    assert_eq!(stats.padding.overhead, 0.25);
    near(stats.utilization.overall, 0.2);
    near(stats.utilization.last_60_seconds, 0.2);
    for rate in [stats.throughput.last_10_seconds, stats.throughput.last_60_seconds, stats.throughput.overall]
    {
        assert_eq!(rate, 3.0);
    }
    assert_eq!((stats.recent.mean_left_behind, stats.recent.held_back), (0.5, 0.5));
    assert_eq!((stats.memory.peak_bytes, stats.memory.limit_bytes), (1_000, None));
    assert_eq!(stats.cost_model.fits[0].samples, 2);
    assert_eq!(stats.queue.requests, 0);
}

#[test]
fn a_batch_that_runs_counts_as_use() {
    let mut scheduler = Scheduler::new(SchedulerConfig { instances: 2, ..SchedulerConfig::default() });
    scheduler.submit(at(0), entry(0, at(0))).unwrap();
    assert!(matches!(scheduler.plan(at(0), InstanceId(0), u64::MAX).next, Next::Run(_)));
    let stats = scheduler.stats(at(500_000));
    assert_eq!((stats.utilization.overall, stats.utilization.last_60_seconds), (0.5, 0.5));
    assert_eq!(stats.requests.running, 1);
}

#[test]
fn throughput_is_that_of_the_last_seconds() {
    let half_a_minute = |rate| poisson(rate, 30.0, |_| 0);
    let later = half_a_minute(100.0).into_iter().map(|(at, len)| (at + 30_000 * MILLI, len));
    let arrivals = half_a_minute(1_000.0).into_iter().chain(later).collect();
    let run = World { seconds: [0.0, 0.0001, 0.0], bytes: 0, arrivals }.run(&SchedulerConfig::default());
    let near = |actual: f64, expected: f64| assert!((actual / expected - 1.0).abs() < 0.1, "{actual}");
    near(run.stats.throughput.last_10_seconds, 100.0);
    near(run.stats.throughput.last_60_seconds, 550.0);
    near(run.stats.throughput.overall, 550.0);
}

#[test]
fn silence_empties_the_windows_and_keeps_the_totals() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    scheduler.submit(at(0), entry(0, at(0))).unwrap();
    let Next::Run(batch) = scheduler.plan(at(0), InstanceId(0), u64::MAX).next else { panic!("it is free") };
    scheduler.complete(at(10), batch.id, report(Outcome::Completed, 10));
    let stats = scheduler.stats(at(100_000));
    assert_eq!((stats.throughput.last_60_seconds, stats.utilization.last_60_seconds), (0.0, 0.0));
    assert_eq!((stats.requests.completed, stats.throughput.overall), (1, 0.01));
    assert_eq!(stats.recent.batches, 0);
}

#[test]
fn a_failed_batch_that_runs_again_is_counted_as_such() {
    let config = SchedulerConfig { isolation: Isolation::Bisect, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(config);
    for ticket in 0..2 {
        scheduler.submit(at(0), entry(ticket, at(0))).unwrap();
    }
    for outcome in [Outcome::Failed, Outcome::Failed, Outcome::Completed] {
        let Next::Run(batch) = scheduler.plan(at(1), InstanceId(0), u64::MAX).next else {
            panic!("there is work")
        };
        scheduler.complete(at(2), batch.id, report(outcome, 1));
    }
    let stats = scheduler.stats(at(3));
    assert_eq!((stats.batches.started, stats.batches.retries, stats.batches.failed), (3, 2, 2));
    assert_eq!((stats.requests.completed, stats.requests.failed), (1, 1));
    assert_eq!(stats.queue_wait_seconds.count, 2, "each waited once");
}
