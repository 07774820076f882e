//! Answers of chats in OpenAI's words.

use std::sync::Arc;

use axum::Json;
use serde::Serialize;
use serde_json::{Value, json};

use super::envelope::{Envelope, Reply};
use super::events::Dialect;
use super::options::Options;
use super::reply::{LEAST_LOGPROB, stop_reason};
use super::texts::{Texts, Update, Usage};
use crate::generation::choice::{Delta, FinishReason, Told};
use crate::generation::sampling::Logprobs;
use crate::http::error::{ApiError, ErrorStyle};
use crate::http::event_stream::Events;
use crate::text::Tokenizer;

/// The replies to one request.
pub(super) struct Chats {
    envelope: Envelope,
    tokenizer: Arc<Tokenizer>,
    /// Whether the answer has them.
    logprobs: bool,
    n: usize,
}

/// What parts of answers are called.
const CHUNK: &str = "chat.completion.chunk";

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
            envelope: Envelope::new(format!("chatcmpl-{id}"), model, options),
            tokenizer,
            logprobs: logprobs.is_some(),
            n: options.n as usize,
        }
    }

    fn chunk(&self, part: Part) -> Reply<'_, Part> {
        self.envelope.around(CHUNK, vec![part], None)
    }

    /// Of a delta's token, where they were asked for: `best_of` looks at them too.
    fn logprobs(&self, delta: &mut Delta) -> Option<ContentLogprobs> {
        let Told { token, logprobs: Logprobs { logprob, top, .. }, .. } =
            delta.told.take().filter(|_| self.logprobs)?;
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
        let answers = texts.wholes(self.n, |answer: &mut Answer, Update { mut delta, .. }| {
            let logprobs = self.logprobs(&mut delta);
            answer.add(delta, logprobs);
        });
        let answers = answers.await?.into_iter().enumerate();
        let choices = answers.map(|(index, answer)| Answer { index, ..answer }).collect();
        Ok(Json(json!(self.envelope.around("chat.completion", choices, Some(texts.usage())))))
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
        let part = |delta| Part { index, delta, logprobs: None, finish_reason: None, stop_reason: None };
        if self.envelope.begins(index) {
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
        self.envelope.end(CHUNK, usage, events);
    }

    fn error_style(&self) -> ErrorStyle {
        ErrorStyle::OpenAi
    }
}
