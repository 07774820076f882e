//! Completions in OpenAI's words.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::events::{Dialect, Events};
use super::options::Options;
use super::texts::{Texts, Update, Usage};
use crate::generation::choice::FinishReason;
use crate::generation::sampling::Logprobs;
use crate::http::error::{ApiError, ErrorStyle};
use crate::text::Tokenizer;

/// The replies to one request.
pub(super) struct Completions {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// The prompts' texts, where they are to stand before the answers.
    echoed: Vec<String>,
    /// Whether the answer has them.
    logprobs: bool,
    n: usize,
    include_usage: bool,
    /// Characters of each text so far.
    offsets: Vec<usize>,
    /// Which texts have begun.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Completion<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Value>,
}

/// Of each token: itself, the logarithm of its probability, the likeliest, and where in the text it begins.
#[derive(Debug, Default, Serialize)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Completions {
    pub(super) fn new(
        id: &str,
        model: &str,
        tokenizer: Arc<Tokenizer>,
        echoed: Vec<String>,
        logprobs: bool,
        options: &Options,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            id: format!("cmpl-{id}"),
            created,
            model: model.to_owned(),
            tokenizer,
            echoed,
            logprobs,
            n: options.n as usize,
            include_usage: options.include_usage,
            offsets: Vec::new(),
            begun: Vec::new(),
        }
    }

    fn completion<T>(&self, choices: Vec<T>, usage: Option<Usage>) -> Completion<'_, T> {
        let (id, model) = (&self.id, &self.model);
        Completion { id, object: "text_completion", created: self.created, model, choices, usage }
    }

    /// What an update says, as a choice. `each`: texts of a prompt.
    fn choice(&mut self, update: Update, each: usize) -> CompletionChoice {
        let Update { index, delta } = update;
        if self.begun.len() <= index {
            self.begun.resize(index + 1, false);
            self.offsets.resize(index + 1, 0);
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun[index], true)
            && let Some(prompt) = self.echoed.get(index / each)
        {
            text.clone_from(prompt);
            self.offsets[index] = prompt.chars().count();
        }
        let logprobs = delta
            .logprobs
            .filter(|_| self.logprobs)
            .map(|(token, logprobs)| self.logprobs(token, &logprobs, self.offsets[index]));
        self.offsets[index] += delta.text.chars().count();
        text += &delta.text;
        let finish_reason = delta.finish.as_ref().map(FinishReason::name);
        let stop_reason = delta.finish.as_ref().and_then(stop_reason);
        CompletionChoice { index, text, logprobs, finish_reason, stop_reason }
    }

    fn logprobs(&self, token: u32, logprobs: &Logprobs, offset: usize) -> CompletionLogprobs {
        let text = |id: u32| String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned();
        let top = logprobs.top.iter().map(|&(id, logprob)| (text(id), json!(logprob)));
        CompletionLogprobs {
            tokens: vec![text(token)],
            token_logprobs: vec![logprobs.logprob],
            top_logprobs: vec![top.collect()],
            text_offset: vec![offset],
        }
    }

    /// The reply when all texts have ended.
    pub(super) async fn whole(mut self, mut texts: Texts) -> Result<Json<Value>, ApiError> {
        let each = texts.each();
        let mut whole: Vec<Option<CompletionChoice>> = Vec::new();
        while let Some(update) = texts.next().await {
            let part = self.choice(update?, each);
            if whole.len() <= part.index {
                whole.resize_with(part.index + 1, || None);
            }
            match &mut whole[part.index] {
                Some(choice) => choice.add(part),
                nothing => *nothing = Some(part),
            }
        }
        let best = texts.best(self.n).into_iter().flatten();
        let chosen = best.filter_map(|index| whole.get_mut(index).and_then(Option::take));
        let choices =
            chosen.enumerate().map(|(index, choice)| CompletionChoice { index, ..choice }).collect();
        Ok(Json(json!(self.completion(choices, Some(texts.usage())))))
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
        if update.delta == Default::default() && self.begun.get(update.index).is_some_and(|begun| *begun) {
            return;
        }
        let choice = self.choice(update, self.n);
        events.push(&self.completion(vec![choice], None));
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        if self.include_usage {
            events.push(&self.completion(Vec::<CompletionChoice>::new(), Some(usage)));
        }
    }

    fn error_style(&self) -> ErrorStyle {
        ErrorStyle::OpenAi
    }
}
