//! OpenAI's responses: what a model says to a text or a conversation, whole.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::prompts::Prompt;
use super::response_reply::Terms;
use super::response_request::ResponseCall;
use super::{Question, generating_model, generator, refuse_early};
use crate::app::App;
use crate::http::body::{self, Asked};
use crate::http::error::ApiError;
use crate::http::infer::{counted, ready};
use crate::registry::Version;

/// `POST /v1/responses`
pub(in crate::http) async fn responses(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::json(&app, request).await?;
    let call = body::beside_others(asked.body.len(), || ResponseCall::parse(&asked.body))?;
    let version = generating_model(&app, call.model.as_deref())?;
    let result = async { respond(&app, &version, &asked, call).await }.await;
    counted(&version, result.map_err(in_its_own_words))
}

async fn respond(
    app: &App,
    version: &Arc<Version>,
    asked: &Asked,
    call: ResponseCall,
) -> Result<Response, ApiError> {
    let running = ready(version)?;
    let generator = generator(version, &running)?;
    let ResponseCall { input, instructions, metadata, variables, options, .. } = call;
    refuse_early(generator, 1, &options, "input")?;
    let sampling = options.sampling(generator, None)?;
    let prompt = if generator.tokenizer.template().is_some() {
        let conversation = input.into_conversation(instructions.as_deref(), variables);
        Prompt::Ids(conversation.into_ids(app, version, generator, options.add_special_tokens).await?)
    } else {
        Prompt::Text(input.into_prompt(instructions.as_deref(), version.model())?)
    };
    let question = Question {
        prompts: vec![prompt],
        field: "input",
        echo: false,
        logprobs: None,
        // A response ends where its model ends it, or with the context.
        usual_tokens: u32::MAX,
        options: &options,
    };
    let (texts, _) = question.put(app, version, asked).await?;
    let terms = Terms {
        id: asked.id.to_string(),
        model: version.model().to_owned(),
        instructions,
        metadata,
        max_output_tokens: options.max_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
    };
    Ok(terms.whole(texts).await?.into_response())
}

/// Names the field at fault as this route calls it.
fn in_its_own_words(error: ApiError) -> ApiError {
    let param = match error.param {
        Some("messages" | "prompt") => Some("input"),
        Some("max_tokens") => Some("max_output_tokens"),
        other => other,
    };
    ApiError { param, ..error }
}
