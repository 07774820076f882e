//! What the cost model learns from finished batches, and what it must never say.

use std::time::Duration;

use proptest::prelude::*;

use crate::cost_model::CostModel;
use crate::entry::{GroupKey, ShapeKey};

const GROUP: GroupKey = GroupKey { shape: ShapeKey(1), bound: 128 };

fn group(shape: u64) -> GroupKey {
    GroupKey { shape: ShapeKey(shape), bound: 0 }
}

/// Numbers that look random and are the same in every run (xorshift).
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn unit(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// A factor within `spread` of 1.
    fn factor(&mut self, spread: f64) -> f64 {
        1.0 + spread * (2.0 * self.unit() - 1.0)
    }
}

/// The device of these tests: 2 ms a batch, 0.5 ms an item, 10 us a token.
fn device(items: u32, tokens: u64) -> f64 {
    2e-3 + 5e-4 * f64::from(items) + 1e-5 * tokens as f64
}

fn seconds(prediction: Option<Duration>) -> f64 {
    prediction.expect("a prediction").as_secs_f64()
}

#[track_caller]
fn assert_close(actual: f64, expected: f64, tolerance: f64) {
    let error = (actual / expected - 1.0).abs();
    assert!(error <= tolerance, "{actual} is {:.1} % off {expected}", error * 100.0);
}

/// Feeds `batches` batches of random sizes whose seconds are the device's times `factor`.
fn feed(model: &mut CostModel, noise: &mut Noise, batches: u32, mut factor: impl FnMut(&mut Noise) -> f64) {
    for _ in 0..batches {
        let items = 1 + noise.below(32) as u32;
        let tokens = u64::from(items) * (8 + noise.below(120));
        let busy = device(items, tokens) * factor(noise);
        model.observe(GROUP, items, tokens, Duration::from_secs_f64(busy));
    }
}

const SIZES: [(u32, u64); 5] = [(1, 16), (4, 400), (8, 500), (16, 1024), (32, 3000)];

#[track_caller]
fn assert_fits(model: &CostModel, slowdown: f64, tolerance: f64) {
    for (items, tokens) in SIZES {
        let expected = slowdown * device(items, tokens);
        assert_close(seconds(model.predict(GROUP, items, tokens)), expected, tolerance);
        assert_close(seconds(model.overall(items, tokens)), expected, tolerance);
    }
}

#[test]
fn says_nothing_before_the_first_batch() {
    let model = CostModel::new();
    assert_eq!(model.predict(GROUP, 8, 8), None);
    assert_eq!(model.overall(8, 8), None);
}

#[test]
fn an_empty_batch_or_one_without_duration_teaches_nothing() {
    let mut model = CostModel::new();
    model.observe(GROUP, 0, 0, Duration::from_millis(3));
    model.observe(GROUP, 4, 4, Duration::ZERO);
    assert_eq!(model, CostModel::new());
}

#[test]
fn one_batch_gives_reasonable_predictions_for_other_sizes() {
    for tokens_per_item in [0, 1, 100] {
        let mut model = CostModel::new();
        model.observe(GROUP, 8, 8 * tokens_per_item, Duration::from_millis(10));
        let predict = |items: u32| seconds(model.predict(GROUP, items, u64::from(items) * tokens_per_item));
        assert_close(predict(8), 10e-3, 1e-6);
        assert!((1.25e-3..=10e-3).contains(&predict(1)), "one item: {}", predict(1));
        assert!((10e-3..=20e-3).contains(&predict(16)), "twice the items: {}", predict(16));
    }
}

#[test]
fn learns_the_device_exactly_where_there_is_no_noise() {
    let mut model = CostModel::new();
    feed(&mut model, &mut Noise(1), 200, |_| 1.0);
    assert_fits(&model, 1.0, 0.005);
    let fit = &model.fits()[0];
    assert_close(fit.a, 2e-3, 0.02);
    assert_close(fit.b, 5e-4, 0.02);
    assert_close(fit.c, 1e-5, 0.02);
}

#[test]
fn learns_the_device_through_ten_per_cent_of_noise() {
    for seed in 1..20 {
        let mut model = CostModel::new();
        feed(&mut model, &mut Noise(seed), 200, |noise| noise.factor(0.1));
        assert_fits(&model, 1.0, 0.1);
    }
}

#[test]
fn collinear_items_and_tokens_share_their_slope() {
    let mut model = CostModel::new();
    let mut noise = Noise(7);
    for _ in 0..200 {
        let items = 1 + noise.below(32) as u32;
        let busy = 1e-3 + 2e-4 * f64::from(items);
        model.observe(GROUP, items, u64::from(items), Duration::from_secs_f64(busy * noise.factor(0.05)));
    }
    for items in [1_u32, 8, 32, 64] {
        let expected = 1e-3 + 2e-4 * f64::from(items);
        assert_close(seconds(model.predict(GROUP, items, u64::from(items))), expected, 0.1);
    }
}

#[test]
fn batches_of_one_size_keep_extrapolation_between_no_slope_and_all_slope() {
    let mut model = CostModel::new();
    let mut noise = Noise(3);
    for _ in 0..2000 {
        model.observe(GROUP, 8, 8, Duration::from_secs_f64(10e-3 * noise.factor(0.2)));
    }
    let eight = seconds(model.predict(GROUP, 8, 8));
    assert_close(eight, 10e-3, 0.1);
    let sixteen = seconds(model.predict(GROUP, 16, 16));
    assert!(sixteen >= 1.2 * eight && sixteen <= 1.8 * eight, "{sixteen} after {eight}");
}

#[test]
fn a_long_run_of_one_size_does_not_wipe_out_what_other_sizes_taught() {
    let mut model = CostModel::new();
    feed(&mut model, &mut Noise(5), 200, |_| 1.0);
    for _ in 0..200 {
        let busy = device(32, 2048);
        model.observe(GROUP, 32, 2048, Duration::from_secs_f64(busy));
    }
    assert_close(seconds(model.predict(GROUP, 32, 2048)), device(32, 2048), 0.01);
    assert_close(seconds(model.predict(GROUP, 4, 256)), device(4, 256), 0.25);
}

#[test]
fn five_per_cent_of_batches_twenty_times_too_slow_leave_the_fit_within_fifteen_per_cent() {
    for seed in 1..200 {
        let mut model = CostModel::new();
        feed(&mut model, &mut Noise(seed), 300, |noise| {
            let factor = noise.factor(0.05);
            if noise.below(20) == 0 { 20.0 * factor } else { factor }
        });
        assert_fits(&model, 1.0, 0.15);
    }
}

#[test]
fn follows_a_device_that_suddenly_becomes_slower_or_faster_within_sixty_batches() {
    for seed in 1..200 {
        for change in [2.0, 0.5, 10.0] {
            let mut model = CostModel::new();
            let mut noise = Noise(seed);
            feed(&mut model, &mut noise, 300, |noise| noise.factor(0.05));
            feed(&mut model, &mut noise, 60, |noise| change * noise.factor(0.05));
            assert_fits(&model, change, 0.1);
        }
    }
}

#[test]
fn follows_a_device_that_slows_down_little_by_little() {
    let mut model = CostModel::new();
    let mut slowdown = 1.0;
    feed(&mut model, &mut Noise(9), 400, |noise| {
        slowdown *= 1.002;
        slowdown * noise.factor(0.05)
    });
    assert_fits(&model, slowdown, 0.2);
}

#[test]
fn a_cold_first_batch_is_forgotten_within_thirty_batches() {
    for seed in 1..40 {
        let mut model = CostModel::new();
        let mut noise = Noise(seed);
        feed(&mut model, &mut noise, 1, |_| 50.0);
        feed(&mut model, &mut noise, 30, |noise| noise.factor(0.05));
        assert_fits(&model, 1.0, 0.2);
    }
}

#[test]
fn a_group_answers_for_itself_from_its_eighth_batch_on() {
    let (slow, fast) = (group(1), group(2));
    let mut model = CostModel::new();
    for _ in 0..50 {
        model.observe(fast, 4, 4, Duration::from_millis(1));
    }
    for _ in 0..7 {
        model.observe(slow, 4, 4, Duration::from_millis(100));
        assert_eq!(model.predict(slow, 4, 4), model.overall(4, 4));
    }
    model.observe(slow, 4, 4, Duration::from_millis(100));
    assert_close(seconds(model.predict(slow, 4, 4)), 0.1, 0.01);
    assert_close(seconds(model.predict(fast, 4, 4)), 0.001, 0.01);
    assert_eq!(model.predict(group(3), 4, 4), model.overall(4, 4));
}

#[test]
fn keeps_sixty_four_groups_and_evicts_the_one_not_seen_for_longest() {
    let mut model = CostModel::new();
    for shape in 0..64 {
        model.observe(group(shape), 1, 1, Duration::from_millis(1));
    }
    model.observe(group(0), 1, 1, Duration::from_millis(1));
    model.observe(group(64), 1, 1, Duration::from_millis(1));
    let kept: Vec<_> = model.fits().iter().filter_map(|fit| fit.group).collect();
    let expected: Vec<_> = (0..=64).filter(|shape| *shape != 1).map(group).collect();
    assert_eq!(kept, expected);
}

#[test]
fn summaries_put_the_overall_fit_first_and_measure_the_error() {
    let mut model = CostModel::new();
    assert_eq!(model.fits().len(), 1);
    assert_eq!((model.fits()[0].group, model.fits()[0].samples), (None, 0));
    feed(&mut model, &mut Noise(2), 300, |noise| noise.factor(0.2));
    let fits = model.fits();
    assert_eq!((fits[0].group, fits[1].group, fits.len()), (None, Some(GROUP), 2));
    assert_eq!((fits[0].samples, fits[1].samples), (300, 300));
    // The mean of |noise| is 10 %.
    assert!((0.07..0.15).contains(&fits[1].relative_error), "{}", fits[1].relative_error);
}

fn counts() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 1_u32..64, 1 => any::<u32>()]
}

fn token_counts() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0_u64..10_000, 1 => any::<u64>()]
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        6 => (1_u64..1_000_000_000).prop_map(Duration::from_nanos),
        1 => any::<u64>().prop_map(Duration::from_nanos),
        1 => any::<u64>().prop_map(Duration::from_secs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn predictions_are_finite_and_monotone_whatever_was_observed(
        batches in prop::collection::vec((0_u64..3, counts(), token_counts(), durations()), 1..80),
        (items, tokens) in (counts(), token_counts()),
        (more_items, more_tokens) in (counts(), token_counts()),
    ) {
        let mut model = CostModel::new();
        for (shape, items, tokens, busy) in batches {
            model.observe(group(shape), items, tokens, busy);
            for fit in model.fits() {
                for coefficient in [fit.a, fit.b, fit.c, fit.relative_error] {
                    prop_assert!(coefficient.is_finite() && coefficient >= 0.0, "{fit:?}");
                }
            }
        }
        for shape in 0..4 {
            let predict = |items, tokens| model.predict(group(shape), items, tokens).expect("a prediction");
            let base = predict(items, tokens);
            prop_assert!(predict(items.saturating_add(more_items), tokens) >= base);
            prop_assert!(predict(items, tokens.saturating_add(more_tokens)) >= base);
        }
    }

    #[test]
    fn predictions_stay_within_the_range_of_what_steady_batches_took(
        sizes in prop::collection::vec((1_u32..64, 1_u64..100), 1..60),
        (a, b, c) in (0.0_f64..0.1, 0.0_f64..0.01, 1e-7_f64..1e-4),
    ) {
        let seconds = |items: u32, tokens: u64| a + b * f64::from(items) + c * tokens as f64;
        let mut model = CostModel::new();
        let mut longest = 0.0_f64;
        for (items, tokens_per_item) in &sizes {
            let tokens = u64::from(*items) * tokens_per_item;
            longest = longest.max(seconds(*items, tokens));
            model.observe(GROUP, *items, tokens, Duration::from_secs_f64(seconds(*items, tokens)));
        }
        // No batch smaller than all that were seen is predicted beyond the longest of them.
        let tokens = sizes.iter().map(|(items, each)| u64::from(*items) * each).min().unwrap_or(0);
        let items = sizes.iter().map(|(items, _)| *items).min().unwrap_or(0);
        let predicted = model.predict(GROUP, items, tokens).expect("a prediction").as_secs_f64();
        prop_assert!(predicted <= longest * 1.001 + 2e-9, "{predicted} beyond {longest}");
    }
}

#[test]
fn full_batches_alone_do_not_wipe_out_what_other_sizes_taught() {
    let mut model = CostModel::new();
    let truth = |items: u32| 0.001 + 0.0005 * f64::from(items);
    let observe = |model: &mut CostModel, items: u32| {
        model.observe(GroupKey::default(), items, u64::from(items), Duration::from_secs_f64(truth(items)));
    };
    for round in 0..400 {
        observe(&mut model, [1, 32, 8, 2, 16][round % 5]);
    }
    for _ in 0..5_000 {
        observe(&mut model, 32);
    }
    for items in [1, 8, 16, 64] {
        let predicted = model.overall(items, u64::from(items)).unwrap().as_secs_f64();
        assert!((predicted / truth(items) - 1.0).abs() < 0.1, "{items}: {predicted}");
    }
}
