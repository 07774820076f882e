//! Every step, alone and with the others, beside the reference.

use std::iter::repeat_n;

use proptest::prelude::*;

use super::{bell, noise, reference, sampler, token_at};
use crate::generation::sampling::{Sampling, Scratch};

/// Draws in the middle of the share of each of some likely tokens, and expects that token: were another one left in
/// or out, or in another place, the shares would be shifted.
fn agrees(sampling: &Sampling, logits: &[f32], prompt: &[u32], generated: &[u32]) -> bool {
    let Some(probabilities) = reference::probabilities(sampling, logits, prompt, generated) else {
        return false;
    };
    let mut before = 0.0;
    let mut middles = Vec::new();
    for (token, &probability) in probabilities.iter().enumerate() {
        if probability > 2e-4 {
            middles.push((token as u32, before + probability / 2.0));
        }
        before += probability;
    }
    let mut scratch = Scratch::default();
    let step = (middles.len() / 40).max(1);
    let last = middles.last().copied();
    for (token, share) in middles.into_iter().step_by(step).chain(last) {
        let mut row = logits.to_vec();
        let drawn = sampler(sampling, prompt, generated).draw_at(share, &mut row, &mut scratch);
        assert_eq!(drawn.expect("a row").token, token, "{sampling:?} at {share}");
        assert_eq!(row, logits, "the row is left as it was");
    }
    true
}

/// Rows with ties, with extremes and without.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let number = prop_oneof![
        8 => -12.0_f32..12.0,
        3 => (-3_i8..4).prop_map(f32::from),
        1 => Just(-0.0_f32),
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(-1e30_f32), Just(f32::MIN), Just(30.0)],
    ];
    let tied = (-2_i8..3).prop_map(f32::from);
    let wild = prop_oneof![Just(1e38_f32), Just(-1e38_f32), Just(1e30_f32), Just(0.0_f32), -5.0_f32..5.0];
    let finite = |row: &Vec<f32>| row.iter().any(|&logit| logit > f32::NEG_INFINITY);
    prop_oneof![
        6 => prop::collection::vec(number, 1..400),
        2 => prop::collection::vec(tied, 1..900),
        1 => prop::collection::vec(wild, 1..40),
        2 => (any::<u64>(), 1_usize..3000, 0.0_f32..5.0).prop_map(|(seed, size, deviation)| bell(seed, size, deviation)),
    ]
    .prop_filter("a token that can be drawn", finite)
}

fn settings() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![
        4 => 0.1_f32..2.5,
        1 => Just(1.0),
        1 => Just(0.0),
        1 => prop_oneof![Just(1e-6_f32), Just(1e-39), Just(1e6), Just(f32::MAX)],
    ];
    let top_k = prop_oneof![Just(None), (1_u32..60).prop_map(Some), (1_u32..3000).prop_map(Some)];
    let top_p = prop_oneof![
        2 => Just(1.0_f32), 3 => 0.05_f32..1.0, 1 => prop_oneof![Just(0.5_f32), Just(1e-9), Just(0.999_999_9)],
    ];
    let min_p = prop_oneof![3 => Just(0.0_f32), 2 => 0.0_f32..1.0, 1 => Just(1.0)];
    (temperature, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        ..Sampling::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn the_steps_keep_what_the_rules_keep(row in rows(), sampling in settings()) {
        agrees(&sampling, &row, &[], &[]);
    }

    #[test]
    fn penalties_biases_and_end_tokens_change_logits_as_the_rules_say(
        row in prop::collection::vec(-8.0_f32..8.0, 30..300),
        sampling in settings(),
        repetition_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        presence_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        frequency_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        logit_bias in prop::collection::vec((0_u32..30, -9.0_f32..9.0), 0..4),
        prompt in prop::collection::vec(0_u32..30, 0..20),
        generated in prop::collection::vec(0_u32..30, 0..20),
        min_tokens in 0_u32..20,
    ) {
        let end_tokens = vec![3, 17];
        let sampling = Sampling {
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias, min_tokens, end_tokens, ..sampling
        };
        agrees(&sampling, &row, &prompt, &generated);
    }
}

fn with(change: impl FnOnce(&mut Sampling)) -> Sampling {
    let mut sampling = Sampling::default();
    change(&mut sampling);
    sampling
}

#[test]
fn large_rows_are_narrowed_as_small_ones_are() {
    let mut compared = 0;
    for (seed, deviation) in [(1, 0.3), (2, 1.0), (3, 3.0), (4, 6.0)] {
        let row = bell(seed, 20_000, deviation);
        for top_p in [0.001, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0] {
            for top_k in [None, Some(1), Some(50), Some(156), Some(157), Some(5_000)] {
                for temperature in [0.3, 1.0, 1.7] {
                    let sampling = Sampling { top_p, top_k, temperature, ..Sampling::default() };
                    compared += u32::from(agrees(&sampling, &row, &[], &[]));
                }
            }
        }
    }
    assert!(compared > 400, "{compared} of 504 could be compared");
}

#[test]
fn a_crowd_of_almost_equal_tokens_is_told_apart() {
    // The likeliest is far off, so that all others are in one part of the range at first.
    let row: Vec<f32> =
        std::iter::once(12.0).chain(noise(5, 5_000).map(|noise| 3.0 + noise as f32 * 1e-3)).collect();
    for top_p in [0.05, 0.3, 0.6, 0.9] {
        agrees(&with(|sampling| sampling.top_p = top_p), &row, &[], &[]);
    }
}

#[test]
fn among_equals_the_lowest_ids_are_kept() {
    let row: Vec<f32> = repeat_n(1.0, 1_000).collect();
    let last = 1.0 - f64::EPSILON;
    let top_k = with(|sampling| sampling.top_k = Some(7));
    assert_eq!(token_at(&top_k, &row, last), Ok(6));
    let top_p = with(|sampling| sampling.top_p = 0.25);
    assert_eq!(token_at(&top_p, &row, last), Ok(249));
    let greedy = with(|sampling| sampling.temperature = 0.0);
    assert_eq!(token_at(&greedy, &row, last), Ok(0));
}

#[test]
fn top_p_of_one_keeps_the_least_likely_token() {
    let mut row = vec![-20.0; 300];
    row[0] = 10.0;
    assert_eq!(token_at(&Sampling::default(), &row, 1.0 - f64::EPSILON / 2.0), Ok(299));
}

#[test]
fn top_p_keeps_the_token_at_which_its_share_is_reached_and_none_after_it() {
    let row = [1.0, 1.0, 1.0, 1.0];
    let last = 1.0 - f64::EPSILON;
    for (top_p, token) in [(1e-9, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (0.76, 3), (1.0, 3)] {
        assert_eq!(token_at(&with(|sampling| sampling.top_p = top_p), &row, last), Ok(token), "{top_p}");
    }
}

#[test]
fn a_token_of_no_likelihood_is_never_drawn() {
    let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY];
    for temperature in [0.0, 1e-6, 1.0, f32::MAX] {
        for top_k in [None, Some(1), Some(4)] {
            for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (1.0, 1e-30), (0.9, 1e-30)] {
                let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
                for share in [0.0, 0.49, 0.5, 1.0 - f64::EPSILON] {
                    let token = token_at(&sampling, &row, share).expect("a row");
                    assert!(token == 1 || (token == 3 && temperature == f32::MAX), "{sampling:?}");
                }
            }
        }
    }
}

#[test]
fn limits_agree_with_those_of_transformers() {
    // Tokens kept by transformers 5.23's TemperatureLogitsWarper, MinPLogitsWarper, TopKLogitsWarper and
    // TopPLogitsWarper, one after the other, with the probabilities that torch's softmax then gives.
    let row = [2.0, -1.0, 0.5, 3.0, 1.5, -3.0, 2.5, 0.0];
    let settings = |temperature, min_p, top_k, top_p, repetition_penalty| Sampling {
        temperature,
        min_p,
        top_k,
        top_p,
        repetition_penalty,
        ..Sampling::default()
    };
    let table = [
        (settings(0.7, 0.2, None, 1.0, 1.0), vec![(0, 0.138_591), (3, 0.578_305), (6, 0.283_104)]),
        (settings(1.5, 0.0, Some(3), 1.0, 1.0), vec![(0, 0.230_237), (3, 0.448_441), (6, 0.321_322)]),
        (
            settings(1.2, 0.0, None, 0.8, 1.0),
            vec![(0, 0.182_578), (3, 0.420_107), (4, 0.120_363), (6, 0.276_952)],
        ),
        (settings(0.9, 0.1, Some(5), 0.7, 1.2), vec![(0, 0.260_422), (3, 0.453_892), (6, 0.285_687)]),
    ];
    for (sampling, kept) in table {
        let mut before = 0.0;
        for (token, probability) in kept {
            for share in [before + 2e-6, before + probability - 2e-6] {
                let mut sampler = sampler(&sampling, &[3, 5, 1], &[6]);
                let drawn = sampler.draw_at(share, &mut row.to_vec(), &mut Scratch::default());
                assert_eq!(drawn.expect("a row").token, token, "{sampling:?} at {share}");
            }
            before += probability;
        }
    }
}
