//! The operator's view.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use trustformers_batching::BreakerState;

use super::error::{ApiError, Code};
use super::infer::ready;
use super::models::Which;
use crate::app::App;
use crate::generation::insight;
use crate::registry::{Now, Running, Work};

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    app.registry.versions().for_each(|version| version.refresh_metrics());
    let text = app.metrics.text().map_err(|error| ApiError::new(Code::ModelFailed, error.to_string()))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// `GET /admin/stats`: what each model version did since the server started, and what it does now.
pub(super) async fn stats(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<_> = app
        .registry
        .versions()
        .map(|version| {
            let mut entry = json!(version.metrics().stats());
            entry["name"] = json!(version.model());
            entry["version"] = json!(version.name());
            entry["state"] = json!(version.state().name());
            add_insight(&mut entry, version.ready().as_deref());
            entry
        })
        .collect();
    Json(json!({
        "uptime_seconds": app.started.elapsed().as_secs_f64(),
        "connections": app.metrics.connections.get(),
        "models": models,
    }))
}

/// `GET /admin/trace`: the last steps of every model that generates text, in Chrome's trace format.
pub(super) async fn trace(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    // Thousands of events take milliseconds, which other requests must not wait for.
    let written = spawn_blocking(move || {
        let mut events = Vec::new();
        for (process, version) in app.registry.versions().enumerate() {
            if let Some(generator) = version.ready().as_ref().and_then(|running| running.generator()) {
                let name = format!("{} {}", version.model(), version.name());
                events.extend(generator.engine.trace(process, &name, app.started.elapsed()));
            }
        }
        Json(json!({ "displayTimeUnit": "ms", "traceEvents": events })).into_response()
    });
    written.await.map_err(|panic| ApiError::new(Code::ModelFailed, format!("no trace was written: {panic}")))
}

/// `POST /admin/models/{name}/reset_breaker`: lets requests in again, whatever the model did before.
pub(super) async fn reset_breaker(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let version = app.registry.model(&name)?.version(which.version.as_deref())?;
    let running = ready(version)?;
    running.reset_breaker();
    tracing::info!(model = version.model(), version = version.name(), "breaker reset");
    let breaker = breaker(&running.now());
    Ok(Json(json!({ "name": version.model(), "version": version.name(), "breaker": breaker })))
}

/// A breaker that never opens is always closed.
fn breaker(now: &Now) -> Value {
    let state = match now.breaker {
        None | Some(BreakerState::Closed) => "closed",
        Some(BreakerState::HalfOpen) => "half_open",
        Some(BreakerState::Open { .. }) => "open",
    };
    json!({ "state": state, "retry_after_seconds": now.breaker_pause.map(|wait| wait.as_secs_f64()) })
}

/// What the scheduler of a loaded version shows of itself; nothing for one that is not loaded.
fn add_insight(entry: &mut Value, running: Option<&Running>) {
    match running.map(|running| &running.work) {
        None => {}
        Some(Work::Batches(batches)) => {
            let (snapshot, suggestions) = batches.insight();
            entry["batching"] = json!(snapshot);
            entry["suggestions"] = json!(suggestions);
        }
        Some(Work::Hosted(hosting)) => {
            let (snapshot, suggestions) = hosting.insight();
            entry["batching"] = json!(snapshot);
            entry["suggestions"] = json!(suggestions);
        }
        Some(Work::Generation(generator)) => {
            let engine = &generator.engine;
            entry["generation"] = insight::describe(&engine.stats(), &engine.config());
        }
    }
}
