//! Liveness and readiness.

use serde_json::json;

use crate::fixtures::minilm;
use crate::harness::{INSTANT, start, start_settled, start_unready};

#[test]
fn health_says_which_program_runs_and_since_when() {
    let running = start(INSTANT);
    let health = running.get("/health").ok();
    assert_eq!((&health["status"], &health["models"]), (&json!("ok"), &json!(1)));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(running.get("/health/live").status, 200);
}

#[test]
fn readiness_names_every_model_with_its_state() {
    let running = start(&format!("{INSTANT}{}models.minilm.load = false\n", minilm()));
    let reply = running.get("/health/ready").ok();
    let expected = json!({ "status": "ready", "models": [
        { "name": "delay", "version": "1", "state": "ready" },
        { "name": "minilm", "version": "1", "state": "unloaded" },
    ]});
    assert_eq!(reply, expected);
}

#[test]
fn a_server_never_says_ready_while_a_model_is_still_to_be_loaded() {
    for _ in 0..5 {
        let running = start_unready(&format!("{INSTANT}{}", minilm()));
        let mut connection = running.connect();
        loop {
            let reply = connection.request("GET", "/health/ready", &[], b"");
            let body = reply.json();
            let models = body["models"].as_array().unwrap();
            if models.iter().all(|model| model["state"] == "ready") {
                assert_eq!((reply.status, &body["status"]), (200, &json!("ready")));
                break;
            }
            assert_eq!((reply.status, &body["status"]), (503, &json!("loading")), "{body}");
        }
    }
}

#[test]
fn a_model_that_failed_makes_the_server_unready_with_its_reason_and_stays_alive() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let path = crate::harness::quoted(folder.path());
    let running = start_settled(&format!("{INSTANT}models.broken.path = {path}\n"));
    let reply = running.get("/health/ready");
    assert_eq!((reply.status, &reply.json()["status"]), (503, &json!("failed")));
    let broken = &reply.json()["models"][0];
    assert_eq!((&broken["name"], &broken["state"]), (&json!("broken"), &json!("failed")));
    assert!(broken["reason"].as_str().unwrap().contains("config.json"), "{broken}");
    running.still_serves();
}
