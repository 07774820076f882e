//! OpenAI's API: embeddings and the list of models.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Request, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::body::{self, Asked};
use super::error::{ApiError, Code};
use super::infer::{
    Admission, Reader, Urgency, already_counted, batches, counted, infer, only, ready, tokenise, tokenizer,
};
use super::wire::malformed_json;
use crate::app::App;
use crate::backend::{Input, Output, Signature};
use crate::registry::{Model, Terms, Version};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingsRequest {
    input: EmbeddingsInput,
    model: Option<String>,
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
    /// OpenAI's name for an end user, which says nothing about the embeddings.
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

enum EmbeddingsInput {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for EmbeddingsInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

/// Lists are of one kind, which their first element decides: nothing is buffered to try another.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = EmbeddingsInput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"input\" to be a text, a list of texts, token ids, or a list of token ids")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EmbeddingsInput, E> {
        Ok(EmbeddingsInput::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<EmbeddingsInput, A::Error> {
        Ok(match seq.next_element::<First>()? {
            None => EmbeddingsInput::Texts(Vec::new()),
            Some(First::Text(text)) => EmbeddingsInput::Texts(rest_of(seq, text)?),
            Some(First::Id(id)) => EmbeddingsInput::Ids(vec![rest_of(seq, id)?]),
            Some(First::Ids(ids)) => EmbeddingsInput::Ids(rest_of(seq, ids)?),
        })
    }
}

fn rest_of<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut seq: A, first: T) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = seq.next_element()? {
        all.push(next);
    }
    Ok(all)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text, a token id, or a list of token ids")]
enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Serialize)]
pub(super) struct EmbeddingsReply {
    object: &'static str,
    data: Vec<EmbeddingReply>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct EmbeddingReply {
    object: &'static str,
    index: usize,
    embedding: EmbeddingValue,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EmbeddingValue {
    Float(Vec<f32>),
    /// Little-endian `f32`s.
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `POST /v1/embeddings`
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<EmbeddingsReply>, ApiError> {
    let Asked { headers, body, arrived, .. } = Asked::json(&app, request).await?;
    let asked = body::beside_others(body.len(), || parse(&body))?;
    let version = only(&app.registry, asked.model.as_deref(), "makes embeddings", |running| {
        tokenizer(running).is_some()
    })?;
    let urgency = Urgency { headers: &headers, priority: None, timeout_ms: None, arrived };
    let result = async { embed(&app, &version, asked, urgency.terms(&app, &version)?).await }.await;
    version.metrics().call_took(arrived.elapsed());
    counted(&version, result)
}

/// Serde takes a list for an object too, field by field; a client who sends one means something else.
fn parse(body: &[u8]) -> Result<EmbeddingsRequest, ApiError> {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::malformed("the body is a list, expected an object with \"input\""));
    }
    serde_json::from_slice(body).map_err(|error| malformed_json(body, &error))
}

async fn embed(
    app: &App,
    version: &Version,
    asked: EmbeddingsRequest,
    terms: Terms,
) -> Result<Json<EmbeddingsReply>, ApiError> {
    let running = ready(version)?;
    let batches = batches(version, &running)?;
    let Signature::Text { tokenizer, dimensions } = &batches.signature else {
        return Err(ApiError::invalid(format!("model \"{}\" does not make embeddings", version.model())));
    };
    if asked.dimensions.is_some_and(|asked| asked != *dimensions) {
        return Err(ApiError::invalid(format!("the model's embeddings have {dimensions} dimensions")));
    }
    let reader = Reader { version, batches, tokenizer, terms };
    let inputs = inputs_of(app, &reader, asked.input).await?;
    let prompt_tokens = inputs.iter().flatten().map(token_count).sum();
    let results = infer(version, Arc::clone(&running), inputs, terms, Admission::WholeCall).await;
    let mut data = Vec::with_capacity(results.len());
    for (index, result) in results.into_iter().enumerate() {
        // OpenAI's reply has no place for one input's error: the first fails the call.
        let output = result.map_err(already_counted)?;
        let embedding = embedding_value(&output, asked.encoding_format)?;
        data.push(EmbeddingReply { object: "embedding", index, embedding });
    }
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    Ok(Json(EmbeddingsReply { object: "list", data, model: version.model().to_owned(), usage }))
}

fn token_count(input: &Input) -> usize {
    match input {
        Input::Tokens(ids) => ids.len(),
        Input::Tensors(_) => 0,
    }
}

async fn inputs_of(
    app: &App,
    reader: &Reader<'_>,
    input: EmbeddingsInput,
) -> Result<Vec<Result<Input, ApiError>>, ApiError> {
    let Reader { version, tokenizer, .. } = reader;
    let count = match &input {
        EmbeddingsInput::Texts(texts) => texts.len(),
        EmbeddingsInput::Ids(many) => many.len(),
    };
    let most = version.source().settings.batching.max_queue_size as usize;
    if count == 0 {
        return Err(ApiError::invalid("\"input\" is empty"));
    }
    if count > most {
        return Err(ApiError::invalid(format!(
            "\"input\" has {count} texts, the model's queue holds {most}"
        )));
    }
    Ok(match input {
        EmbeddingsInput::Texts(texts) => tokenise(app, reader, texts, tokenizer.truncates()).await,
        EmbeddingsInput::Ids(many) => many
            .into_iter()
            .map(|ids| match tokenizer.check_ids(&ids) {
                Ok(()) => Ok(Input::Tokens(ids)),
                Err(error) => Err(ApiError::invalid(error.to_string())),
            })
            .collect(),
    })
}

fn embedding_value(output: &Output, format: EncodingFormat) -> Result<EmbeddingValue, ApiError> {
    let [tensor] = output.as_slice() else {
        return Err(ApiError::new(Code::ModelFailed, "the model returned no embedding"));
    };
    let floats =
        tensor.data.chunks_exact(4).map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    Ok(match format {
        EncodingFormat::Float => EmbeddingValue::Float(floats.collect()),
        EncodingFormat::Base64 => {
            let little_endian: Vec<u8> = floats.flat_map(f32::to_le_bytes).collect();
            EmbeddingValue::Base64(STANDARD.encode(little_endian))
        }
    })
}

/// `GET /v1/models`
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<_> = app.registry.models().map(|model| described(&app, model)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{name}`
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(&app, app.registry.model(&name)?)))
}

fn described(app: &App, model: &Model) -> Value {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() - app.started.elapsed();
    json!({ "id": model.name(), "object": "model", "created": created.as_secs(), "owned_by": "trustformers" })
}
