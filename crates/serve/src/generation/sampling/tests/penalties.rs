//! What single logits become, by hand-computed values, and what is remembered for that.

use std::sync::Arc;

use super::{next, sampler};
use crate::generation::sampling::adjust::{Changes, Seen};
use crate::generation::sampling::{NotANumber, Sampler, Sampling, Scratch};

/// The logits before the token that follows `generated` is drawn.
fn adjusted(sampling: &Sampling, logits: &[f32], prompt: &[u32], generated: &[u32]) -> Vec<f32> {
    let mut seen = Seen::new(sampling, prompt);
    for &token in generated {
        seen.generated(sampling, token);
    }
    let mut row = logits.to_vec();
    let mut changes = Changes::default();
    changes.apply(&mut row, sampling, &seen, generated.len() as u32);
    let after = row.clone();
    changes.undo(&mut row);
    assert_eq!(row, logits, "every change is undone");
    after
}

#[test]
fn the_repetition_penalty_covers_prompt_and_generated_tokens() {
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    let after = adjusted(&sampling, &[4.0, -4.0, 4.0, -4.0, 0.0], &[0, 1, 0], &[1, 4]);
    assert_eq!(after, [2.0, -8.0, 4.0, -4.0, 0.0]);
}

#[test]
fn presence_and_frequency_penalties_cover_generated_tokens_alone() {
    let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
    let after = adjusted(&sampling, &[1.0, 1.0, 1.0], &[0, 2], &[1, 2, 1, 1]);
    assert_eq!(after, [1.0, -0.25, 0.25]);
}

#[test]
fn penalties_follow_the_bias_and_each_other() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        frequency_penalty: 0.5,
        logit_bias: vec![(0, 5.0), (0, 1.0)],
        ..Sampling::default()
    };
    // (2 + 5 + 1) / 2 - 2 * 0.5 - 1
    assert_eq!(adjusted(&sampling, &[2.0, 2.0], &[], &[0, 0]), [2.0, 2.0]);
}

#[test]
fn the_repetition_penalty_is_that_of_transformers() {
    // RepetitionPenaltyLogitsProcessor of transformers 5.23 on the same row, as torch's softmax gives it.
    let row = [2.0, -1.0, 0.5, 3.0, 1.5, -3.0, 2.5, 0.0];
    let table = [
        (1.3, [0.233_053, 0.008_596, 0.052_001, 0.317_018, 0.141_354, 0.000_638, 0.215_798, 0.031_54]),
        (0.8, [0.091_972, 0.005_593, 0.020_522, 0.529_261, 0.055_784, 0.001_129, 0.283_293, 0.012_447]),
    ];
    for (repetition_penalty, expected) in table {
        let sampling = Sampling { repetition_penalty, ..Sampling::default() };
        let powers = adjusted(&sampling, &row, &[3, 5, 1], &[3, 6]).into_iter().map(|x| f64::from(x).exp());
        let powers: Vec<f64> = powers.collect();
        let total: f64 = powers.iter().sum();
        for (power, expected) in powers.iter().zip(expected) {
            assert!((power / total - expected).abs() < 1e-6, "{power} of {total}, not {expected}");
        }
    }
}

#[test]
fn a_tiny_repetition_penalty_leaves_logits_finite() {
    let sampling = Sampling { repetition_penalty: 1e-38, temperature: 0.0, ..Sampling::default() };
    let mut sampler = sampler(&sampling, &[1], &[]);
    assert_eq!(next(&mut sampler, &[90.0, 60.0]), 1);
}

#[test]
fn no_end_token_is_drawn_before_the_least_number_of_tokens() {
    let end_tokens = vec![0, 2, 4_000_000];
    let sampling = Sampling { temperature: 0.0, min_tokens: 3, end_tokens, ..Sampling::default() };
    let mut sampler = sampler(&sampling, &[], &[]);
    let drawn: Vec<u32> = (0..5).map(|_| next(&mut sampler, &[9.0, 1.0, 8.0, 0.5])).collect();
    assert_eq!(drawn, [1, 1, 1, 0, 0]);
}

#[test]
fn a_bias_does_not_bring_back_a_held_back_end_token() {
    let logit_bias = vec![(0, 100.0)];
    let sampling =
        Sampling { min_tokens: 1, end_tokens: vec![0], logit_bias, temperature: 0.0, ..Sampling::default() };
    assert_eq!(next(&mut sampler(&sampling, &[], &[]), &[9.0, 1.0]), 1);
}

#[test]
fn a_row_that_holds_nothing_but_a_held_back_end_token_is_an_error() {
    let sampling = Sampling { min_tokens: 1, end_tokens: vec![1], ..Sampling::default() };
    let mut row = [f32::NEG_INFINITY, 3.0];
    let drawn = sampler(&sampling, &[], &[]).draw(&mut row, &mut Scratch::default());
    assert_eq!(drawn, Err(NotANumber::Nothing));
    assert_eq!(row, [f32::NEG_INFINITY, 3.0]);
}

#[test]
fn drawn_tokens_are_counted() {
    let sampling = Sampling { temperature: 0.0, frequency_penalty: 1.0, ..Sampling::default() };
    let mut sampler = sampler(&sampling, &[], &[]);
    let drawn: Vec<u32> = (0..6).map(|_| next(&mut sampler, &[2.0, 1.5, -3.0])).collect();
    assert_eq!(drawn, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn tokens_are_remembered_only_where_a_penalty_asks_for_them() {
    let neutral = Sampling { logit_bias: vec![(1, 1.0)], ..Sampling::default() };
    let generated = |sampling: &Sampling| {
        let mut seen = Seen::new(sampling, &[5, 6, 5]);
        seen.generated(sampling, 6);
        seen.generated(sampling, 7);
        seen.len()
    };
    assert_eq!(generated(&neutral), 0);
    assert_eq!(generated(&Sampling { presence_penalty: 0.1, ..neutral.clone() }), 2);
    assert_eq!(generated(&Sampling { frequency_penalty: 0.1, ..neutral.clone() }), 2);
    assert_eq!(generated(&Sampling { repetition_penalty: 1.1, ..neutral }), 3);
}

#[test]
fn tokens_beyond_the_row_change_nothing() {
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(Arc::new(sampling), &[2, 3_000_000_000], 0);
    assert_eq!(next(&mut sampler, &[50.0, 1.0]), 0);
}
