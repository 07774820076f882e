//! Texts as a language model's tokens, and back: what a prompt will cost, and what tokens mean.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::Asked;
use super::completions::fields::Fields;
use super::completions::{Conversation, Prompt, encode, generating_model, generator};
use super::error::ApiError;
use super::infer::ready;
use crate::app::App;

/// What becomes tokens.
enum Source {
    Text(String),
    Conversation(Conversation),
}

#[derive(Serialize)]
pub(super) struct Tokens {
    count: usize,
    /// The most tokens of a prompt and what follows it.
    max_model_len: u32,
    tokens: Vec<u32>,
    /// As the vocabulary spells them, where that was asked for.
    token_strs: Option<Vec<String>>,
}

/// `POST /tokenize`
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Tokens>, ApiError> {
    let asked = Asked::json(&app, request).await?;
    let mut fields = Fields::parse(&asked.body)?;
    let model: Option<String> = fields.optional("model")?;
    let source = match fields.value("prompt") {
        Some(Value::String(prompt)) => Source::Text(prompt),
        Some(_) => return Err(ApiError::of_field("prompt", "\"prompt\" has to be a text")),
        None => Source::Conversation(Conversation::read(&mut fields)?),
    };
    let special = fields.optional("add_special_tokens")?;
    let spelled = fields.or("return_token_strs", false)?;
    fields.finish()?;
    let version = generating_model(&app, model.as_deref())?;
    let running = ready(&version)?;
    let generator = generator(&version, &running)?;
    let tokenizer = &generator.tokenizer;
    let tokens = match source {
        Source::Text(text) => {
            encode(&app, tokenizer, vec![Prompt::Text(text)], special.unwrap_or(true)).await?.concat()
        }
        Source::Conversation(conversation) => {
            conversation.into_ids(&app, &version, generator, special).await?
        }
    };
    let spell = |&id: &u32| tokenizer.token(id).unwrap_or_default().to_owned();
    let token_strs = spelled.then(|| tokens.iter().map(spell).collect());
    Ok(Json(Tokens { count: tokens.len(), max_model_len: generator.context, tokens, token_strs }))
}

#[derive(Serialize)]
pub(super) struct Detokenized {
    prompt: String,
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Detokenized>, ApiError> {
    let asked = Asked::json(&app, request).await?;
    let mut fields = Fields::parse(&asked.body)?;
    let model: Option<String> = fields.optional("model")?;
    let tokens: Option<Vec<u32>> = fields.optional("tokens")?;
    fields.finish()?;
    let tokens = tokens.ok_or_else(|| ApiError::of_field("tokens", "\"tokens\" is missing"))?;
    let version = generating_model(&app, model.as_deref())?;
    let running = ready(&version)?;
    let decoded = generator(&version, &running)?.tokenizer.decode(&tokens, false);
    let prompt = decoded.map_err(|error| ApiError::of_field("tokens", error.to_string()))?;
    Ok(Json(Detokenized { prompt }))
}

/// Which model's tokenizer is asked about.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    model: Option<String>,
}

/// `GET /tokenizer_info`: tokenizer_config.json and the chat template, wherever that was found.
pub(super) async fn tokenizer_info(
    State(app): State<Arc<App>>,
    Query(which): Query<Which>,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let version = generating_model(&app, which.model.as_deref())?;
    let running = ready(&version)?;
    let tokenizer = &generator(&version, &running)?.tokenizer;
    let mut info = tokenizer.config().clone();
    info.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
    if let Some(template) = tokenizer.template() {
        info.insert("chat_template".to_owned(), template.source().into());
    }
    Ok(Json(info))
}
