//! The tokens that may be drawn, once `min_p`, `top_k` or `top_p` leaves out the others.

use super::nucleus::Nucleus;
use super::peaks::{BLOCK, Peaks};
use super::weights::{Scale, Weights, pick};

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
    pub(super) weight: f32,
}

impl Candidate {
    /// Its place among others: the likeliest has the lowest key, and among equals the lowest id.
    pub(super) fn key(&self) -> u64 {
        // Adding zero makes minus zero zero, which it equals.
        let bits = (self.logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(!ascending) << 32 | u64::from(self.token)
    }
}

/// The tokens that may be drawn, by id.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// The keys of the list, put out of order.
    keys: Vec<u64>,
    nucleus: Nucleus,
}

impl Candidates {
    /// Takes the tokens that can be among the `count` likeliest and weigh at least `floor` (above 0).
    pub(super) fn take_likely(
        &mut self,
        logits: &[f32],
        peaks: &mut Peaks,
        scale: Scale,
        count: Option<usize>,
        floor: f32,
    ) {
        self.list.clear();
        let reached = count.map_or(f32::NEG_INFINITY, |count| peaks.reached_by(count));
        for (block, &peak) in peaks.blocks().iter().enumerate() {
            if peak < reached || scale.weight(peak) < floor {
                continue;
            }
            let start = block * BLOCK;
            let end = logits.len().min(start + BLOCK);
            for (&logit, token) in logits[start..end].iter().zip(start as u32..) {
                if logit >= reached {
                    let weight = scale.weight(logit);
                    if weight >= floor {
                        self.list.push(Candidate { token, logit, weight });
                    }
                }
            }
        }
        if let Some(count) = count {
            self.keep_likeliest(count);
        }
    }

    /// Takes the tokens that can be among the likeliest which hold the share `top_p` of `weights`' total, below 1.
    pub(super) fn take_heavy(&mut self, logits: &[f32], weights: &Weights, total: f64, top_p: f32) {
        self.list.clear();
        // All tokens below this together weigh less than the share that may be left out.
        let floor = (1.0 - f64::from(top_p)) * total / logits.len() as f64;
        let floor = ((floor * (1.0 - 1e-6)) as f32).max(f32::MIN_POSITIVE);
        for (block, &sum) in weights.sums().iter().enumerate() {
            if sum < f64::from(floor) {
                continue;
            }
            let start = block * BLOCK;
            let end = logits.len().min(start + BLOCK);
            let both = weights.each()[start..end].iter().zip(&logits[start..end]).zip(start as u32..);
            for ((&weight, &logit), token) in both {
                if weight >= floor {
                    self.list.push(Candidate { token, logit, weight });
                }
            }
        }
    }

    fn keep_likeliest(&mut self, count: usize) {
        if self.list.len() > count {
            self.keys.clear();
            self.keys.extend(self.list.iter().map(Candidate::key));
            let last = *self.keys.select_nth_unstable(count - 1).1;
            self.list.retain(|candidate| candidate.key() <= last);
        }
    }

    /// Keeps the fewest likeliest that together weigh at least `share`.
    pub(super) fn keep_nucleus(&mut self, scale: Scale, share: f64) {
        if let Some(last) = self.nucleus.last(&self.list, scale, share) {
            self.list.retain(|candidate| candidate.key() <= last);
        }
    }

    /// The tokens, likeliest first.
    pub(super) fn likeliest_first(&mut self) -> &[Candidate] {
        self.list.sort_unstable_by_key(Candidate::key);
        &self.list
    }

    pub(super) fn total(&self) -> f64 {
        self.list.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }

    /// The first token at which the running sum of weights exceeds `share` of the total; `share` in [0, 1).
    pub(super) fn pick(&self, share: f64) -> Option<u32> {
        let place = pick(self.list.iter().map(|candidate| candidate.weight), share * self.total());
        self.list.get(place).map(|candidate| candidate.token)
    }
}
