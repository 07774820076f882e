//! Models: list, inspect, load, unload.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::Instrument;

use super::error::{ApiError, Code};
use super::request_id::RequestId;
use crate::app::App;
use crate::backend::Signature;
use crate::registry::{Model, Origin, State as ModelState, Unavailable, Version};

/// `?version=`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    pub(super) version: Option<String>,
}

impl From<Unavailable> for ApiError {
    fn from(unavailable: Unavailable) -> Self {
        let code = match unavailable {
            Unavailable::NoModel { .. } => Code::ModelNotFound,
            Unavailable::NoVersion { .. } => Code::VersionNotFound,
            Unavailable::NotReady { .. } => Code::ModelNotReady,
        };
        ApiError::new(code, unavailable.to_string())
    }
}

/// `GET /models` and `GET /admin/models`
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<_> = app.registry.models().map(describe).collect();
    Json(json!({ "models": models }))
}

/// `GET /models/{name}`
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(describe(app.registry.model(&name)?)))
}

/// `POST /models/{name}/load`: answers when it is ready or has failed. One that answers is loaded anew.
pub(super) async fn load(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    Extension(id): Extension<RequestId>,
) -> Result<Json<Value>, ApiError> {
    let model = app.registry.model(&name)?;
    let version = Arc::clone(model.version(which.version.as_deref())?);
    // On a task of its own, so that a client who leaves does not leave a half-loaded model behind.
    let span = tracing::info_span!("load", request_id = %id);
    let loading = tokio::spawn(async move { version.load().await }.instrument(span)).await;
    match loading {
        Ok(Ok(())) => Ok(Json(describe(model))),
        Ok(Err(failed)) => Err(ApiError::new(Code::ModelFailed, failed.to_string())),
        Err(panic) => Err(ApiError::new(Code::ModelFailed, panic.to_string())),
    }
}

/// `POST /models/{name}/unload`: answers when what was queued has run and the model is freed.
pub(super) async fn unload(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    Extension(id): Extension<RequestId>,
) -> Result<Json<Value>, ApiError> {
    let model = app.registry.model(&name)?;
    let version = Arc::clone(model.version(which.version.as_deref())?);
    let span = tracing::info_span!("unload", request_id = %id);
    let unloading = tokio::spawn(async move { version.unload().await }.instrument(span)).await;
    unloading.map_err(|panic| ApiError::new(Code::ModelFailed, panic.to_string()))?;
    Ok(Json(describe(model)))
}

/// A model as clients see it.
pub(crate) fn describe(model: &Model) -> Value {
    let default = model.default_version();
    let versions: Vec<_> = model
        .versions()
        .iter()
        .map(|version| {
            describe_version(version, default.is_some_and(|default| Arc::ptr_eq(default, version)))
        })
        .collect();
    let mut entry = json!({ "name": model.name(), "versions": versions });
    let running = default.and_then(|version| version.ready());
    if let Some(interface) = running.as_ref().and_then(|running| running.hosting()).map(|h| h.interface()) {
        let inputs = interface.inputs.iter().map(|(name, schema)| json!({ "name": name, "schema": schema }));
        entry["inputs"] = inputs.collect();
        entry["outputs"] = json!([{ "name": "output", "schema": interface.output }]);
        entry["streaming"] = json!(interface.streaming);
    } else if let Some(running) = running {
        match running.batches().map(|batches| &batches.signature) {
            None => {
                entry["inputs"] = json!([{ "name": "prompt", "dtype": "string", "shape": [] }]);
                entry["outputs"] = json!([{ "name": "text", "dtype": "string", "shape": [] }]);
            }
            Some(Signature::Tensors { inputs, outputs, .. }) => {
                entry["inputs"] = json!(inputs);
                entry["outputs"] = json!(outputs);
            }
            Some(Signature::Text { dimensions, .. }) => {
                entry["inputs"] = json!([{ "name": "text", "dtype": "string", "shape": [] }]);
                entry["outputs"] = json!([{ "name": "embedding", "dtype": "f32", "shape": [dimensions] }]);
            }
        }
    }
    entry
}

fn describe_version(version: &Version, default: bool) -> Value {
    let source = version.source();
    let state = version.state();
    let mut entry = json!({
        "version": version.name(),
        "state": state.name(),
        "format": source.format(),
        "default": default,
    });
    if let Origin::Files { .. } = source.origin {
        entry["instances"] = json!(source.settings.instances);
        entry["threads"] = json!(version.threads());
    }
    if let ModelState::Failed(reason) = &state {
        entry["reason"] = json!(reason);
    }
    if let Some(running) = version.ready() {
        entry["device"] = json!(running.device);
        entry["load_seconds"] = json!(running.load_time.as_secs_f64());
    }
    entry
}
