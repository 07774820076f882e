//! Where the likeliest tokens hold a share of the weight, found without sorting all of them.

use super::candidates::{Candidate, Kept};
use super::weights::Scale;

/// Candidates that are sorted rather than parted once more.
const FEW: usize = 256;

/// Parts that candidates are put into by logit.
const BUCKETS: usize = 1024;

/// What a search uses.
#[derive(Debug, Default)]
pub(super) struct Nucleus {
    /// The candidates among which the last of the nucleus is.
    crowd: Vec<Candidate>,
    sums: Vec<f64>,
}

/// Equal parts of the range of exponents that a crowd has, the likeliest first.
#[derive(Debug, Clone, Copy)]
struct Parts {
    top: f32,
    step: f32,
}

impl Parts {
    /// None where the exponents are all the same. Else the likeliest and the least likely are in different parts.
    fn new(crowd: &[Candidate], scale: Scale) -> Option<Self> {
        let (mut top, mut bottom) = (f32::NEG_INFINITY, f32::INFINITY);
        for candidate in crowd {
            let exponent = scale.exponent(candidate.logit);
            top = if exponent > top { exponent } else { top };
            bottom = if exponent < bottom { exponent } else { bottom };
        }
        (top > bottom).then(|| Self { top, step: (BUCKETS - 1) as f32 / (top - bottom) })
    }

    /// A likelier candidate's part never comes after a less likely one's: each operation keeps the order.
    fn of(self, exponent: f32) -> usize {
        (((self.top - exponent) * self.step) as usize).min(BUCKETS - 1)
    }
}

impl Nucleus {
    /// The fewest likeliest `candidates` that together weigh at least `share`; none where all of them do not. Every
    /// candidate weighs something.
    ///
    /// Sums the weights by part of the range of logits, goes on within the part where the sum reaches the share, and
    /// sorts that once it is small.
    pub(super) fn search(&mut self, candidates: &[Candidate], scale: Scale, share: f64) -> Option<Kept> {
        self.crowd.clear();
        self.crowd.extend_from_slice(candidates);
        let mut sum = 0.0;
        while self.crowd.len() > FEW {
            let Some(parts) = Parts::new(&self.crowd, scale) else { break };
            self.sums.clear();
            self.sums.resize(BUCKETS, 0.0);
            for candidate in &self.crowd {
                self.sums[parts.of(scale.exponent(candidate.logit))] += f64::from(candidate.weight);
            }
            let reached = self.sums.iter().position(|part| {
                let reaches = sum + part >= share;
                sum += if reaches { 0.0 } else { *part };
                reaches
            })?;
            self.crowd.retain(|candidate| parts.of(scale.exponent(candidate.logit)) == reached);
        }
        self.crowd.sort_unstable_by_key(Candidate::key);
        let reached = self.crowd.iter().find(|candidate| {
            sum += f64::from(candidate.weight);
            sum >= share
        });
        // Rounding may leave the sum of a part, added up in another order, a last bit short.
        let last = reached.or(self.crowd.last())?.key();
        Some(Kept { last, sum })
    }
}
