//! `/v1/inference/stream`: text as it grows, in the server's own words.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value};

use super::chat_request::Conversation;
use super::events::Dialect;
use super::fields::Fields;
use super::options::Options;
use super::prompts::Prompt;
use super::reply::stop_reason;
use super::texts::{Update, Usage};
use super::{Question, generating_model, generator, refuse_early};
use crate::app::App;
use crate::generation::choice::{Delta, FinishReason};
use crate::http::body::{self, Asked};
use crate::http::error::{ApiError, ErrorStyle};
use crate::http::event_stream::Events;
use crate::http::hosted_stream;
use crate::http::infer::{counted, ready};
use crate::registry::Version;

/// What of a text a model generates where `max_tokens` is not said: all that the context has room for.
const USUAL_TOKENS: u32 = u32::MAX;

/// `POST /v1/inference/stream`
pub(in crate::http) async fn stream(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::json(&app, request).await?;
    if let Some(reply) = hosted_stream::begin(&app, &asked).await {
        return reply;
    }
    let mut fields = body::beside_others(asked.body.len(), || Fields::parse(&asked.body))?;
    let model: Option<String> = fields.optional("model")?;
    let begin = Begin::read(&mut fields)?;
    let parameters = fields.value("parameters").unwrap_or_else(|| Value::Object(Map::new()));
    fields.finish()?;
    let mut parameters = Fields::of("parameters", parameters)?;
    if let Some(name) = ["stream", "stream_options"].into_iter().find(|name| parameters.has(name)) {
        let message =
            format!("\"{name}\" means nothing here: this route always streams, and its usage comes last");
        return Err(ApiError::of_field(name, message));
    }
    let options = Options::read(&mut parameters)?;
    options.need_tokens()?;
    parameters.finish()?;
    let version = generating_model(&app, model.as_deref())?;
    let result = async {
        let field = begin.field();
        let prompts = begin.into_prompts(&app, &version, &options).await?;
        let (usual_tokens, options) = (USUAL_TOKENS, &options);
        let question = Question { prompts, field, echo: false, logprobs: None, usual_tokens, options };
        let (texts, _) = question.put(&app, &version, &asked).await?;
        Ok(super::events::stream(texts, Own, asked.id.to_string(), app.in_flight.enter()))
    };
    counted(&version, result.await)
}

/// What a text goes on from.
enum Begin {
    Prompts(Vec<Prompt>),
    Chat(Conversation),
}

impl Begin {
    /// A prompt or a conversation.
    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        match (fields.has("prompt"), fields.has("messages")) {
            (true, true) => Err(ApiError::of_field("messages", "either \"prompt\" or \"messages\" will do")),
            (false, true) => Conversation::read(fields).map(Self::Chat),
            (_, false) => Prompt::read(fields.value("prompt")).map(Self::Prompts),
        }
    }

    /// Where it stands in the body.
    fn field(&self) -> &'static str {
        match self {
            Self::Prompts(_) => "prompt",
            Self::Chat(_) => "messages",
        }
    }

    async fn into_prompts(
        self,
        app: &App,
        version: &Version,
        options: &Options,
    ) -> Result<Vec<Prompt>, ApiError> {
        let field = self.field();
        match self {
            Self::Prompts(prompts) => Ok(prompts),
            Self::Chat(conversation) => {
                let running = ready(version)?;
                let generator = generator(version, &running)?;
                refuse_early(generator, 1, options, field)?;
                let ids = conversation.into_ids(app, version, generator, options.add_special_tokens);
                Ok(vec![Prompt::Ids(ids.await?)])
            }
        }
    }
}

/// The server's own words.
struct Own;

#[derive(Serialize)]
struct Piece {
    text: String,
    index: usize,
}

#[derive(Serialize)]
struct End {
    finish_reason: &'static str,
    stop_reason: Option<Value>,
    index: usize,
}

#[derive(Serialize)]
struct Total {
    usage: Usage,
}

impl Dialect for Own {
    fn update(&mut self, update: Update, events: &mut Events) {
        let Update { index, delta: Delta { text, finish, .. }, .. } = update;
        if !text.is_empty() {
            events.push(&Piece { text, index });
        }
        if let Some(finish) = finish {
            let finish_reason = FinishReason::name(&finish);
            events.push(&End { finish_reason, stop_reason: stop_reason(&finish), index });
        }
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        events.push(&Total { usage });
    }

    fn error_style(&self) -> ErrorStyle {
        ErrorStyle::Own
    }
}
