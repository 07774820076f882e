//! Draws beside a plain reading of the same rules, and what is promised of settings, seeds and rows.

mod distribution;
mod likelihoods;
mod parts;
mod penalties;
mod reference;
mod refusals;
mod steps;

use std::sync::Arc;

use super::{NotANumber, Sampler, Sampling, Scratch};

/// A sampler of a sequence with `prompt`, which generated `generated`.
fn sampler(sampling: &Sampling, prompt: &[u32], generated: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(Arc::new(sampling.clone()), prompt, 0);
    for &token in generated {
        sampler.force(token);
    }
    sampler
}

/// The token drawn from `logits` where the running sum of probabilities exceeds `share`.
fn token_at(sampling: &Sampling, logits: &[f32], share: f64) -> Result<u32, NotANumber> {
    let mut scratch = Scratch::default();
    sampler(sampling, &[], &[]).draw_at(share, &mut logits.to_vec(), &mut scratch).map(|drawn| drawn.token)
}

/// The token that the sampler draws next.
fn next(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    sampler.draw(&mut logits.to_vec(), &mut Scratch::default()).expect("a row").token
}

/// Numbers that look random and are always the same, between 0 and 1.
fn noise(seed: u64, count: usize) -> impl Iterator<Item = f64> {
    (0..count as u32).map(move |index| super::random::uniform(seed, 77, index))
}

/// A row of logits of about normal distribution.
fn bell(seed: u64, vocabulary: usize, deviation: f32) -> Vec<f32> {
    let parts: Vec<f64> = noise(seed, vocabulary * 12).collect();
    parts.chunks(12).map(|parts| (parts.iter().sum::<f64>() - 6.0) as f32 * deviation).collect()
}
