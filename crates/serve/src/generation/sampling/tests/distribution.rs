//! Drawn tokens are spread as their probabilities, and are a function of what they may depend on alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{bell, noise, reference};
use crate::generation::sampling::random::uniform;
use crate::generation::sampling::{Sampler, Sampling, Scratch};

/// The tokens that choice `choice` draws from `row` again and again.
fn draws(sampling: &Sampling, choice: u32, row: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(Arc::new(sampling.clone()), &[], choice);
    let (mut row, mut scratch) = (row.to_vec(), Scratch::default());
    (0..count).map(|_| sampler.draw(&mut row, &mut scratch).expect("a row").token).collect()
}

/// Pearson's statistic of `counts` against `probabilities`, over its degrees of freedom.
fn chi_square(counts: &[u32], probabilities: &[f64]) -> (f64, f64) {
    let all: u32 = counts.iter().sum();
    let mut statistic = 0.0;
    let mut cells = 0.0;
    for (&count, probability) in counts.iter().zip(probabilities) {
        let expected = f64::from(all) * probability;
        if expected > 0.0 {
            statistic += (f64::from(count) - expected).powi(2) / expected;
            cells += 1.0;
        } else {
            assert_eq!(count, 0, "a token was drawn that may not be");
        }
    }
    (statistic, cells - 1.0)
}

#[test]
fn tokens_are_drawn_as_often_as_their_probabilities_say() {
    let row = bell(3, 60, 1.2);
    let neutral = Sampling { seed: 11, ..Sampling::default() };
    let settings = [
        neutral.clone(),
        Sampling { temperature: 0.6, top_k: Some(20), ..neutral.clone() },
        Sampling { temperature: 1.4, top_p: 0.9, ..neutral.clone() },
        Sampling { min_p: 0.1, top_p: 0.8, ..neutral },
    ];
    for sampling in settings {
        let mut counts = vec![0; row.len()];
        for token in draws(&sampling, 0, &row, 40_000) {
            counts[token as usize] += 1;
        }
        let probabilities = reference::probabilities(&sampling, &row, &[], &[]).expect("no close limit");
        let (statistic, freedom) = chi_square(&counts, &probabilities);
        let bound = freedom + 4.0 * (2.0 * freedom).sqrt();
        assert!(statistic < bound, "{statistic} at {freedom} degrees of freedom: {sampling:?}");
    }
}

#[test]
fn random_numbers_are_spread_evenly_over_every_argument() {
    let by_seed = (0..20_000).map(|seed| uniform(seed, 0, 0));
    let by_choice = (0..20_000).map(|choice| uniform(0, choice, 0));
    let by_index = (0..20_000).map(|index| uniform(0, 0, index));
    let sequences: [Vec<f64>; 3] = [by_seed.collect(), by_choice.collect(), by_index.collect()];
    for sequence in sequences {
        let mut counts = vec![0; 100];
        for &number in &sequence {
            assert!((0.0..1.0).contains(&number));
            counts[(number * 100.0) as usize] += 1;
        }
        let (statistic, freedom) = chi_square(&counts, &[0.01; 100]);
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt(), "{statistic}");
        // Neighbours are unrelated.
        let products = sequence.windows(2).map(|pair| (pair[0] - 0.5) * (pair[1] - 0.5));
        let covariance = products.sum::<f64>() / sequence.len() as f64;
        assert!(covariance.abs() < 4.0 / 12.0 / (sequence.len() as f64).sqrt(), "{covariance}");
    }
}

#[test]
fn random_numbers_are_those_of_every_version_and_machine() {
    let numbers =
        [uniform(0, 0, 0), uniform(1, 0, 0), uniform(0, 1, 0), uniform(0, 0, 1), uniform(u64::MAX, 7, 9)];
    let known = [
        0.138_709_410_145_554_27,
        0.693_512_139_010_229_2,
        0.183_839_791_007_439_52,
        0.971_102_082_801_288_3,
        0.000_322_625_375_729_024_3,
    ];
    assert_eq!(numbers, known);
}

#[test]
fn the_same_seed_draws_the_same_tokens_whatever_is_drawn_between() {
    let sampling = Arc::new(Sampling { seed: 5, top_p: 0.95, ..Sampling::default() });
    let row = bell(1, 3_000, 1.0);
    let alone = draws(&sampling, 0, &row, 100);
    let mut scratch = Scratch::default();
    let other = Arc::new(Sampling { seed: 6, top_k: Some(9), logprobs: Some(3), ..Sampling::default() });
    let (mut one, mut two) = (Sampler::new(sampling, &[], 0), Sampler::new(other, &[], 0));
    let mut short: Vec<f32> = noise(8, 40).map(|noise| noise as f32).collect();
    let mut drawn = Vec::new();
    for _ in 0..100 {
        two.draw(&mut short, &mut scratch).expect("a row");
        drawn.push(one.draw(&mut row.clone(), &mut scratch).expect("a row").token);
    }
    assert_eq!(drawn, alone);
}

#[test]
fn choices_and_seeds_draw_different_tokens() {
    let row = bell(1, 3_000, 1.0);
    let sequences = (0..8).flat_map(|seed| {
        let sampling = Sampling { seed, ..Sampling::default() };
        let row = &row;
        (0..8).map(move |choice| draws(&sampling, choice, row, 8))
    });
    assert_eq!(sequences.collect::<BTreeSet<_>>().len(), 64);
}

#[test]
fn greedy_draws_need_no_seed() {
    let row = bell(1, 3_000, 1.0);
    let greedy = |seed| draws(&Sampling { seed, temperature: 0.0, ..Sampling::default() }, 3, &row, 3);
    assert_eq!(greedy(1), greedy(2));
}
