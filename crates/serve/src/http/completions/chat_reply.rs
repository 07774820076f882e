//! Answers of chats in OpenAI's words.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use serde::Serialize;
use serde_json::{Value, json};

use super::events::{Dialect, Events};
use super::options::Options;
use super::reply::{LEAST_LOGPROB, stop_reason};
use super::texts::{Texts, Update, Usage};
use crate::generation::choice::{Delta, FinishReason};
use crate::generation::sampling::Logprobs;
use crate::http::error::{ApiError, ErrorStyle};
use crate::text::Tokenizer;

/// The replies to one request.
pub(super) struct Chats {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Whether the answer has them.
    logprobs: bool,
    n: usize,
    include_usage: bool,
    /// Which answers have begun.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Chat<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// An answer as a whole.
#[derive(Serialize)]
struct Answer {
    index: usize,
    message: Message,
    logprobs: Option<ContentLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Value>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// A part of an answer.
#[derive(Serialize)]
struct Part {
    index: usize,
    delta: PartOfMessage,
    logprobs: Option<ContentLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

#[derive(Default, Serialize)]
struct PartOfMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct ContentLogprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<Value>,
}

/// A token of the answer, and the tokens that were likeliest in its place.
#[derive(Debug, Serialize)]
struct TokenLogprob {
    #[serde(flatten)]
    token: Likely,
    top_logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Likely {
    token: String,
    logprob: f32,
    /// The token's bytes, which alone may be no text.
    bytes: Vec<u8>,
}

impl Chats {
    pub(super) fn new(
        id: &str,
        model: &str,
        tokenizer: Arc<Tokenizer>,
        logprobs: Option<u32>,
        options: &Options,
    ) -> Self {
        Self {
            id: format!("chatcmpl-{id}"),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            model: model.to_owned(),
            tokenizer,
            logprobs: logprobs.is_some(),
            n: options.n as usize,
            include_usage: options.include_usage,
            begun: Vec::new(),
        }
    }

    fn chat<T>(&self, object: &'static str, choices: Vec<T>, usage: Option<Usage>) -> Chat<'_, T> {
        Chat { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }

    fn chunk(&self, part: Part) -> Chat<'_, Part> {
        self.chat("chat.completion.chunk", vec![part], None)
    }

    /// Of a delta's token, where they were asked for: `best_of` looks at them too.
    fn logprobs(&self, delta: &mut Delta) -> Option<ContentLogprobs> {
        let (token, Logprobs { logprob, top, .. }) = delta.logprobs.take().filter(|_| self.logprobs)?;
        let likely = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.token_bytes(id);
            let token = String::from_utf8_lossy(&bytes).into_owned();
            Likely { token, logprob: logprob.max(LEAST_LOGPROB), bytes }
        };
        let top_logprobs = top.into_iter().map(|(id, logprob)| likely(id, logprob)).collect();
        let content = vec![TokenLogprob { token: likely(token, logprob), top_logprobs }];
        Some(ContentLogprobs { content, refusal: None })
    }

    /// The reply when all answers have ended.
    pub(super) async fn whole(self, mut texts: Texts) -> Result<Json<Value>, ApiError> {
        let mut answers: Vec<Option<Answer>> = Vec::new();
        while let Some(update) = texts.next().await {
            let Update { index, mut delta, .. } = update?;
            let logprobs = self.logprobs(&mut delta);
            if answers.len() <= index {
                answers.resize_with(index + 1, || None);
            }
            answers[index].get_or_insert_with(Answer::default).add(delta, logprobs);
        }
        let best = texts.best(self.n).into_iter().flatten();
        let chosen = best.filter_map(|index| answers.get_mut(index).and_then(Option::take));
        let choices = chosen.enumerate().map(|(index, answer)| Answer { index, ..answer }).collect();
        Ok(Json(json!(self.chat("chat.completion", choices, Some(texts.usage())))))
    }
}

impl Default for Answer {
    fn default() -> Self {
        let message = Message { role: "assistant", content: String::new(), refusal: None };
        Self { index: 0, message, logprobs: None, finish_reason: None, stop_reason: None }
    }
}

impl Answer {
    /// Goes on with what came later.
    fn add(&mut self, delta: Delta, logprobs: Option<ContentLogprobs>) {
        self.message.content += &delta.text;
        if let Some(finish) = &delta.finish {
            self.finish_reason = Some(finish.name());
            self.stop_reason = stop_reason(finish);
        }
        if let Some(later) = logprobs {
            self.logprobs.get_or_insert_default().content.extend(later.content);
        }
    }
}

impl Dialect for Chats {
    fn update(&mut self, update: Update, events: &mut Events) {
        let Update { index, mut delta, .. } = update;
        if self.begun.len() <= index {
            self.begun.resize(index + 1, false);
        }
        let part = |delta| Part { index, delta, logprobs: None, finish_reason: None, stop_reason: None };
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = PartOfMessage { role: Some("assistant"), content: Some(String::new()) };
            events.push(&self.chunk(part(delta)));
        }
        let logprobs = self.logprobs(&mut delta);
        if delta.text.is_empty() && logprobs.is_none() && delta.finish.is_none() {
            return;
        }
        let content = (!delta.text.is_empty() || logprobs.is_some()).then_some(delta.text);
        let finish_reason = delta.finish.as_ref().map(FinishReason::name);
        let stop_reason = delta.finish.as_ref().and_then(stop_reason);
        let part =
            Part { logprobs, finish_reason, stop_reason, ..part(PartOfMessage { role: None, content }) };
        events.push(&self.chunk(part));
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        if self.include_usage {
            events.push(&self.chat("chat.completion.chunk", Vec::<Part>::new(), Some(usage)));
        }
    }

    fn error_style(&self) -> ErrorStyle {
        ErrorStyle::OpenAi
    }
}
