//! OpenAI's API: embeddings and the list of models.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Request, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body;
use super::error::{ApiError, Code};
use super::infer::{Terms, infer, ready, tokenise, tokenizer};
use super::wire::Format;
use crate::app::App;
use crate::backend::{Input, Output};
use crate::registry::{Registry, Running, Unavailable, Version};

#[derive(Deserialize)]
struct EmbeddingsRequest {
    input: EmbeddingsInput,
    model: Option<String>,
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"input\" must be a text, a list of texts, token ids, or a list of token ids")]
enum EmbeddingsInput {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
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
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    if Format::of_request(&parts.headers)? != Format::Json {
        return Err(ApiError::new(Code::UnsupportedMediaType, "this route takes application/json"));
    }
    let timeout = app.settings.request_timeout;
    let body = body::read(&parts.headers, body, app.settings.max_body_size, arrived + timeout).await?;
    let asked: EmbeddingsRequest =
        serde_json::from_slice(&body).map_err(|error| ApiError::malformed(format!("the body: {error}")))?;
    let version = text_model(&app.registry, asked.model.as_deref())?;
    let terms = Terms::new(&parts.headers, None, None, arrived, timeout)?;
    let result = embed(&version, asked, terms).await;
    version.metrics().call_took(arrived.elapsed());
    result.map_err(|mut error| {
        if !error.counted {
            version.metrics().ended(Some(error.code.name()));
            error.counted = true;
        }
        error
    })
}

async fn embed(
    version: &Version,
    asked: EmbeddingsRequest,
    terms: Terms,
) -> Result<Json<EmbeddingsReply>, ApiError> {
    let running = ready(version)?;
    let inputs = inputs_of(version, &running, asked.input).await?;
    let prompt_tokens = inputs.iter().flatten().map(token_count).sum();
    let results = infer(version, running, inputs, terms).await;
    let mut data = Vec::with_capacity(results.len());
    for (index, result) in results.into_iter().enumerate() {
        // OpenAI's reply has no place for one input's error: the first fails the call.
        let output = result.map_err(|mut error| {
            error.counted = true;
            error
        })?;
        let embedding = embedding_value(&output, asked.encoding_format, asked.dimensions)?;
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
    version: &Version,
    running: &Running,
    input: EmbeddingsInput,
) -> Result<Vec<Result<Input, ApiError>>, ApiError> {
    let tokenizer = tokenizer(running).ok_or_else(|| {
        ApiError::invalid(format!("model \"{}\" does not make embeddings", version.model()))
    })?;
    let check = |ids: Vec<u32>| {
        tokenizer.check_ids(&ids).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Input::Tokens(ids))
    };
    let inputs: Vec<_> = match input {
        EmbeddingsInput::Text(text) => tokenise(tokenizer, vec![text], true).await,
        EmbeddingsInput::Texts(texts) => tokenise(tokenizer, texts, true).await,
        EmbeddingsInput::Ids(ids) => vec![check(ids)],
        EmbeddingsInput::ManyIds(many) => many.into_iter().map(check).collect(),
    };
    match inputs.is_empty() {
        true => Err(ApiError::invalid("\"input\" is empty")),
        false => Ok(inputs),
    }
}

fn embedding_value(
    output: &Output,
    format: EncodingFormat,
    dimensions: Option<usize>,
) -> Result<EmbeddingValue, ApiError> {
    let [tensor] = output.as_slice() else {
        return Err(ApiError::new(Code::ModelFailed, "the model returned no embedding"));
    };
    if dimensions.is_some_and(|asked| asked != tensor.elements()) {
        return Err(ApiError::invalid(format!(
            "the model's embeddings have {} dimensions",
            tensor.elements()
        )));
    }
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

/// The named model, or the only one that reads text.
fn text_model(registry: &Registry, name: Option<&str>) -> Result<Arc<Version>, ApiError> {
    if let Some(name) = name {
        return Ok(Arc::clone(registry.model(name)?.version(None)?));
    }
    let mut found = registry
        .models()
        .filter_map(|model| model.default_version())
        .filter(|version| version.ready().is_some_and(|running| tokenizer(&running).is_some()));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        (None, _) => Err(Unavailable::NoModel {
            name: String::new(),
            known: "none that makes embeddings is ready".to_owned(),
        }
        .into()),
        _ => Err(ApiError::malformed("more than one model makes embeddings: name one in \"model\"")),
    }
}

/// `GET /v1/models`
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() - app.started.elapsed();
    let data: Vec<_> = app
        .registry
        .models()
        .map(|model| {
            json!({ "id": model.name(), "object": "model", "created": created.as_secs(), "owned_by": "trustformers" })
        })
        .collect();
    Json(json!({ "object": "list", "data": data }))
}
