//! Completions in OpenAI's words.

use std::sync::Arc;

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::envelope::Envelope;
use super::events::{Dialect, Events};
use super::options::Options;
use super::texts::{Texts, Update, Usage};
use crate::generation::choice::{Delta, FinishReason};
use crate::generation::sampling::Logprobs;
use crate::http::error::{ApiError, ErrorStyle};
use crate::text::Tokenizer;

/// The replies to one request.
pub(super) struct Completions {
    envelope: Envelope,
    tokenizer: Arc<Tokenizer>,
    /// The prompts' texts, where they are to stand before the answers.
    echoed: Vec<Echo>,
    /// Whether the answer has them.
    logprobs: bool,
    n: usize,
    /// Characters of each text so far.
    offsets: Vec<usize>,
}

/// A prompt that stands before its texts.
pub(in crate::http) struct Echo {
    pub(super) text: String,
    /// Its first token.
    pub(super) first: u32,
    /// The others, where they were scored.
    pub(super) scored: Vec<(u32, Logprobs)>,
}

/// What replies are called, and their parts.
const OBJECT: &str = "text_completion";

#[derive(Default, Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Value>,
}

/// OpenAI's word for "very unlikely": JSON has no infinity.
pub(super) const LEAST_LOGPROB: f32 = -9999.0;

/// Of each token: itself, the logarithm of its probability, the likeliest, and where in the text it begins.
#[derive(Debug, Default, Serialize)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl Completions {
    pub(super) fn new(
        id: &str,
        model: &str,
        tokenizer: Arc<Tokenizer>,
        echoed: Vec<Echo>,
        logprobs: bool,
        options: &Options,
    ) -> Self {
        Self {
            envelope: Envelope::new(format!("cmpl-{id}"), model, options),
            tokenizer,
            echoed,
            logprobs,
            n: options.n as usize,
            offsets: Vec::new(),
        }
    }

    /// What an update says, as a choice; nothing where it is about the prompt, which comes with its texts.
    /// `each`: texts of a prompt.
    fn choice(&mut self, update: Update, each: usize) -> Option<CompletionChoice> {
        let Update { index, delta, scored } = update;
        if !scored.is_empty() {
            self.echoed.get_mut(index / each)?.scored.extend(scored);
            return None;
        }
        if self.offsets.len() <= index {
            self.offsets.resize(index + 1, 0);
        }
        let mut choice = CompletionChoice { index, ..CompletionChoice::default() };
        let mut logprobs = CompletionLogprobs::default();
        if self.envelope.begins(index)
            && let Some(echo) = self.echoed.get(index / each)
        {
            choice.text.clone_from(&echo.text);
            if self.logprobs {
                self.add_prompt(echo, &mut logprobs);
            }
            self.offsets[index] = echo.text.chars().count();
        }
        if let Some((token, of)) = delta.logprobs.filter(|_| self.logprobs) {
            self.add(token, Some(&of), self.offsets[index], &mut logprobs);
        }
        self.offsets[index] += delta.text.chars().count();
        choice.text += &delta.text;
        choice.finish_reason = delta.finish.as_ref().map(FinishReason::name);
        choice.stop_reason = delta.finish.as_ref().and_then(stop_reason);
        choice.logprobs = Some(logprobs).filter(|logprobs| !logprobs.tokens.is_empty());
        Some(choice)
    }

    /// The tokens of a prompt. Nothing says how likely the first was.
    fn add_prompt(&self, echo: &Echo, to: &mut CompletionLogprobs) {
        let mut offset = 0;
        let first = std::iter::once((echo.first, None));
        let others = echo.scored.iter().map(|(token, logprobs)| (*token, Some(logprobs)));
        for (token, logprobs) in first.chain(others) {
            self.add(token, logprobs, offset, to);
            offset += to.tokens.last().map_or(0, |token| token.chars().count());
        }
    }

    fn add(&self, token: u32, logprobs: Option<&Logprobs>, offset: usize, to: &mut CompletionLogprobs) {
        let text = |id: u32| String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned();
        to.tokens.push(text(token));
        to.token_logprobs.push(logprobs.map(|logprobs| logprobs.logprob.max(LEAST_LOGPROB)));
        let top = |logprobs: &Logprobs| {
            logprobs.top.iter().map(|&(id, logprob)| (text(id), json!(logprob.max(LEAST_LOGPROB)))).collect()
        };
        to.top_logprobs.push(logprobs.map(top));
        to.text_offset.push(offset);
    }

    /// The reply when all texts have ended.
    pub(super) async fn whole(mut self, mut texts: Texts) -> Result<Json<Value>, ApiError> {
        let each = texts.each();
        let wholes = texts.wholes(self.n, |whole: &mut CompletionChoice, update| {
            if let Some(part) = self.choice(update, each) {
                whole.add(part);
            }
        });
        let wholes = wholes.await?.into_iter().enumerate();
        let choices = wholes.map(|(index, whole)| CompletionChoice { index, ..whole }).collect();
        Ok(Json(json!(self.envelope.around(OBJECT, choices, Some(texts.usage())))))
    }
}

impl CompletionChoice {
    /// Goes on with what came later.
    fn add(&mut self, later: Self) {
        self.text += &later.text;
        self.finish_reason = later.finish_reason.or(self.finish_reason);
        self.stop_reason = later.stop_reason.or(self.stop_reason.take());
        if let Some(later) = later.logprobs {
            let logprobs = self.logprobs.get_or_insert_default();
            logprobs.tokens.extend(later.tokens);
            logprobs.token_logprobs.extend(later.token_logprobs);
            logprobs.top_logprobs.extend(later.top_logprobs);
            logprobs.text_offset.extend(later.text_offset);
        }
    }
}

/// What ended a text that its caller named: a stop string or a stop token.
pub(super) fn stop_reason(finish: &FinishReason) -> Option<Value> {
    match finish {
        FinishReason::StopString(stop) => Some(json!(stop)),
        FinishReason::StopToken(token) => Some(json!(token)),
        FinishReason::EndOfText | FinishReason::Length => None,
    }
}

impl Dialect for Completions {
    fn update(&mut self, update: Update, events: &mut Events) {
        // Nothing has become certain, and nobody asked for the token itself.
        let nothing = update.delta == Delta::default() && update.scored.is_empty();
        if nothing && self.envelope.has_begun(update.index) {
            return;
        }
        if let Some(choice) = self.choice(update, self.n) {
            events.push(&self.envelope.around(OBJECT, vec![choice], None));
        }
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        self.envelope.end(OBJECT, usage, events);
    }

    fn error_style(&self) -> ErrorStyle {
        ErrorStyle::OpenAi
    }
}
