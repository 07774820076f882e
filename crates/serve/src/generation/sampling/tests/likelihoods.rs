//! Log-probabilities beside a plain log-softmax.

use super::{bell, sampler};
use crate::generation::sampling::{Logprobs, Sampling, Scratch};

/// `log(softmax)` in double precision.
fn reference(logits: &[f32]) -> Vec<f64> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(greatest)).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - f64::from(greatest) - sum.ln()).collect()
}

fn drawn(sampling: &Sampling, logits: &[f32]) -> (u32, Logprobs) {
    let mut row = logits.to_vec();
    let drawn = sampler(sampling, &[1], &[]).draw(&mut row, &mut Scratch::default()).expect("a row");
    (drawn.token, drawn.logprobs.expect("they were asked for"))
}

#[test]
fn they_are_of_the_models_own_logits_whatever_else_is_asked_for() {
    let row = bell(9, 5_000, 3.0);
    let expected = reference(&row);
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&one, &other| row[other].total_cmp(&row[one]).then(one.cmp(&other)));
    let settings = Sampling {
        temperature: 0.5,
        top_k: Some(100),
        logit_bias: vec![(1_234, 100.0), (order[0] as u32, -100.0)],
        repetition_penalty: 1.5,
        logprobs: Some(20),
        ..Sampling::default()
    };
    for sampling in [settings, Sampling { logprobs: Some(20), ..Sampling::default() }] {
        let (token, logprobs) = drawn(&sampling, &row);
        assert!((f64::from(logprobs.logprob) - expected[token as usize]).abs() < 1e-5);
        let rank = order.iter().position(|&other| other == token as usize).expect("a token") + 1;
        assert_eq!(logprobs.rank as usize, rank);
        let top: Vec<usize> = logprobs.top.iter().map(|&(token, _)| token as usize).collect();
        assert_eq!(top, order[..20]);
        for (token, logprob) in logprobs.top {
            assert!((f64::from(logprob) - expected[token as usize]).abs() < 1e-5);
        }
    }
}

#[test]
fn none_are_answered_that_were_not_asked_for() {
    let mut row = [1.0, 2.0];
    let sampling = Sampling::default();
    let answer = sampler(&sampling, &[], &[]).draw(&mut row, &mut Scratch::default()).expect("a row");
    assert_eq!(answer.logprobs, None);
    let (_, logprobs) = drawn(&Sampling { logprobs: Some(0), ..sampling }, &row);
    assert_eq!(logprobs.top, []);
}

#[test]
fn equals_are_ranked_by_id() {
    let sampling = Sampling { temperature: 0.0, logprobs: Some(3), ..Sampling::default() };
    let sampling = Sampling { logit_bias: vec![(2, 1.0)], ..sampling };
    let (token, logprobs) = drawn(&sampling, &[0.0, 1.0, 1.0, 1.0]);
    assert_eq!((token, logprobs.rank), (2, 2));
    assert_eq!(logprobs.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_vocabulary_smaller_than_asked_for_is_listed_whole_but_for_impossible_tokens() {
    let sampling = Sampling { logprobs: Some(20), ..Sampling::default() };
    let (_, logprobs) = drawn(&sampling, &[0.0, f32::NEG_INFINITY, 0.0]);
    assert_eq!(logprobs.top, [(0, 0.5_f32.ln()), (2, 0.5_f32.ln())]);
}

#[test]
fn the_likeliest_of_a_certain_row_has_log_probability_zero() {
    let sampling = Sampling { logprobs: Some(2), ..Sampling::default() };
    let (token, logprobs) = drawn(&sampling, &[1e30, -1e30]);
    assert_eq!((token, logprobs.logprob, logprobs.rank), (0, 0.0, 1));
}
