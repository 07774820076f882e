//! What changes single logits before a draw: end tokens held back, biases, penalties.

use std::collections::HashMap;

use super::Sampling;

/// The tokens of one sequence that penalties ask for.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How often each token was generated; 0 for one that is in the prompt alone.
    counts: HashMap<u32, u32>,
}

impl Seen {
    /// The prompt's tokens are kept only for the repetition penalty, as no other asks for them.
    pub(super) fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let prompt = if repetition(sampling) { prompt } else { &[] };
        Self { counts: prompt.iter().map(|&token| (token, 0)).collect() }
    }

    /// `token` was generated; nothing is kept where no penalty asks for it.
    pub(super) fn generated(&mut self, sampling: &Sampling, token: u32) {
        if repetition(sampling) || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

fn repetition(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0
}

/// Changes to a row, with what stood there before.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<(u32, f32)>);

impl Changes {
    /// Applies everything to `logits` that asks for it before the token number `index` is drawn.
    pub(super) fn apply(&mut self, logits: &mut [f32], sampling: &Sampling, seen: &Seen, index: u32) {
        self.0.clear();
        if index < sampling.min_tokens {
            for &token in &sampling.end_tokens {
                self.change(logits, token, |_| f32::NEG_INFINITY);
            }
        }
        for &(token, bias) in &sampling.logit_bias {
            self.change(logits, token, |logit| logit + bias);
        }
        for (&token, &count) in &seen.counts {
            self.change(logits, token, |logit| penalised(logit, sampling, count));
        }
    }

    /// A token beyond the row (of a vocabulary larger than the model's) changes nothing.
    fn change(&mut self, logits: &mut [f32], token: u32, change: impl FnOnce(f32) -> f32) {
        if let Some(logit) = logits.get_mut(token as usize) {
            self.0.push((token, *logit));
            // A penalty near 0 must not make a likely token's logit infinite.
            *logit = change(*logit).min(f32::MAX);
        }
    }

    /// The changed tokens, some perhaps more than once.
    pub(super) fn tokens(&self) -> impl ExactSizeIterator<Item = u32> {
        self.0.iter().map(|&(token, _)| token)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes `logits` what it was.
    pub(super) fn undo(&mut self, logits: &mut [f32]) {
        for (token, before) in self.0.drain(..).rev() {
            logits[token as usize] = before;
        }
    }
}

fn penalised(logit: f32, sampling: &Sampling, count: u32) -> f32 {
    let penalty = sampling.repetition_penalty;
    let repeated = if logit > 0.0 { logit / penalty } else { logit * penalty };
    let present = if count > 0 { sampling.presence_penalty } else { 0.0 };
    repeated - sampling.frequency_penalty * count as f32 - present
}
