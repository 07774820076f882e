//! Completions in OpenAI's words.

use std::sync::Arc;

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::envelope::Envelope;
use super::events::Dialect;
use super::options::Options;
use super::texts::{Texts, Update, Usage};
use crate::generation::choice::{Delta, FinishReason, Told};
use crate::generation::sampling::Logprobs;
use crate::http::error::{ApiError, ErrorStyle};
use crate::http::event_stream::Events;
use crate::text::{Detokenizer, Tokenizer};

/// The replies to one request.
pub(super) struct Completions {
    envelope: Envelope,
    tokenizer: Arc<Tokenizer>,
    /// The prompts' texts, where they are to stand before the answers.
    echoed: Vec<Echo>,
    /// Whether the answer has them.
    logprobs: bool,
    n: usize,
}

/// A prompt that stands before its texts.
pub(in crate::http) struct Echo {
    text: String,
    /// How many it has.
    characters: usize,
    /// Its first token.
    first: u32,
    /// The others, where they were scored.
    scored: Vec<(u32, Logprobs)>,
}

impl Echo {
    /// The text of a prompt that begins with the token `first`.
    pub(super) fn new(text: String, first: u32) -> Self {
        Self { characters: text.chars().count(), text, first, scored: Vec::new() }
    }
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
        let mut choice = CompletionChoice { index, ..CompletionChoice::default() };
        let mut logprobs = CompletionLogprobs::default();
        let begins = self.envelope.begins(index);
        let echo = self.echoed.get(index / each);
        if let Some(echo) = echo.filter(|_| begins) {
            choice.text.clone_from(&echo.text);
            if self.logprobs {
                self.add_prompt(echo, &mut logprobs);
            }
        }
        if let Some(Told { token, logprobs: of, offset }) = delta.told.filter(|_| self.logprobs) {
            let offset = echo.map_or(0, |echo| echo.characters) + offset;
            self.add(token, Some(&of), offset, &mut logprobs);
        }
        choice.text += &delta.text;
        choice.finish_reason = delta.finish.as_ref().map(FinishReason::name);
        choice.stop_reason = delta.finish.as_ref().and_then(stop_reason);
        choice.logprobs = Some(logprobs).filter(|logprobs| !logprobs.tokens.is_empty());
        Some(choice)
    }

    /// The tokens of a prompt. Nothing says how likely the first was.
    fn add_prompt(&self, echo: &Echo, to: &mut CompletionLogprobs) {
        let first = std::iter::once((echo.first, None));
        let others = echo.scored.iter().map(|(token, logprobs)| (*token, Some(logprobs)));
        // As the text came to be: a character of many tokens begins where the first of them does.
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.tokenizer), &[], true);
        let mut offset = 0;
        for (token, logprobs) in first.chain(others) {
            self.add(token, logprobs, offset, to);
            offset += detokenizer.push(token).map_or(0, |text| text.chars().count());
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
