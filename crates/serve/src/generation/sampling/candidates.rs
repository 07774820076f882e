//! The tokens that may be drawn, once `min_p`, `top_k` or `top_p` leaves out the others.

use super::nucleus::Nucleus;
use super::peaks::{BLOCK, Peaks};
use super::weights::{Scale, Weights, pick};

/// A token that may be drawn.
#[derive(Debug, Default, Clone, Copy)]
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

/// Logits that are looked at together before one by one.
const PART: usize = 16;

/// The tokens that may be drawn, by id.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// The tokens of the list that may be drawn, up to the last key, with the sum of their weights.
    kept: Kept,
    /// The keys of the list, put out of order.
    keys: Vec<u64>,
    /// The greatest weight of each block of a row.
    tops: Vec<f32>,
    nucleus: Nucleus,
}

/// A list's likeliest tokens: those whose key is at most `last`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Kept {
    pub(super) last: u64,
    /// What they weigh.
    pub(super) sum: f64,
}

impl Candidates {
    /// Takes the tokens that are among the `count` likeliest and weigh at least `floor`.
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
            for (start, part) in parts(logits, block) {
                if !any_reaches(part, reached) {
                    continue;
                }
                for (&logit, token) in part.iter().zip(start as u32..) {
                    if logit >= reached {
                        let weight = scale.weight(logit);
                        if weight >= floor {
                            self.list.push(Candidate { token, logit, weight });
                        }
                    }
                }
            }
        }
        if let Some(count) = count {
            self.keep_likeliest(count);
        }
        self.keep_all();
    }

    /// Takes the tokens that can be among the likeliest which hold the share `top_p`, below 1, of `weights`' `total`.
    pub(super) fn take_heavy(
        &mut self,
        logits: &[f32],
        peaks: &Peaks,
        scale: Scale,
        (weights, total): (&Weights, f64),
        top_p: f32,
    ) {
        self.list.clear();
        self.tops.clear();
        self.tops.extend(peaks.blocks().iter().map(|&peak| scale.weight(peak)));
        let floor = floor(&self.tops, weights.sums(), (1.0 - f64::from(top_p)) * total);
        for (block, _) in self.tops.iter().enumerate().filter(|(_, top)| **top >= floor) {
            for (start, part) in parts(weights.each(), block) {
                if !any_reaches(part, floor) {
                    continue;
                }
                // Where many are taken and many are not, a branch for each would cost more than all else.
                let mut taken = [Candidate::default(); PART];
                let mut count = 0;
                for ((&weight, &logit), token) in part.iter().zip(&logits[start..]).zip(start as u32..) {
                    taken[count] = Candidate { token, logit, weight };
                    count += usize::from(weight >= floor);
                }
                self.list.extend_from_slice(&taken[..count]);
            }
        }
        self.keep_all();
    }

    fn keep_likeliest(&mut self, count: usize) {
        if self.list.len() > count {
            self.keys.clear();
            self.keys.extend(self.list.iter().map(Candidate::key));
            let last = *self.keys.select_nth_unstable(count - 1).1;
            self.list.retain(|candidate| candidate.key() <= last);
        }
    }

    fn keep_all(&mut self) {
        let sum = self.list.iter().map(|candidate| f64::from(candidate.weight)).sum();
        self.kept = Kept { last: u64::MAX, sum };
    }

    /// What the tokens that may be drawn weigh.
    pub(super) fn total(&self) -> f64 {
        self.kept.sum
    }

    /// Keeps the fewest likeliest that together weigh at least `share`.
    pub(super) fn keep_nucleus(&mut self, scale: Scale, share: f64) {
        if let Some(kept) = self.nucleus.search(&self.list, scale, share) {
            self.kept = kept;
        }
    }

    /// The tokens, likeliest first.
    pub(super) fn likeliest_first(&mut self) -> &[Candidate] {
        self.list.sort_unstable_by_key(Candidate::key);
        &self.list
    }

    /// The first token at which the running sum of weights exceeds `share` of the total; `share` in [0, 1).
    pub(super) fn pick(&self, share: f64) -> Option<u32> {
        let last = self.kept.last;
        let weights = self.list.iter().map(|each| if each.key() <= last { each.weight } else { 0.0 });
        let place = pick(weights, share * self.kept.sum);
        self.list.get(place).map(|candidate| candidate.token)
    }
}

/// The parts of a block of `values`, each with the index of its first.
fn parts(values: &[f32], block: usize) -> impl Iterator<Item = (usize, &[f32])> {
    let start = block * BLOCK;
    let end = values.len().min(start + BLOCK);
    (start..end).step_by(PART).zip(values[start..end].chunks(PART))
}

/// Without a branch for each, so that several are compared at once.
fn any_reaches(values: &[f32], least: f32) -> bool {
    values.iter().fold(false, |any, &value| any | (value >= least))
}

/// A weight such that all lighter tokens together weigh at most `spare`: none of them is in the nucleus that leaves
/// out so much. Found from the blocks' greatest weights and sums alone, so it is not the greatest such weight.
fn floor(tops: &[f32], sums: &[f64], spare: f64) -> f32 {
    let lighter_than = |weight: f32| {
        let most = f64::from(weight) * (BLOCK - 1) as f64;
        let bounds = tops.iter().zip(sums).map(|(&top, &sum)| {
            let rest = if top < weight { sum } else { sum - f64::from(top) };
            if rest < most { rest } else { most }
        });
        bounds.sum::<f64>()
    };
    // Less than a last bit is left to the rounding of the sums.
    let spare = spare * (1.0 - 1e-9);
    let (mut lowest, mut highest) = (f32::MIN_POSITIVE.ln(), 0.0);
    for _ in 0..10 {
        let middle = (lowest + highest) / 2.0;
        if lighter_than(middle.exp()) <= spare { lowest = middle } else { highest = middle }
    }
    // A likelier token's weight may be rounded to one that is a last bit lighter.
    (lowest.exp() * (1.0 - 1e-5)).max(f32::MIN_POSITIVE)
}
