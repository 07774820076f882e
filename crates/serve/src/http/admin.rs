//! The operator's view.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use trustformers_batching::queue::Total;

use super::error::{ApiError, Code};
use crate::app::App;
use crate::registry::Running;

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    refresh(&app);
    let text = app.metrics.text().map_err(|error| ApiError::new(Code::ModelFailed, error.to_string()))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// `GET /admin/stats`: what each model version did since the server started, and what it does now.
pub(super) async fn stats(State(app): State<Arc<App>>) -> Json<Value> {
    refresh(&app);
    let models: Vec<_> = app
        .registry
        .versions()
        .map(|version| {
            let queued = version.ready().map_or_else(Total::default, |running| running.queued());
            let mut entry = json!(version.metrics().stats());
            entry["name"] = json!(version.model());
            entry["version"] = json!(version.name());
            entry["state"] = json!(version.state().name());
            entry["queued"] = json!(queued.entries);
            entry["queued_tokens"] = json!(queued.cost);
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

/// What the scheduler of a loaded version shows of itself; nothing for one that is not loaded.
fn add_insight(entry: &mut Value, running: Option<&Running>) {
    let Some((snapshot, suggestions)) = running.map(Running::insight) else { return };
    entry["batching"] = json!(snapshot);
    entry["suggestions"] = json!(suggestions);
}

fn refresh(app: &App) {
    for version in app.registry.versions() {
        version.metrics().refresh(version.ready().map_or(0, |running| running.queued().entries));
    }
}
