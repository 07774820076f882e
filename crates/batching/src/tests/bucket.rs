//! Buckets: which lengths share a batch, and boundaries that are learned.

use proptest::prelude::*;

use crate::bucket::{BucketConfig, Buckets, Histogram, PaddingStrategy, padded};

fn buckets(strategy: PaddingStrategy, boundaries: &[u32]) -> Buckets {
    Buckets::new(BucketConfig { enabled: true, boundaries: boundaries.to_vec(), strategy })
}

/// Most texts short, a few long: 16 to 256 tokens, the same ones in each run.
fn skewed(count: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..count).map(|_| 16 + (240.0 * uniform().powi(4)) as u32).collect()
}

fn learned_from(lengths: &[u32]) -> Buckets {
    let mut buckets = buckets(PaddingStrategy::Minimal, &[]);
    lengths.iter().for_each(|len| buckets.observe(*len));
    buckets
}

#[test]
fn a_length_joins_the_least_bucket_that_holds_it() {
    let buckets = buckets(PaddingStrategy::Minimal, &[512, 128, 256, 128, 0]);
    assert_eq!(buckets.boundaries(), [128, 256, 512]);
    let bounds: Vec<u32> = [0, 1, 128, 129, 512].map(|len| buckets.bound(len)).to_vec();
    assert_eq!(bounds, [128, 128, 128, 256, 512]);
}

#[test]
fn lengths_above_the_last_boundary_are_never_lost() {
    let configured = buckets(PaddingStrategy::Maximum, &[128, 256]);
    assert_eq!([257, 512, 513].map(|len| configured.bound(len)), [512, 512, 768]);
    assert_eq!(configured.bound(u32::MAX), u32::MAX);
    let unlearned = buckets(PaddingStrategy::Minimal, &[]);
    assert_eq!([0, 1, 17, 64].map(|len| unlearned.bound(len)), [1, 1, 32, 64]);
    assert_eq!(unlearned.bound(u32::MAX), u32::MAX);
    let learned = learned_from(&[100; 256]);
    assert_eq!(learned.boundaries(), [104]);
    assert_eq!([100, 105, 300].map(|len| learned.bound(len)), [104, 128, 512]);
}

#[test]
fn each_strategy_groups_its_own_way() {
    assert_eq!(buckets(PaddingStrategy::None, &[128]).bound(77), 77);
    assert_eq!(buckets(PaddingStrategy::Dynamic, &[128]).bound(77), 0);
    for strategy in [PaddingStrategy::Minimal, PaddingStrategy::Maximum] {
        let disabled = BucketConfig { enabled: false, boundaries: vec![128], strategy };
        assert_eq!(Buckets::new(disabled).bound(77), 0, "without buckets any lengths share a batch");
    }
    assert_eq!(Buckets::new(BucketConfig::default()).bound(77), 0);
}

#[test]
fn only_maximum_pads_to_the_bound() {
    assert_eq!(padded(PaddingStrategy::Maximum, 128, 100), 128);
    assert_eq!(padded(PaddingStrategy::Maximum, 0, 100), 100, "no bound: the longest");
    assert_eq!(padded(PaddingStrategy::Minimal, 128, 100), 100);
    assert_eq!(padded(PaddingStrategy::None, 100, 100), 100);
    assert_eq!(padded(PaddingStrategy::Dynamic, 0, 100), 100);
}

#[test]
fn learned_boundaries_pad_less_than_quantiles_of_a_skewed_law() {
    let lengths = skewed(1024);
    let buckets = learned_from(&lengths);
    let mut sorted = lengths.clone();
    sorted.sort_unstable();
    let mut quantiles: Vec<u32> =
        (1..=6).map(|sixth| sorted[sorted.len() * sixth / 6 - 1].next_multiple_of(8)).collect();
    quantiles.dedup();
    let padding = |bounds: &[u32]| -> u32 {
        let bound = |len: u32| bounds[bounds.partition_point(|bound| *bound < len)];
        lengths.iter().map(|len| bound(*len) - len).sum()
    };
    let (ours, theirs) = (padding(buckets.boundaries()), padding(&quantiles));
    assert!(
        ours * 4 < theirs * 3,
        "{ours} at {:?}, quantiles {theirs} at {quantiles:?}",
        buckets.boundaries()
    );
}

#[test]
fn nothing_is_learned_before_256_lengths_nor_where_boundaries_are_configured() {
    assert!(learned_from(&skewed(255)).boundaries().is_empty());
    assert!(!learned_from(&skewed(256)).boundaries().is_empty());
    let mut configured = buckets(PaddingStrategy::Minimal, &[128]);
    let mut unused = buckets(PaddingStrategy::Dynamic, &[]);
    for len in skewed(1024) {
        configured.observe(len);
        unused.observe(len);
    }
    assert_eq!(configured.boundaries(), [128]);
    assert!(unused.boundaries().is_empty());
}

#[test]
fn boundaries_follow_traffic_that_changes_and_rest_while_it_does_not() {
    let lengths = skewed(8192);
    let mut buckets = learned_from(&lengths[..1024]);
    let mut moves = 0;
    for len in &lengths[1024..] {
        let before = buckets.boundaries().to_vec();
        buckets.observe(*len);
        moves += usize::from(before != buckets.boundaries());
    }
    assert!(moves <= 2, "{moves} moves of 28 chances under one law");
    let longer: Vec<u32> = lengths[..1024].iter().map(|len| len * 5).collect();
    longer.iter().for_each(|len| buckets.observe(*len));
    let histogram = Histogram::of(&longer);
    let best = histogram.padding(learned_from(&longer).boundaries());
    let tokens = longer.iter().sum::<u32>() as u64;
    assert!(histogram.padding(buckets.boundaries()) <= best + tokens / 50, "old lengths are forgotten");
}

#[test]
fn extreme_lengths_are_learned_without_overflow() {
    let lengths: Vec<u32> = (0..1024).map(|number| u32::MAX - number * 1000).collect();
    let buckets = learned_from(&lengths);
    assert_eq!(buckets.boundaries().last(), Some(&u32::MAX));
    assert_eq!(buckets.boundaries().len(), 6);
}

/// The least padding with exactly these many boundaries or fewer, by trying every choice.
fn brute_force(lengths: &[u32], limit: usize) -> u64 {
    let mut distinct: Vec<u32> = lengths.iter().map(|len| len.next_multiple_of(8)).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let histogram = Histogram::of(lengths);
    let choices = (0_u32..1 << distinct.len())
        .filter(|choice| choice.count_ones() as usize <= limit && choice >> (distinct.len() - 1) & 1 == 1);
    let chosen = |choice: u32| -> Vec<u32> {
        let kept = |(at, len): (usize, &u32)| (choice >> at & 1 == 1).then_some(*len);
        distinct.iter().enumerate().filter_map(kept).collect()
    };
    choices.map(|choice| histogram.padding(&chosen(choice))).min().unwrap()
}

proptest! {
    #[test]
    fn no_boundaries_pad_less(lengths in prop::collection::vec(1_u32..80, 1..40), limit in 1_usize..6) {
        let histogram = Histogram::of(&lengths);
        let found = histogram.least_padding(limit);
        prop_assert!(found.len() <= limit && found.is_sorted_by(|a, b| a < b), "{:?}", found);
        prop_assert_eq!(histogram.padding(&found), brute_force(&lengths, limit));
    }

    #[test]
    fn a_bound_holds_its_length_and_grows_with_it(
        boundaries in prop::collection::vec(0_u32..600, 0..6), seen in prop::collection::vec(1_u32..900, 0..600),
        a in any::<u32>(), b in any::<u32>(), shift in 0_u32..32,
    ) {
        let mut buckets = buckets(PaddingStrategy::Maximum, &boundaries);
        seen.iter().for_each(|len| buckets.observe(*len));
        let (short, long) = ((a >> shift).min(b >> shift), (a >> shift).max(b >> shift));
        prop_assert!(buckets.bound(short) >= short);
        prop_assert!(buckets.bound(short) <= buckets.bound(long));
    }
}
