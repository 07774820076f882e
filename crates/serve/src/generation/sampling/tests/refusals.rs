//! Settings and rows that are refused.

use super::{next, sampler};
use crate::generation::sampling::{NotANumber, Sampling, SamplingError, Scratch};

/// A change of settings that is refused.
type Change = fn(&mut Sampling);

fn refused(change: Change) -> Option<SamplingError> {
    let mut sampling = Sampling::default();
    change(&mut sampling);
    sampling.check(100).err()
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refusals: &[(Change, &str)] = &[
        (|s| s.temperature = -0.1, "temperature is -0.1, but it must be a finite number of at least 0"),
        (|s| s.temperature = f32::NAN, "temperature is NaN, but it must be a finite number of at least 0"),
        (
            |s| s.temperature = f32::INFINITY,
            "temperature is inf, but it must be a finite number of at least 0",
        ),
        (|s| s.top_k = Some(0), "top_k is 0, but it must be at least 1 (left out: all tokens)"),
        (|s| s.top_p = 0.0, "top_p is 0, but it must be above 0 and at most 1"),
        (|s| s.top_p = 1.1, "top_p is 1.1, but it must be above 0 and at most 1"),
        (|s| s.top_p = f32::NAN, "top_p is NaN, but it must be above 0 and at most 1"),
        (|s| s.min_p = -0.5, "min_p is -0.5, but it must be between 0 and 1"),
        (|s| s.min_p = 1.5, "min_p is 1.5, but it must be between 0 and 1"),
        (
            |s| s.repetition_penalty = 0.0,
            "repetition_penalty is 0, but it must be a finite number above 0 (1: no penalty)",
        ),
        (
            |s| s.repetition_penalty = f32::INFINITY,
            "repetition_penalty is inf, but it must be a finite number above 0 (1: no penalty)",
        ),
        (|s| s.presence_penalty = 2.5, "presence_penalty is 2.5, but it must be between -2 and 2"),
        (|s| s.frequency_penalty = f32::NAN, "frequency_penalty is NaN, but it must be between -2 and 2"),
        (
            |s| s.logit_bias = vec![(1, 0.0), (100, 1.0)],
            "logit_bias is for token 100, but it must be for tokens below 100, the size of the vocabulary",
        ),
        (
            |s| s.logit_bias = vec![(7, -100.5)],
            "logit_bias is -100.5 for token 7, but it must be between -100 and 100",
        ),
        (
            |s| s.logit_bias = vec![(7, f32::NAN)],
            "logit_bias is NaN for token 7, but it must be between -100 and 100",
        ),
        (|s| s.logprobs = Some(21), "logprobs is 21, but it must be at most 20"),
    ];
    for (change, message) in refusals {
        assert_eq!(refused(*change).expect(message).to_string(), *message);
    }
}

#[test]
fn settings_at_the_ends_of_their_ranges_are_taken() {
    let taken: &[Change] = &[
        |_| (),
        |s| s.temperature = 0.0,
        |s| s.temperature = -0.0,
        |s| s.temperature = f32::MAX,
        |s| s.top_k = Some(1),
        |s| s.top_k = Some(1_000),
        |s| s.top_p = f32::from_bits(1),
        |s| s.min_p = 1.0,
        |s| s.repetition_penalty = f32::from_bits(1),
        |s| s.presence_penalty = -2.0,
        |s| s.frequency_penalty = 2.0,
        |s| s.logit_bias = vec![(99, 100.0), (0, -100.0)],
        |s| s.logprobs = Some(20),
    ];
    for change in taken {
        assert_eq!(refused(*change), None);
    }
}

/// Every path by which a token is drawn.
fn paths() -> Vec<Sampling> {
    let neutral = Sampling::default();
    vec![
        neutral.clone(),
        Sampling { temperature: 0.0, ..neutral.clone() },
        Sampling { top_k: Some(2), ..neutral.clone() },
        Sampling { top_p: 0.5, ..neutral.clone() },
        Sampling { min_p: 0.5, ..neutral.clone() },
        Sampling { logprobs: Some(2), ..neutral.clone() },
        Sampling { logit_bias: vec![(3, -100.0)], ..neutral },
    ]
}

#[test]
fn a_row_with_a_value_that_is_no_logit_is_an_error_on_every_path() {
    for sampling in paths() {
        for vocabulary in [5, 128, 1_000] {
            for place in [0, 3, vocabulary - 1] {
                let token = place as u32;
                let with = |value| {
                    let mut row = vec![0.5; vocabulary];
                    row[place] = value;
                    sampler(&sampling, &[], &[]).draw(&mut row, &mut Scratch::default())
                };
                assert_eq!(with(f32::NAN), Err(NotANumber::Nan { token }));
                assert_eq!(with(-f32::NAN), Err(NotANumber::Nan { token }));
                assert_eq!(with(f32::INFINITY), Err(NotANumber::Infinite { token }));
                assert!(with(f32::NEG_INFINITY).is_ok());
            }
        }
        let mut nothing = vec![f32::NEG_INFINITY; 300];
        let drawn = sampler(&sampling, &[], &[]).draw(&mut nothing, &mut Scratch::default());
        assert_eq!(drawn, Err(NotANumber::Nothing));
        let drawn = sampler(&sampling, &[], &[]).draw(&mut [], &mut Scratch::default());
        assert_eq!(drawn, Err(NotANumber::Nothing));
    }
}

#[test]
fn an_error_leaves_the_sequence_and_the_others_as_they_were() {
    let sampling = Sampling { seed: 3, frequency_penalty: 0.5, ..Sampling::default() };
    let row: Vec<f32> = super::bell(2, 500, 1.0);
    let mut undisturbed = sampler(&sampling, &[], &[]);
    let expected: Vec<u32> = (0..20).map(|_| next(&mut undisturbed, &row)).collect();
    let mut disturbed = sampler(&sampling, &[], &[]);
    let mut scratch = Scratch::default();
    let mut broken = row.clone();
    broken[77] = f32::NAN;
    let drawn = (0..20).map(|_| {
        assert_eq!(disturbed.draw(&mut broken, &mut scratch), Err(NotANumber::Nan { token: 77 }));
        disturbed.draw(&mut row.clone(), &mut scratch).expect("a row").token
    });
    assert_eq!(drawn.collect::<Vec<_>>(), expected);
}
