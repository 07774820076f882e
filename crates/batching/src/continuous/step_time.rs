//! How long a step takes: the only estimate that the token-level scheduler goes by.
//!
//! `seconds = a + b decodes + c prompt tokens + d keys that decodes read + e pairs that prompts attend to`,
//! by the same robust fit as batches are. The last two are apart because a decode reads its keys from memory,
//! and a chunk of a prompt reads them once for all of its tokens.

use std::time::Duration;

use crate::cost_model::fit::Fit;

/// Steps seen before anything is decided by a prediction.
const WELL_KNOWN: u64 = 8;

/// What a step does, in the terms that its time is predicted from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct StepLoad {
    pub(crate) decodes: f64,
    pub(crate) prompt_tokens: f64,
    pub(crate) decode_context: f64,
    pub(crate) prompt_pairs: f64,
}

impl StepLoad {
    /// The same, and a sequence that decodes with so many tokens in its context.
    pub(crate) fn with_decode(self, context: usize) -> Self {
        Self { decodes: self.decodes + 1.0, decode_context: self.decode_context + context as f64, ..self }
    }

    /// The same, and a chunk of `tokens` that begins at `start`.
    pub(crate) fn with_chunk(self, start: usize, tokens: usize) -> Self {
        let (start, tokens) = (start as f64, tokens as f64);
        Self {
            prompt_tokens: self.prompt_tokens + tokens,
            prompt_pairs: self.prompt_pairs + tokens * (start + (tokens + 1.0) / 2.0),
            ..self
        }
    }

    fn features(self) -> [f64; 5] {
        [1.0, self.decodes, self.prompt_tokens, self.decode_context, self.prompt_pairs]
    }
}

/// Learns from finished steps how long the next one will run.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepTime {
    fit: Fit<5>,
}

impl StepTime {
    pub(crate) fn observe(&mut self, load: StepLoad, busy: Duration) {
        if !busy.is_zero() {
            self.fit.observe(load.features(), busy);
        }
    }

    /// Itself, once it has seen enough steps to decide by.
    pub(crate) fn known(&self) -> Option<&Self> {
        (self.fit.samples() >= WELL_KNOWN).then_some(self)
    }

    /// `None` before the first step.
    pub(crate) fn predict(&self, load: StepLoad) -> Option<Duration> {
        self.fit.predict(load.features())
    }

    /// What nine in ten of such steps took no longer than; zero before the first step.
    pub(crate) fn at_most(&self, load: StepLoad) -> Duration {
        self.predict(load).map_or(Duration::ZERO, |time| time.mul_f64(1.0 + self.fit.margin()))
    }

    /// How many tokens, of at most `most`, a chunk that begins at `start` may add to a step that is to keep
    /// within `target`.
    pub(crate) fn largest_chunk(&self, load: StepLoad, start: usize, most: usize, target: Duration) -> usize {
        let fits = |tokens: usize| self.at_most(load.with_chunk(start, tokens)) <= target;
        if fits(most) {
            return most;
        }
        // `low` fits, or is 0; `high` does not.
        let (mut low, mut high) = (0, most);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The coefficients a to e in seconds, and the running mean of the relative error.
    pub(crate) fn coefficients(&self) -> ([f64; 5], f64) {
        (self.fit.coefficients(), self.fit.relative_error())
    }
}
