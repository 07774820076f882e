//! One text of a request as it grows: tokens in, certain text out.

use std::sync::Arc;

use super::sampling::Logprobs;
use crate::text::{Detokenizer, Released, StopStrings, TextError, Tokenizer};

/// What ends texts, and how they are shown.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Each of these ends a text, wherever token borders fall. All texts of a request share what is made of them.
    pub stops: StopStrings,
    /// Whether a text ends with what ended it.
    pub include_stop: bool,
    /// No stop string ends a text before so many tokens.
    pub min_tokens: u32,
    /// Whether special tokens are left out.
    pub skip_special: bool,
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// Its model ended it.
    EndOfText,
    /// It came to this stop string.
    StopString(String),
    /// It came to this stop token.
    StopToken(u32),
    /// It has as many tokens as it may.
    Length,
}

impl FinishReason {
    /// OpenAI's word.
    pub fn name(&self) -> &'static str {
        match self {
            FinishReason::Length => "length",
            _ => "stop",
        }
    }
}

/// A token of a text, and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Its id.
    pub token: u32,
    /// Of the model.
    pub logprobs: Logprobs,
    /// Characters of the text before it, also of what stop strings hold back.
    pub offset: usize,
}

/// What a token added to a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Text that has become certain; often a word, sometimes nothing.
    pub text: String,
    /// The token and its probability, where they were asked for.
    pub told: Option<Told>,
    /// Why the text ended, with its last delta.
    pub finish: Option<FinishReason>,
}

/// One text of a request.
pub struct Choice {
    detokenizer: Detokenizer,
    stops: StopStrings,
    options: TextOptions,
    tokens: u32,
    /// Characters that its tokens have made so far.
    characters: usize,
    /// Sum of the logarithms of its tokens' probabilities, where they were asked for.
    log_probability: f64,
    /// The stop token that ended it, if one that the caller named.
    stop_token: Option<u32>,
    ended: bool,
}

impl Choice {
    /// An empty text after `prompt`.
    pub fn new(tokenizer: &Arc<Tokenizer>, prompt: &[u32], options: TextOptions) -> Self {
        Self {
            detokenizer: Detokenizer::new(Arc::clone(tokenizer), prompt, options.skip_special),
            stops: options.stops.clone(),
            options,
            tokens: 0,
            characters: 0,
            log_probability: 0.0,
            stop_token: None,
            ended: false,
        }
    }

    /// Tokens so far, the one that ended it included.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The mean of the logarithms of its tokens' probabilities: what `best_of` compares.
    pub fn mean_logprob(&self) -> f64 {
        self.log_probability / f64::from(self.tokens.max(1))
    }

    /// Whether nothing more is said of it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes in a token. `named`: whether the caller, and not the model, has made it a stop token.
    ///
    /// # Errors
    /// When the tokenizer cannot make text of it.
    pub fn token(
        &mut self,
        token: u32,
        stops: bool,
        named: bool,
        logprobs: Option<Logprobs>,
    ) -> Result<Delta, TextError> {
        self.tokens += 1;
        self.log_probability += logprobs.as_ref().map_or(0.0, |logprobs| f64::from(logprobs.logprob));
        let told = logprobs.map(|logprobs| Told { token, logprobs, offset: self.characters });
        if stops {
            self.stop_token = named.then_some(token);
            if !(named && self.options.include_stop) {
                return Ok(Delta { told, ..Delta::default() });
            }
        }
        let text = self.detokenizer.push(token)?.to_owned();
        self.characters += text.chars().count();
        if self.tokens < self.options.min_tokens {
            return Ok(Delta { text, told, finish: None });
        }
        let released = self.stops.push(&text);
        let finish = self.stopped(&released);
        Ok(Delta { text: released.text, told, finish })
    }

    /// Takes in its end.
    pub fn end(&mut self, by_length: bool) -> Delta {
        let rest = self.detokenizer.finish().to_owned();
        let mut released = self.stops.push(&rest);
        let finish = self.stopped(&released).unwrap_or(match self.stop_token {
            Some(token) => FinishReason::StopToken(token),
            None if by_length => FinishReason::Length,
            None => FinishReason::EndOfText,
        });
        if released.stopped.is_none() {
            released.text += &self.stops.finish();
        }
        self.ended = true;
        Delta { text: released.text, told: None, finish: Some(finish) }
    }

    fn stopped(&mut self, released: &Released) -> Option<FinishReason> {
        let stop = self.stops.stop(released.stopped?)?.to_owned();
        self.ended = true;
        Some(FinishReason::StopString(stop))
    }
}
