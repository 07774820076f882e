//! The adaptive controller, driven call by call and with loads on a simulated device.

use std::time::Duration;

use proptest::prelude::*;

use crate::Time;
use crate::cost_model::CostModel;
use crate::entry::GroupKey;
use crate::policy::adaptive::{Adaptive, AdaptiveConfig, Load};

const SLO: Duration = Duration::from_millis(100);
const WAIT: Duration = Duration::from_millis(50);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn controller(max_batch_size: u32, slo: Option<Duration>) -> Adaptive {
    Adaptive::new(AdaptiveConfig::default(), max_batch_size, WAIT, slo)
}

fn batches(adaptive: &mut Adaptive, count: u32, busy: Duration, predicted_next: Option<Duration>) {
    (0..count).for_each(|_| adaptive.completed(at(0), busy, predicted_next));
}

/// `rate` requests a second over `seconds` seconds from second `start` on.
fn load(adaptive: &mut Adaptive, start: u64, seconds: u64, rate: u32) {
    for second in start..start + seconds {
        adaptive.arrived(at(second * 1000), rate);
        adaptive.tick(at(second * 1000 + 999));
    }
}

#[test]
fn without_an_objective_the_limit_is_the_maximum() {
    let mut adaptive = controller(32, None);
    batches(&mut adaptive, 100, millis(5000), None);
    assert_eq!(adaptive.limit(), 32);
}

#[test]
fn twenty_batches_over_the_objective_shrink_the_limit_to_four_fifths() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 19, millis(101), None);
    assert_eq!(adaptive.limit(), 32);
    batches(&mut adaptive, 1, millis(101), None);
    assert_eq!(adaptive.limit(), 25);
    batches(&mut adaptive, 20, millis(101), None);
    assert_eq!(adaptive.limit(), 20);
}

#[test]
fn one_slow_batch_in_twenty_is_within_the_percentile_and_two_are_not() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 1, millis(900), None);
    batches(&mut adaptive, 19, millis(90), None);
    assert_eq!(adaptive.limit(), 32);
    batches(&mut adaptive, 2, millis(900), None);
    batches(&mut adaptive, 18, millis(90), None);
    assert_eq!(adaptive.limit(), 25);
}

#[test]
fn room_below_the_objective_grows_the_limit_by_one() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 20, millis(101), None);
    batches(&mut adaptive, 20, millis(79), None);
    assert_eq!(adaptive.limit(), 26);
    batches(&mut adaptive, 20, millis(80), None);
    assert_eq!(adaptive.limit(), 26);
}

#[test]
fn a_growth_predicted_to_break_the_objective_is_not_made() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 40, millis(101), None);
    assert_eq!(adaptive.limit(), 20);
    batches(&mut adaptive, 20, millis(79), Some(millis(101)));
    assert_eq!(adaptive.limit(), 20);
    batches(&mut adaptive, 20, millis(79), Some(millis(100)));
    assert_eq!(adaptive.limit(), 21);
}

#[test]
fn a_limit_that_broke_the_objective_is_tried_again_only_with_a_clear_margin() {
    let mut adaptive = controller(4, Some(SLO));
    batches(&mut adaptive, 20, millis(101), None);
    assert_eq!(adaptive.limit(), 3);
    batches(&mut adaptive, 20, millis(79), Some(millis(81)));
    assert_eq!(adaptive.limit(), 3);
    batches(&mut adaptive, 20, millis(79), Some(millis(80)));
    assert_eq!(adaptive.limit(), 4);
}

#[test]
fn batches_far_smaller_than_the_limit_let_it_grow_only_to_half_the_objective() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 40, millis(101), None);
    batches(&mut adaptive, 20, millis(5), Some(millis(51)));
    assert_eq!(adaptive.limit(), 20);
    batches(&mut adaptive, 20, millis(5), Some(millis(50)));
    assert_eq!(adaptive.limit(), 21);
}

#[test]
fn the_limit_never_falls_below_one_nor_grows_past_the_maximum() {
    let mut adaptive = controller(8, Some(SLO));
    batches(&mut adaptive, 2000, millis(500), None);
    assert_eq!(adaptive.limit(), 1);
    batches(&mut adaptive, 2000, millis(1), None);
    assert_eq!(adaptive.limit(), 8);
}

#[test]
fn low_load_shortens_the_window() {
    let mut adaptive = controller(32, None);
    assert_eq!((adaptive.load(), adaptive.max_wait()), (Load::Normal, WAIT));
    load(&mut adaptive, 0, 10, 5);
    assert_eq!((adaptive.load(), adaptive.max_wait()), (Load::Low, millis(10)));
    assert_eq!(controller(32, None).max_wait().min(millis(2)), millis(2));
}

#[test]
fn a_window_shorter_than_that_of_low_load_stays() {
    let mut adaptive = Adaptive::new(AdaptiveConfig::default(), 32, millis(2), None);
    load(&mut adaptive, 0, 10, 5);
    assert_eq!((adaptive.load(), adaptive.max_wait()), (Load::Low, millis(2)));
}

#[test]
fn high_load_allows_larger_batches() {
    let mut adaptive = controller(32, None);
    load(&mut adaptive, 0, 10, 500);
    assert_eq!((adaptive.load(), adaptive.limit()), (Load::High, 64));
}

#[test]
fn under_high_load_a_learned_limit_grows_by_its_rule() {
    let mut adaptive = controller(32, Some(SLO));
    batches(&mut adaptive, 20, millis(101), None);
    load(&mut adaptive, 0, 10, 500);
    assert_eq!((adaptive.load(), adaptive.limit()), (Load::High, 25));
    batches(&mut adaptive, 20, millis(10), None);
    assert_eq!(adaptive.limit(), 26);
    batches(&mut adaptive, 20 * 100, millis(10), None);
    assert_eq!(adaptive.limit(), 64);
}

#[test]
fn a_regime_that_comes_back_finds_the_limit_it_had_learned() {
    let mut adaptive = controller(32, Some(SLO));
    load(&mut adaptive, 0, 10, 500);
    batches(&mut adaptive, 20 * 10, millis(10), None);
    assert_eq!(adaptive.limit(), 42);
    load(&mut adaptive, 10, 90, 50);
    assert_eq!((adaptive.load(), adaptive.limit()), (Load::Normal, 32));
    load(&mut adaptive, 100, 60, 500);
    assert_eq!((adaptive.load(), adaptive.limit()), (Load::High, 42));
}

#[test]
fn regimes_switch_at_most_once_each_interval() {
    let mut adaptive = controller(32, None);
    let mut switches = Vec::new();
    for second in 0..600 {
        let before = adaptive.load();
        load(&mut adaptive, second, 1, if second / 7 % 2 == 0 { 500 } else { 0 });
        if adaptive.load() != before {
            switches.push(second);
        }
    }
    assert!(switches.len() >= 2, "{switches:?}");
    assert!(switches.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{switches:?}");
}

#[test]
fn a_rate_that_wavers_at_a_threshold_does_not_switch_to_and_fro() {
    let mut adaptive = controller(32, None);
    load(&mut adaptive, 0, 20, 120);
    assert_eq!(adaptive.load(), Load::High);
    for second in 20..620 {
        load(&mut adaptive, second, 1, if second / 3 % 2 == 0 { 104 } else { 96 });
        assert_eq!(adaptive.load(), Load::High);
    }
}

#[test]
fn settings_are_read_with_defaults() {
    let config = AdaptiveConfig::default();
    assert_eq!((config.low_load_threshold, config.high_load_threshold), (10.0, 100.0));
    assert_eq!(config.adjustment_interval, Duration::from_secs(30));
    assert_eq!((config.high_load_batch_size, config.low_load_timeout), (64, millis(10)));
}

/// A device whose batch of n items takes `a + b * n` seconds, one batch at a time, give or take a
/// part `noise` of it.
#[derive(Debug, Clone, Copy)]
struct Device {
    a: f64,
    b: f64,
    noise: f64,
}

impl Device {
    fn busy(self, items: u32) -> Duration {
        Duration::from_secs_f64(self.a + self.b * f64::from(items))
    }

    /// What batch number `batch` took; the noise is the golden ratio's sequence, even over its range.
    fn ran(self, items: u32, batch: u32) -> Duration {
        let even = (f64::from(batch) * 0.618_033_988_75).fract() * 2.0 - 1.0;
        self.busy(items).mul_f64(1.0 + self.noise * even)
    }

    /// The smallest limit that leaves no room below the objective, and the largest that holds it.
    fn best(self, slo: Duration, maximum: u32) -> (u32, u32) {
        let holds = |n: &u32| self.busy(*n) <= slo;
        let last = (1..=maximum).take_while(holds).last().unwrap_or(1);
        let first = (1..=last).find(|n| self.busy(*n) >= slo.mul_f64(0.8)).unwrap_or(last);
        (first, last)
    }
}

/// The limits after each adjustment while the device serves `rate(second)` requests a second.
///
/// At most 2,000 requests wait, as in front of a real server; the rest is refused.
fn simulate(
    adaptive: &mut Adaptive,
    device: Device,
    adjustments: usize,
    rate: impl Fn(f64) -> f64,
) -> Vec<u32> {
    let mut model = CostModel::new();
    let (mut seconds, mut arrived, mut waiting) = (0.0_f64, 0.0_f64, 0.0_f64);
    let mut limits = Vec::new();
    let mut batches = 0;
    while limits.len() < adjustments {
        let now = Time::from_nanos((seconds * 1e9) as u64);
        let before = arrived.floor();
        let size = (waiting.floor() as u32).min(adaptive.limit());
        let step = if size == 0 {
            adaptive.tick(now);
            Duration::from_millis(1)
        } else {
            waiting -= f64::from(size);
            device.ran(size, batches)
        };
        let came = rate(seconds + step.as_secs_f64() / 2.0).max(0.0) * step.as_secs_f64();
        arrived += came;
        waiting = (waiting + came).min(2000.0);
        seconds += step.as_secs_f64();
        let now = Time::from_nanos((seconds * 1e9) as u64);
        adaptive.arrived(now, (arrived.floor() - before) as u32);
        if size > 0 {
            model.observe(GroupKey::default(), size, u64::from(size), step);
            let next = adaptive.limit() + 1;
            adaptive.completed(now, step, model.predict(GroupKey::default(), next, u64::from(next)));
            batches += 1;
            if batches % 20 == 0 {
                limits.push(adaptive.limit());
            }
        }
    }
    limits
}

#[track_caller]
fn assert_converged(limits: &[u32], (first, last): (u32, u32)) {
    let tail = &limits[limits.len() - 20..];
    let (low, high) = (*tail.iter().min().expect("limits"), *tail.iter().max().expect("limits"));
    assert!(low + 1 >= first && high <= last + 1, "{tail:?} is off {first}..={last}");
    assert!(high - low <= 1, "{tail:?} goes up and down");
}

const DEVICES: [Device; 4] = [
    Device { a: 0.02, b: 0.004, noise: 0.0 },
    Device { a: 0.001, b: 0.009, noise: 0.0 },
    Device { a: 0.04, b: 0.025, noise: 0.0 },
    Device { a: 0.005, b: 0.0016, noise: 0.0 },
];

/// Requests a second that `device` serves in batches as large as the objective allows.
fn capacity(device: Device) -> f64 {
    let (_, last) = device.best(SLO, 64);
    f64::from(last) / device.busy(last).as_secs_f64()
}

fn converges(shape: impl Fn(f64) -> f64) {
    for device in DEVICES.into_iter().flat_map(|device| [device, Device { noise: 0.05, ..device }]) {
        let peak = 1.2 * capacity(device);
        for start in [1, 32, 64] {
            let mut adaptive = controller(start, Some(SLO));
            let limits = simulate(&mut adaptive, device, 1000, |second| peak * shape(second));
            assert!(limits.iter().all(|limit| (1..=64).contains(limit)));
            let (first, last) = device.best(SLO, 64);
            // The regime may be the one that is kept to the smaller maximum.
            let reached = if adaptive.load() == Load::High { 64 } else { start };
            assert_converged(&limits, (first.min(reached), last.min(reached)));
        }
    }
}

#[test]
fn converges_under_a_step() {
    converges(|second| if second < 20.0 { 0.3 } else { 1.0 });
}

#[test]
fn converges_under_a_ramp() {
    converges(|second| (second / 60.0).clamp(0.1, 1.0));
}

#[test]
fn converges_under_bursts() {
    converges(|second| if second % 4.0 < 1.0 { 1.0 } else { 0.7 });
}

#[test]
fn converges_under_a_sine() {
    converges(|second| 0.8 + 0.2 * (second / 20.0).sin());
}

#[test]
fn follows_a_device_that_becomes_slower_and_recovers() {
    let mut adaptive = controller(64, Some(SLO));
    let (fast, slow) = (Device { a: 0.01, b: 0.002, noise: 0.0 }, Device { a: 0.02, b: 0.004, noise: 0.0 });
    assert_converged(&simulate(&mut adaptive, fast, 200, |_| 1000.0), fast.best(SLO, 64));
    assert_converged(&simulate(&mut adaptive, slow, 200, |_| 1000.0), slow.best(SLO, 64));
    assert_converged(&simulate(&mut adaptive, fast, 200, |_| 1000.0), fast.best(SLO, 64));
}

proptest! {
    #[test]
    fn the_limit_keeps_its_bounds_whatever_happens(
        max_batch_size in 0_u32..100,
        high_load_batch_size in 0_u32..100,
        slo in prop::option::of(0_u64..200),
        steps in prop::collection::vec((0_u64..20_000, 0_u32..5000, 0_u64..300, prop::option::of(0_u64..300)), 0..400),
    ) {
        let config = AdaptiveConfig { high_load_batch_size, ..AdaptiveConfig::default() };
        let mut adaptive = Adaptive::new(config, max_batch_size, WAIT, slo.map(millis));
        let mut now = 0;
        for (step, count, busy, predicted) in steps {
            now += step;
            adaptive.arrived(at(now), count);
            adaptive.completed(at(now), millis(busy), predicted.map(millis));
            let maximum = if adaptive.load() == Load::High { high_load_batch_size } else { max_batch_size };
            prop_assert!((1..=maximum.max(1)).contains(&adaptive.limit()));
            prop_assert!(adaptive.max_wait() <= WAIT);
        }
    }
}
