//! Chats: a conversation becomes a prompt, and the text after it the model's answer.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::chat_reply::Chats;
use super::chat_request::{ChatCall, Conversation};
use super::prompts::{Prompt, into_ids};
use super::{Question, events, generating_model, generator, refuse_early};
use crate::app::App;
use crate::generation::Generator;
use crate::http::body::{self, Asked};
use crate::http::error::ApiError;
use crate::http::infer::{counted, ready};
use crate::registry::Version;
use crate::text::RenderOptions;

/// `POST /v1/chat/completions`
pub(in crate::http) async fn chats(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::json(&app, request).await?;
    let call = body::beside_others(asked.body.len(), || ChatCall::parse(&asked.body))?;
    let version = generating_model(&app, call.model.as_deref())?;
    let result = async { chat(&app, &version, &asked, call).await }.await;
    counted(&version, result)
}

async fn chat(
    app: &App,
    version: &Arc<Version>,
    asked: &Asked,
    call: ChatCall,
) -> Result<Response, ApiError> {
    let running = ready(version)?;
    let generator = generator(version, &running)?;
    let ChatCall { conversation, logprobs, options, .. } = call;
    refuse_early(generator, 1, &options, "messages")?;
    let prompt = conversation.into_ids(app, version, generator, options.add_special_tokens).await?;
    let question = Question {
        prompts: vec![Prompt::Ids(prompt)],
        field: "messages",
        echo: false,
        logprobs,
        // An answer ends where its model ends it, or with the context.
        usual_tokens: u32::MAX,
        options: &options,
    };
    let (texts, _) = question.put(app, version, asked).await?;
    let replies = Chats::new(asked.id.as_str(), version.model(), texts.tokenizer(), logprobs, &options);
    if options.stream {
        return Ok(events::stream(texts, replies, asked.id.to_string(), app.in_flight.enter()));
    }
    Ok(replies.whole(texts).await?.into_response())
}

impl Conversation {
    /// The token ids of its prompt. `special`: with what the tokenizer puts around a text, which templates
    /// usually write themselves.
    pub(in crate::http) async fn into_ids(
        self,
        app: &App,
        version: &Version,
        generator: &Generator,
        special: Option<bool>,
    ) -> Result<Vec<u32>, ApiError> {
        let of_messages = |message: String| ApiError::of_field("messages", message);
        let Some(template) = generator.tokenizer.template() else {
            let name = version.model();
            return Err(of_messages(format!(
                "model \"{name}\" has no chat template: ask /v1/completions with a prompt"
            )));
        };
        let options = RenderOptions {
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            variables: self.variables,
            now: Some(SystemTime::now()),
        };
        let bytes =
            self.messages.iter().filter_map(|message| message["content"].as_str()).map(str::len).sum();
        let messages: &[Value] = &self.messages;
        let prompt = body::beside_others(bytes, || template.render(messages, &options))
            .map_err(|error| of_messages(error.to_string()))?;
        let ids = into_ids(vec![Prompt::Text(prompt)], app, generator, special.unwrap_or(false)).await;
        ids.map(|ids| ids.concat()).map_err(|error| ApiError { param: Some("messages"), ..error })
    }
}
