//! Liveness and readiness.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use crate::app::App;
use crate::registry;

/// `GET /health`: the process answers.
pub(super) async fn summary(State(app): State<Arc<App>>) -> impl IntoResponse {
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs_f64(),
        "models": app.registry.models().count(),
    }))
}

/// `GET /health/live`: the process answers.
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

/// `GET /health/ready`: 200 when every version that was to be loaded answers, else 503 with the reasons.
pub(super) async fn ready(State(app): State<Arc<App>>) -> impl IntoResponse {
    // Looked at once, so that the list and the word agree.
    let states: Vec<_> = app.registry.versions().map(|version| (version, version.state())).collect();
    let models: Vec<_> = states
        .iter()
        .map(|(version, state)| {
            let mut entry = json!({
                "name": version.model(), "version": version.name(), "state": state.name(),
            });
            if let registry::State::Failed(reason) = state {
                entry["reason"] = json!(reason);
            }
            entry
        })
        .collect();
    let any = |wanted: fn(&registry::State) -> bool| states.iter().any(|(_, state)| wanted(state));
    let (status, word) = if app.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if any(|state| matches!(state, registry::State::Failed(_))) {
        (StatusCode::SERVICE_UNAVAILABLE, "failed")
    } else if any(|state| *state == registry::State::Loading) {
        (StatusCode::SERVICE_UNAVAILABLE, "loading")
    } else {
        (StatusCode::OK, "ready")
    };
    (status, Json(json!({ "status": word, "models": models })))
}
