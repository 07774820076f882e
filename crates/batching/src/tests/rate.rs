//! Estimates of the next arrival and of the next interval's rate, in virtual time.

use std::time::Duration;

use proptest::prelude::*;

use crate::Time;
use crate::rate::{ArrivalGap, LoadForecast};

const MS: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * MS)
}

/// Arrivals at each of `times`, in milliseconds.
fn arrivals(times: impl IntoIterator<Item = u64>) -> ArrivalGap {
    let mut gap = ArrivalGap::default();
    times.into_iter().for_each(|time| gap.arrived(at(time), 1));
    gap
}

fn millis(gap: &ArrivalGap, now: u64) -> f64 {
    gap.expected(at(now)).expect("an estimate").as_secs_f64() * 1e3
}

#[test]
fn one_arrival_is_no_gap_yet() {
    assert_eq!(ArrivalGap::default().expected(at(5)), None);
    assert_eq!(arrivals([3]).expected(at(5)), None);
    assert_eq!(arrivals([3]).per_second(at(5)), 0.0);
}

#[test]
fn even_arrivals_are_expected_at_their_pace() {
    let gap = arrivals((0..50).map(|i| i * 4));
    assert!((millis(&gap, 196) - 4.0).abs() < 1e-6);
    assert!((gap.per_second(at(196)) - 250.0).abs() < 1e-3);
}

#[test]
fn the_pace_of_the_last_sixteen_arrivals_decides() {
    let slow_then_fast = arrivals((0..50).map(|i| i * 10).chain((1..=48).map(|i| 490 + i)));
    let estimate = millis(&slow_then_fast, 538);
    assert!((1.0..1.6).contains(&estimate), "{estimate}");
    let fast_then_slow = arrivals((0..50).chain((1..=48).map(|i| 49 + i * 10)));
    let estimate = millis(&fast_then_slow, 529);
    assert!((8.5..=10.0).contains(&estimate), "{estimate}");
}

#[test]
fn silence_after_a_burst_raises_the_expectation_at_once() {
    let gap = arrivals(0..32);
    assert!((millis(&gap, 31) - 1.0).abs() < 1e-6);
    assert!((millis(&gap, 81) - 50.0).abs() < 1e-6);
    assert!(gap.per_second(at(1031)) <= 1.0 + 1e-9);
}

#[test]
fn one_long_pause_does_not_hide_the_pace_of_the_burst_after_it() {
    let gap = arrivals((0..32).chain([3_600_000]).chain(3_600_001..3_600_009));
    assert!(millis(&gap, 3_600_008) < 1.5);
}

#[test]
fn arrivals_together_share_the_gap_before_them() {
    let mut gap = ArrivalGap::default();
    (0..40).for_each(|i| gap.arrived(at(i * 8), 4));
    assert!((millis(&gap, 312) - 2.0).abs() < 1e-6);
}

#[test]
fn an_estimate_of_zero_grows_again() {
    let mut gap = ArrivalGap::default();
    (0..100).for_each(|_| gap.arrived(at(0), 1));
    assert_eq!(gap.expected(at(0)), Some(Duration::ZERO));
    assert!(gap.per_second(at(0)).is_finite());
    (1..=30).for_each(|i| gap.arrived(at(i * 10), 1));
    assert!(millis(&gap, 300) > 5.0);
}

/// A forecast after intervals of one second with these counts.
fn forecast(counts: impl IntoIterator<Item = u32>) -> f64 {
    let mut load = LoadForecast::new(SECOND);
    let mut now = 0;
    for count in counts {
        load.arrived(at(now), count);
        now += 1000;
    }
    load.forecast(at(now))
}

#[test]
fn a_steady_rate_is_forecast_as_it_is() {
    assert!((forecast([40; 30]) - 40.0).abs() < 1e-9);
}

#[test]
fn a_ramp_is_forecast_one_step_ahead() {
    let predicted = forecast((0..60).map(|i| i * 10));
    assert!((predicted - 600.0).abs() < 10.0, "{predicted}");
}

#[test]
fn a_step_is_followed_within_a_few_intervals() {
    let predicted = forecast([10; 20].into_iter().chain([200; 5]));
    assert!((160.0..260.0).contains(&predicted), "{predicted}");
}

#[test]
fn an_end_of_the_load_is_forecast_as_nothing_and_never_as_less() {
    for silent in 1..12 {
        assert!(forecast([500; 10].into_iter().chain(vec![0; silent])) >= 0.0);
    }
    let mut load = LoadForecast::new(SECOND);
    (0..10).for_each(|i| load.arrived(at(i * 1000), 500));
    assert_eq!(load.forecast(at(1_000_000)), 0.0);
}

#[test]
fn the_first_interval_counts_for_what_it_has_so_far() {
    let mut load = LoadForecast::new(SECOND);
    load.arrived(at(0), 7);
    assert_eq!(load.forecast(at(999)), 7.0);
    assert!(!load.is_ready());
    assert_eq!(load.forecast(at(1000)), 7.0);
    assert!(load.is_ready());
}

proptest! {
    #[test]
    fn estimates_are_finite_and_not_below_the_silence(
        arrivals in prop::collection::vec((0_u64..u64::MAX / 256, 0_u32..2000), 1..100),
        silence in 0_u64..u64::MAX / 256,
        interval in prop_oneof![0_u64..10, any::<u64>()],
    ) {
        let mut gap = ArrivalGap::default();
        let mut load = LoadForecast::new(Duration::from_nanos(interval));
        let mut now = 0;
        for (step, count) in arrivals {
            now += step;
            gap.arrived(Time::from_nanos(now), count);
            load.arrived(Time::from_nanos(now), count);
        }
        let later = Time::from_nanos(now) + Duration::from_nanos(silence);
        if let Some(expected) = gap.expected(later) {
            prop_assert!(expected >= Duration::from_nanos(silence));
        }
        prop_assert!(gap.per_second(later).is_finite() && gap.per_second(later) >= 0.0);
        let rate = load.forecast(later);
        prop_assert!(rate.is_finite() && rate >= 0.0, "{rate}");
    }
}
