//! Predictions through the project's own routes.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::body;
use super::error::{ApiError, Code};
use super::hosted;
use super::infer::{Admission, Reader, Urgency, already_counted, batches, counted, infer, ready, tokenise};
use super::models::Which;
use super::request_id::RequestId;
use super::wire::{Call, Expect, Format, Item, Nested, Target};
use crate::app::App;
use crate::backend::{Input, Output, Signature};
use crate::hosted::Interface;
use crate::registry::{Batches, Running, Terms, Version};
use crate::tensor::TensorSpec;

/// `POST /models/{name}/predict`
pub(super) async fn by_path(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    request: Request,
) -> Result<Response, ApiError> {
    let version = Arc::clone(app.registry.model(&name)?.version(which.version.as_deref())?);
    let asked = Asked::read(&app, request).await;
    counted(&version, async { asked?.predict(&app, &version, Target::Path, Shape::Any).await }.await)
}

/// `POST /v1/inference`: the model is named in the body.
pub(super) async fn by_body(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    through_body(&app, request, Shape::Any).await
}

/// `POST /v1/inference/batch`: the same for `instances` only.
pub(super) async fn by_body_many(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    through_body(&app, request, Shape::Many).await
}

async fn through_body(app: &App, request: Request, shape: Shape) -> Result<Response, ApiError> {
    let asked = Asked::read(app, request).await?;
    let (model, version) = asked.format.parse_target(&asked.body)?;
    let model = model.ok_or_else(|| ApiError::malformed("the body does not name its \"model\""))?;
    let version = Arc::clone(app.registry.model(&model)?.version(version.as_deref())?);
    let result = asked.predict(app, &version, Target::Body, shape).await;
    counted(&version, result)
}

/// Which bodies a route takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Any,
    Many,
}

/// A request whose body has arrived.
struct Asked {
    id: RequestId,
    headers: HeaderMap,
    body: Bytes,
    format: Format,
    arrived: Instant,
}

impl Asked {
    async fn read(app: &App, request: Request) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let id = parts.extensions.remove::<RequestId>().unwrap_or_else(|| RequestId::of(&parts.headers));
        let format = Format::of_request(&parts.headers)?;
        let deadline = arrived + app.settings.request_timeout;
        let body = body::read(&parts.headers, body, app.settings.max_body_size, deadline).await?;
        Ok(Self { id, headers: parts.headers, body, format, arrived })
    }

    async fn predict(
        self,
        app: &App,
        version: &Version,
        target: Target,
        shape: Shape,
    ) -> Result<Response, ApiError> {
        let running = ready(version)?;
        if let Some(hosting) = running.hosting() {
            return self.predict_hosted(app, version, &running, hosting.interface(), target, shape).await;
        }
        let batches = batches(version, &running)?;
        let expect = match &batches.signature {
            Signature::Tensors { inputs, .. } => Expect::Tensors(inputs),
            Signature::Text { .. } => Expect::Text,
        };
        let max_items = version.source().settings.batching.max_queue_size as usize;
        let call = body::beside_others(self.body.len(), || {
            self.format.parse_call(&self.body, expect, target, max_items)
        })?;
        if shape == Shape::Many && !call.many {
            return Err(ApiError::malformed("this route takes \"instances\""));
        }
        if call.items.is_empty() {
            return Err(ApiError::invalid("\"instances\" is empty"));
        }
        let (priority, timeout_ms) = (call.priority, call.timeout_ms);
        let terms = Urgency { headers: &self.headers, priority, timeout_ms, arrived: self.arrived }
            .terms(app, version)?;
        let many = call.many;
        let inputs = inputs_of(app, version, batches, call, terms).await?;
        let results = infer(version, Arc::clone(&running), inputs, terms, Admission::EachItem).await;
        version.metrics().call_took(self.arrived.elapsed());
        self.log_failed_items(version, &results, many);
        let reply = Reply { version, outputs: output_specs(batches) };
        let format = Format::of_reply(&self.headers, self.format);
        if many { reply.many(format, results) } else { reply.one(format, results) }
    }
}

impl Asked {
    async fn predict_hosted(
        self,
        app: &App,
        version: &Version,
        running: &Arc<Running>,
        interface: &Interface,
        target: Target,
        shape: Shape,
    ) -> Result<Response, ApiError> {
        if interface.streaming {
            return Err(ApiError::invalid(format!(
                "model \"{}\" answers piece by piece: ask /v1/inference/stream",
                version.model()
            )));
        }
        let max_items = version.source().settings.batching.max_queue_size as usize;
        let call = body::beside_others(self.body.len(), || {
            hosted::read(version, interface.reads_body, self.format, &self.body, target, max_items)
        })?;
        if shape == Shape::Many && !call.many {
            return Err(ApiError::malformed("this route takes \"instances\""));
        }
        let (priority, timeout_ms) = (call.priority, call.timeout_ms);
        let terms = Urgency { headers: &self.headers, priority, timeout_ms, arrived: self.arrived }
            .terms(app, version)?;
        let (many, reply) = (call.many, Format::of_reply(&self.headers, self.format));
        let items = hosted::items(call, &self.body, reply);
        let results = infer(version, Arc::clone(running), items, terms, Admission::EachItem).await;
        version.metrics().call_took(self.arrived.elapsed());
        self.log_failed_items(version, &results, many);
        if many { hosted::many(version, reply, results) } else { hosted::one(version, reply, results) }
    }

    /// Items that fail inside a reply of many have no error reply that would be logged.
    fn log_failed_items<T>(&self, version: &Version, results: &[Result<T, ApiError>], many: bool) {
        let mut failures = results.iter().filter_map(|result| result.as_ref().err());
        if let Some(first) = failures.next().filter(|_| many) {
            let (failed, of) = (1 + failures.count(), results.len());
            let (code, reason) = (first.code.name(), first.message.as_str());
            tracing::info!(request_id = %self.id, model = version.model(), failed, of, code, reason, "items failed");
        }
    }
}

async fn inputs_of(
    app: &App,
    version: &Version,
    batches: &Batches,
    call: Call,
    terms: Terms,
) -> Result<Vec<Result<Input, ApiError>>, ApiError> {
    let Signature::Text { tokenizer, .. } = &batches.signature else {
        let lengths = batches.signature.lengths();
        if call.truncate.is_some() && lengths.is_none() {
            return Err(ApiError::invalid(
                "parameter \"truncate\" is for models that read text or pad their inputs",
            ));
        }
        let inputs = call.items.into_iter().map(|item| match item {
            Ok(Item::Tensors(tensors)) => match lengths {
                None => Ok(Input::Tensors(tensors)),
                Some(lengths) => lengths
                    .fit(tensors, call.truncate.unwrap_or(lengths.truncation))
                    .map(Input::Tensors)
                    .map_err(|error| ApiError::invalid(error.to_string())),
            },
            Ok(Item::Text(_)) => Err(ApiError::invalid("the model reads tensors, not text")),
            Err(misfit) => Err(ApiError::invalid(misfit)),
        });
        return Ok(inputs.collect());
    };
    let mut misfits = Vec::new();
    let mut texts = Vec::with_capacity(call.items.len());
    for (index, item) in call.items.into_iter().enumerate() {
        match item {
            Ok(Item::Text(text)) => texts.push(text),
            Ok(Item::Tensors(_)) => misfits.push((index, "the model reads text, not tensors".to_owned())),
            Err(misfit) => misfits.push((index, misfit)),
        }
    }
    let reader = Reader { version, batches, tokenizer, terms };
    let mut inputs = tokenise(app, &reader, texts, call.truncate.unwrap_or(tokenizer.truncates())).await;
    // In ascending order, so that each lands at its own index.
    for (index, misfit) in misfits {
        inputs.insert(index, Err(ApiError::invalid(misfit)));
    }
    Ok(inputs)
}

fn output_specs(batches: &Batches) -> &[TensorSpec] {
    match &batches.signature {
        Signature::Tensors { outputs, .. } => outputs,
        Signature::Text { .. } => &[],
    }
}

struct Reply<'a> {
    version: &'a Version,
    outputs: &'a [TensorSpec],
}

impl Reply<'_> {
    fn one(&self, format: Format, results: Vec<Result<Output, ApiError>>) -> Result<Response, ApiError> {
        let output =
            results.into_iter().next().unwrap_or_else(|| Err(no_result())).map_err(already_counted)?;
        let body = format.write(&Single {
            data: Outputs { specs: self.outputs, tensors: &output },
            model: self.version.model(),
            version: self.version.name(),
        })?;
        Ok(response(format, body))
    }

    /// 200 with each item's own result or error, unless all failed in the same way: then its status.
    fn many(&self, format: Format, results: Vec<Result<Output, ApiError>>) -> Result<Response, ApiError> {
        not_all_failed(&results)?;
        let predictions: Vec<_> = results
            .iter()
            .map(|result| match result {
                Ok(tensors) => Prediction::Data { data: Outputs { specs: self.outputs, tensors } },
                Err(error) => Prediction::Error {
                    error: ItemError { code: error.code.name(), message: &error.message },
                },
            })
            .collect();
        let body =
            format.write(&Many { predictions, model: self.version.model(), version: self.version.name() })?;
        Ok(response(format, body))
    }
}

/// Where all items of a call failed in the same way, so did the call.
pub(super) fn not_all_failed<T>(results: &[Result<T, ApiError>]) -> Result<(), ApiError> {
    let Some(Err(first)) = results.first() else { return Ok(()) };
    if !results.iter().all(|result| result.as_ref().is_err_and(|error| error.code == first.code)) {
        return Ok(());
    }
    let mut error = already_counted(first.clone());
    if results.len() > 1 {
        error.message = format!("all {} instances failed, the first: {}", results.len(), error.message);
    }
    Err(error)
}

pub(super) fn no_result() -> ApiError {
    ApiError::new(Code::ModelFailed, "the model returned nothing")
}

pub(super) fn response(format: Format, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    response
}

#[derive(Serialize)]
struct Single<'a> {
    data: Outputs<'a>,
    model: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
struct Many<'a> {
    predictions: Vec<Prediction<'a>>,
    model: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prediction<'a> {
    Data { data: Outputs<'a> },
    Error { error: ItemError<'a> },
}

/// Why one item of a call has no result.
#[derive(Serialize)]
pub(super) struct ItemError<'a> {
    pub(super) code: &'a str,
    pub(super) message: &'a str,
}

/// The one output's value, or an object of several by name.
struct Outputs<'a> {
    specs: &'a [TensorSpec],
    tensors: &'a Output,
}

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let [tensor] = self.tensors.as_slice() {
            return Nested(tensor).serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(self.tensors.len()))?;
        for (spec, tensor) in self.specs.iter().zip(self.tensors) {
            map.serialize_entry(&spec.name, &Nested(tensor))?;
        }
        map.end()
    }
}
