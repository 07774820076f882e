//! The split that costs least: examples, then every possible split as the reference.

use proptest::prelude::*;

use crate::padding::{Splitter, split};

/// A launch, and a fixed price a token.
fn launch_and_tokens(_items: usize, tokens: u64) -> f64 {
    100.0 + tokens as f64
}

#[test]
fn a_long_text_among_short_ones_runs_alone() {
    let lengths = [256, 16, 16, 16, 16];
    assert_eq!(split(&lengths, 32, u64::MAX, launch_and_tokens), [1, 4]);
}

#[test]
fn nearly_equal_lengths_stay_together() {
    assert_eq!(split(&[32, 31, 30, 30], 32, u64::MAX, launch_and_tokens), [4]);
}

#[test]
fn equal_costs_take_fewer_batches() {
    let per_item = |items: usize, _: u64| 0.1 * items as f64;
    assert_eq!(split(&[7; 9], 4, u64::MAX, per_item).len(), 3);
    assert_eq!(split(&[7; 9], 100, u64::MAX, |_, _| 0.0), [9]);
}

#[test]
fn limits_hold_and_an_item_above_them_stands_alone() {
    assert_eq!(split(&[500, 100, 100, 100], 32, 200, |_, _| 1.0), [1, 1, 2]);
    assert_eq!(split(&[5, 5], 0, u64::MAX, |_, _| 1.0), [1, 1], "0 items read as 1");
    assert_eq!(split(&[], 4, 100, |_, _| 1.0), [0_usize; 0]);
}

#[test]
fn a_cost_that_is_no_number_loses_nobody() {
    let sizes = split(&[4, 3, 2, 1], 2, u64::MAX, |_, _| f64::NAN);
    assert_eq!(sizes.iter().sum::<usize>(), 4);
}

/// Lengths, longest first; limits; and the cost of each number of items and each token.
type Case = (Vec<u32>, usize, u64, Vec<u32>, u32);

fn cases() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec(1_u32..40, 0..=10),
        1_usize..=11,
        1_u64..400,
        prop::collection::vec(0_u32..60, 12),
        0_u32..4,
    )
        .prop_map(|(mut lengths, items, tokens, by_items, by_token)| {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            (lengths, items, tokens, by_items, by_token)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_split_costs_less((lengths, max_items, max_tokens, by_items, by_token) in cases()) {
        // Whole numbers, so that sums are exact and equal costs are equal.
        let cost = |items: usize, tokens: u64| {
            f64::from(by_items[items]) + f64::from(by_token) * tokens as f64
        };
        let priced = |sizes: &[usize]| -> Option<(u64, usize)> {
            let (mut start, mut sum) = (0, 0.0);
            for items in sizes {
                let tokens = *items as u64 * u64::from(lengths[start]);
                if *items > 1 && (*items > max_items || tokens > max_tokens) {
                    return None;
                }
                sum += cost(*items, tokens);
                start += items;
            }
            Some((sum as u64, sizes.len()))
        };
        let count = lengths.len();
        // Each bit: whether there is a cut after that item.
        let compositions = (0_u32..1 << count.saturating_sub(1)).map(|cuts| {
            let mut sizes = Vec::new();
            let mut items = 0;
            for at in 0..count {
                items += 1;
                if at + 1 == count || cuts >> at & 1 == 1 {
                    sizes.push(std::mem::take(&mut items));
                }
            }
            sizes
        });
        let least = compositions.filter_map(|sizes| priced(&sizes)).min();
        let mut splitter = Splitter::default();
        splitter.split(&[9, 8, 7], 2, 100, |_, _| 1.0);
        let found = splitter.split(&lengths, max_items, max_tokens, cost);
        prop_assert_eq!(found.iter().sum::<usize>(), count);
        prop_assert_eq!(priced(&found), least);
    }
}
