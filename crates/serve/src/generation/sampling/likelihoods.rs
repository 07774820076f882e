//! Log-probabilities of the model's own logits.

use super::candidates::Candidates;
use super::peaks::Peaks;
use super::weights::{Scale, Weights};

/// How likely a drawn token was by the model's own logits, and which tokens were the likeliest.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The drawn token's log-probability.
    pub logprob: f32,
    /// 1 for the likeliest token; among equals the lower id counts as the likelier.
    pub rank: u32,
    /// The likeliest tokens with their log-probabilities, likeliest first. Fewer than asked for where the vocabulary
    /// is smaller, or where the model gives a token no probability at all.
    pub top: Vec<(u32, f32)>,
}

/// The model's own distribution, before a draw changes logits.
#[derive(Debug)]
pub(super) struct Likelihoods {
    /// The logarithm of the sum of `exp(logit)`.
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl Likelihoods {
    /// Reads a row whose greatest logit is finite. Leaves its weights at temperature 1 in `weights`.
    pub(super) fn read(
        logits: &[f32],
        count: u32,
        peaks: &mut Peaks,
        weights: &mut Weights,
        candidates: &mut Candidates,
    ) -> Self {
        let scale = Scale::new(peaks.greatest(), 1.0);
        weights.fill(logits, scale);
        let log_sum = f64::from(peaks.greatest()) + weights.total().ln();
        let mut top = Vec::new();
        if count > 0 {
            candidates.take_likely(logits, peaks, scale, Some(count as usize), 0.0);
            let likeliest = candidates.likeliest_first().iter();
            let possible = likeliest.filter(|candidate| candidate.logit > f32::NEG_INFINITY);
            top.extend(possible.map(|each| (each.token, (f64::from(each.logit) - log_sum) as f32)));
        }
        Self { log_sum, top }
    }

    /// What to answer for `token`, drawn from the row that was read.
    pub(super) fn of(self, token: u32, logits: &[f32]) -> Logprobs {
        let logit = logits[token as usize];
        let (before, from) = logits.split_at(token as usize);
        let likelier = before.iter().map(|&other| u32::from(other >= logit)).sum::<u32>()
            + from.iter().map(|&other| u32::from(other > logit)).sum::<u32>();
        Logprobs { logprob: (f64::from(logit) - self.log_sum) as f32, rank: likelier + 1, top: self.top }
    }
}
