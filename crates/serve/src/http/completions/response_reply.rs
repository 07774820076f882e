//! Responses in OpenAI's words.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::texts::{Texts, Update, Usage};
use crate::generation::choice::FinishReason;
use crate::http::error::ApiError;

/// What a response says of itself beside its text.
pub(super) struct Terms {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) metadata: Map<String, Value>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
}

/// A response. The fields that nothing here can change are told because clients look for them.
#[derive(Serialize)]
pub(super) struct Reply {
    id: String,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    status: &'static str,
    background: bool,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    model: String,
    output: [OutputMessage; 1],
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    reasoning: Value,
    store: bool,
    temperature: f32,
    text: Value,
    tool_choice: &'static str,
    tools: [Value; 0],
    top_p: f32,
    truncation: &'static str,
    usage: ResponseUsage,
    metadata: Map<String, Value>,
}

#[derive(Serialize)]
struct OutputMessage {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    status: &'static str,
    role: &'static str,
    content: [OutputText; 1],
}

#[derive(Serialize)]
struct OutputText {
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
    annotations: [Value; 0],
    logprobs: [Value; 0],
}

#[derive(Serialize)]
struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    output_tokens_details: OutputTokens,
    total_tokens: usize,
}

#[derive(Serialize)]
struct InputTokens {
    cached_tokens: usize,
    /// OpenAI counts here what it charges for.
    cache_write_tokens: usize,
}

#[derive(Serialize)]
struct OutputTokens {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let cached_tokens = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokens { cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokens { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        }
    }
}

/// The text so far, and whether its length ended it.
#[derive(Default)]
struct Whole {
    text: String,
    cut: bool,
}

impl Terms {
    /// The reply when the text has ended.
    pub(super) async fn whole(self, mut texts: Texts) -> Result<Json<Reply>, ApiError> {
        let created_at = now();
        let wholes = texts.wholes(1, |whole: &mut Whole, Update { delta, .. }| {
            whole.text += &delta.text;
            whole.cut |= delta.finish == Some(FinishReason::Length);
        });
        let Whole { text, cut } = wholes.await?.pop().unwrap_or_default();
        let status = if cut { "incomplete" } else { "completed" };
        let content = OutputText { kind: "output_text", text, annotations: [], logprobs: [] };
        let message = OutputMessage {
            kind: "message",
            id: format!("msg_{}", self.id),
            status,
            role: "assistant",
            content: [content],
        };
        Ok(Json(Reply {
            id: format!("resp_{}", self.id),
            object: "response",
            created_at,
            completed_at: (!cut).then(now),
            status,
            background: false,
            error: None,
            incomplete_details: cut.then(|| json!({ "reason": "max_output_tokens" })),
            instructions: self.instructions,
            max_output_tokens: self.max_output_tokens,
            model: self.model,
            output: [message],
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: json!({ "effort": null, "summary": null }),
            store: false,
            temperature: self.temperature,
            text: json!({ "format": { "type": "text" } }),
            tool_choice: "auto",
            tools: [],
            top_p: self.top_p,
            truncation: "disabled",
            usage: texts.usage().into(),
            metadata: self.metadata,
        }))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
