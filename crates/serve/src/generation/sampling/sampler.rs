//! One sequence's draws.

use std::sync::Arc;

use super::Sampling;
use super::adjust::{Changes, Seen};
use super::candidates::Candidates;
use super::likelihoods::{Likelihoods, Logprobs};
use super::peaks::{NotANumber, Peaks};
use super::random;
use super::weights::{Scale, Weights};

/// Buffers that all sequences of an engine share; nothing in them outlives a draw.
#[derive(Debug, Default)]
pub struct Scratch {
    changes: Changes,
    peaks: Peaks,
    weights: Weights,
    candidates: Candidates,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// How likely it was, where that was asked for.
    pub logprobs: Option<Logprobs>,
}

/// Draws the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Arc<Sampling>,
    choice: u32,
    /// How many tokens were drawn: the index of the next.
    index: u32,
    seen: Seen,
}

impl Sampler {
    /// For choice number `choice` of a request whose settings passed their [check](Sampling::check).
    pub fn new(sampling: Arc<Sampling>, prompt: &[u32], choice: u32) -> Self {
        let seen = Seen::new(&sampling, prompt);
        Self { sampling, choice, index: 0, seen }
    }

    /// Draws the next token from `logits`, one per token of the vocabulary, and counts it as generated. The row is
    /// changed meanwhile and left as it was, so that the choices of a prompt can draw from the same one.
    ///
    /// # Errors
    /// A row from which nothing can be drawn; the sequence then is as before.
    pub fn draw(&mut self, logits: &mut [f32], scratch: &mut Scratch) -> Result<Drawn, NotANumber> {
        let share = random::uniform(self.sampling.seed, self.choice, self.index);
        self.draw_at(share, logits, scratch)
    }

    /// Counts `token` as drawn.
    #[cfg(test)]
    pub(super) fn force(&mut self, token: u32) {
        self.seen.generated(&self.sampling, token);
        self.index += 1;
    }

    /// Draws the token at which the running sum of probabilities exceeds `share`, in [0, 1).
    pub(super) fn draw_at(
        &mut self,
        share: f64,
        logits: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Drawn, NotANumber> {
        let Scratch { changes, peaks, weights, candidates } = scratch;
        peaks.scan(logits)?;
        if peaks.greatest() == f32::NEG_INFINITY {
            return Err(NotANumber::Nothing);
        }
        let sampling = &*self.sampling;
        let likelihoods =
            sampling.logprobs.map(|count| Likelihoods::read(logits, count, peaks, weights, candidates));
        changes.apply(logits, sampling, &self.seen, self.index);
        if !changes.is_empty() {
            peaks.update(logits, changes.tokens());
        }
        // The weights of log-probabilities are those of the draw where it changes nothing.
        let weighed = likelihoods.is_some() && changes.is_empty() && sampling.temperature == 1.0;
        let token = choose(sampling, share, logits, scratch, weighed);
        scratch.changes.undo(logits);
        let token = token?;
        let logprobs = likelihoods.map(|likelihoods| likelihoods.of(token, logits));
        self.seen.generated(&self.sampling, token);
        self.index += 1;
        Ok(Drawn { token, logprobs })
    }
}

/// How likely `token` is by a row of logits, and which `count` tokens are the likeliest.
///
/// # Errors
/// A row that has no meaning.
pub fn score(token: u32, count: u32, logits: &[f32], scratch: &mut Scratch) -> Result<Logprobs, NotANumber> {
    let Scratch { peaks, weights, candidates, .. } = scratch;
    peaks.scan(logits)?;
    if peaks.greatest() == f32::NEG_INFINITY {
        return Err(NotANumber::Nothing);
    }
    Ok(Likelihoods::read(logits, count, peaks, weights, candidates).of(token, logits))
}

/// Takes the steps from temperature on. `weighed`: the scratch has the weights of this very row.
fn choose(
    sampling: &Sampling,
    share: f64,
    logits: &[f32],
    scratch: &mut Scratch,
    weighed: bool,
) -> Result<u32, NotANumber> {
    let Scratch { peaks, weights, candidates, .. } = scratch;
    let Sampling { temperature, top_p, min_p, .. } = *sampling;
    let greatest = peaks.greatest();
    if greatest == f32::NEG_INFINITY {
        return Err(NotANumber::Nothing);
    }
    if temperature == 0.0 {
        return Ok(peaks.likeliest(logits));
    }
    let scale = Scale::new(greatest, temperature);
    let count = sampling.top_k.map(|count| count as usize).filter(|&count| count < logits.len());
    let total = if count.is_some() || min_p > 0.0 {
        candidates.take_likely(logits, peaks, scale, count, min_p.max(f32::MIN_POSITIVE));
        candidates.total()
    } else {
        if !weighed {
            weights.fill(logits, scale);
        }
        if top_p >= 1.0 {
            return Ok(weights.pick(share) as u32);
        }
        let total = weights.total();
        candidates.take_heavy(logits, peaks, scale, (weights, total), top_p);
        total
    };
    if top_p < 1.0 {
        candidates.keep_nucleus(scale, f64::from(top_p) * total);
    }
    candidates.pick(share).ok_or(NotANumber::Nothing)
}
