//! What settings are refused, and how that is said.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::Sampling;

/// OpenAI's most for chat, and vLLM's by default.
const MOST_LOGPROBS: u32 = 20;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter} is {value}, but it must be {allowed}")]
pub struct SamplingError {
    /// The field of [`Sampling`].
    pub parameter: &'static str,
    /// What was asked for.
    pub value: String,
    /// What may be asked for.
    pub allowed: String,
}

impl SamplingError {
    fn new(parameter: &'static str, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { parameter, value: value.to_string(), allowed: allowed.into() }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing to a model whose rows have `vocabulary` logits.
    ///
    /// The ranges are vLLM's where it names one, else OpenAI's: temperature finite and at least 0 (OpenAI's end at
    /// 2), `top_k` at least 1, `top_p` in (0, 1], `min_p` in \[0, 1\], `repetition_penalty` finite and above 0, the
    /// other penalties in \[-2, 2\], biases in \[-100, 100\] for tokens of the vocabulary, `logprobs` at most 20.
    ///
    /// # Errors
    /// The first setting out of its range, with its value and what is allowed.
    pub fn check(&self, vocabulary: usize) -> Result<(), SamplingError> {
        let positive = f32::from_bits(1)..=f32::MAX;
        within("temperature", self.temperature, &(0.0..=f32::MAX), "a finite number of at least 0")?;
        within("top_p", self.top_p, &(f32::from_bits(1)..=1.0), "above 0 and at most 1")?;
        within("min_p", self.min_p, &(0.0..=1.0), "between 0 and 1")?;
        within(
            "repetition_penalty",
            self.repetition_penalty,
            &positive,
            "a finite number above 0 (1: no penalty)",
        )?;
        within("presence_penalty", self.presence_penalty, &(-2.0..=2.0), "between -2 and 2")?;
        within("frequency_penalty", self.frequency_penalty, &(-2.0..=2.0), "between -2 and 2")?;
        if self.top_k == Some(0) {
            return Err(SamplingError::new("top_k", 0, "at least 1 (left out: all tokens)"));
        }
        if let Some(logprobs) = self.logprobs.filter(|&logprobs| logprobs > MOST_LOGPROBS) {
            return Err(SamplingError::new("logprobs", logprobs, format!("at most {MOST_LOGPROBS}")));
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocabulary {
                let allowed = format!("for tokens below {vocabulary}, the size of the vocabulary");
                return Err(SamplingError::new("logit_bias", format!("for token {token}"), allowed));
            }
            if !(-100.0..=100.0).contains(&bias) {
                let value = format!("{bias} for token {token}");
                return Err(SamplingError::new("logit_bias", value, "between -100 and 100"));
            }
        }
        Ok(())
    }
}

/// A range contains no NaN.
fn within(
    parameter: &'static str,
    value: f32,
    range: &RangeInclusive<f32>,
    allowed: &str,
) -> Result<(), SamplingError> {
    if range.contains(&value) { Ok(()) } else { Err(SamplingError::new(parameter, value, allowed)) }
}
