//! Listing, inspecting, loading and unloading models.

use serde_json::{Value, json};

use crate::fixtures::minilm;
use crate::harness::{BUSY, DELAY, INSTANT, MINILM, start, threads_named};

#[test]
fn models_are_listed_with_their_versions_inputs_and_outputs() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    let list = running.get("/models").ok();
    assert_eq!(list, running.get("/admin/models").ok());
    let models = list["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    let data = json!([{ "name": "data", "dtype": "f32", "shape": [-1] }]);
    assert_eq!(
        (&models[0]["name"], &models[0]["inputs"], &models[0]["outputs"]),
        (&json!("delay"), &data, &data)
    );
    let version = &models[0]["versions"][0];
    let expected = [
        ("version", json!("1")),
        ("state", json!("ready")),
        ("format", json!("builtin")),
        ("instances", json!(1)),
        ("default", json!(true)),
        ("device", json!("cpu")),
    ];
    for (key, value) in expected {
        assert_eq!(version[key], value, "{key}");
    }
    assert!(version["load_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(models[1]["versions"][0]["format"], "huggingface");
    assert_eq!(models[1]["inputs"], json!([{ "name": "text", "dtype": "string", "shape": [] }]));
    assert_eq!(models[1]["outputs"], json!([{ "name": "embedding", "dtype": "f32", "shape": [384] }]));
    assert_eq!(running.get("/models/minilm").ok(), models[1]);
}

fn state(model: &Value) -> &str {
    model["versions"][0]["state"].as_str().unwrap()
}

#[test]
fn an_unloaded_model_answers_no_more_until_it_is_loaded_again() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    assert_eq!(state(&running.post("/models/minilm/unload", &json!(null)).ok()), "unloaded");
    assert_eq!(threads_named("minilm:"), 0, "its threads have ended");
    let refused = running.post(MINILM, &json!("text"));
    assert_eq!((refused.status, refused.code().as_str()), (503, "model_not_ready"));
    assert_eq!(running.get("/health/ready").ok()["status"], "ready", "what was asked for is no failure");
    running.still_serves();
    assert_eq!(state(&running.post("/models/minilm/load?version=1", &json!(null)).ok()), "ready");
    assert_eq!(running.post(MINILM, &json!("text")).status, 200);
}

#[test]
fn unloading_twice_and_loading_twice_do_no_harm() {
    let running = start(INSTANT);
    for _ in 0..2 {
        assert_eq!(state(&running.post("/models/delay/unload", &json!(null)).ok()), "unloaded");
    }
    for _ in 0..2 {
        assert_eq!(state(&running.post("/models/delay/load", &json!(null)).ok()), "ready");
    }
    running.still_serves();
}

#[test]
fn unloading_runs_what_is_queued_first() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let unloaded = running.post("/models/delay/unload", &json!(null)).ok();
    assert_eq!(state(&unloaded), "unloaded");
    assert_eq!(busy.reply().ok()["predictions"].as_array().unwrap().len(), 2);
    assert_eq!(running.count("delay", "executed_items"), 2);
}

#[test]
fn a_model_that_unloads_says_so_and_takes_nothing_new() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let mut unloading = running.post_later("/models/delay/unload", &json!(null));
    running.eventually("unloading", |running| state(&running.get("/models/delay").ok()) == "unloading");
    let refused = running.post(DELAY, &json!([1.0]));
    assert_eq!((refused.status, refused.code().as_str()), (503, "model_not_ready"));
    assert!(refused.message().contains("is being unloaded"), "{}", refused.message());
    assert_eq!(busy.reply().status, 200);
    assert_eq!(state(&unloading.reply().ok()), "unloaded");
}

#[test]
fn a_client_that_leaves_while_a_model_loads_does_not_stop_the_loading() {
    let running = start(&format!("{INSTANT}{}models.minilm.load = false\n", minilm()));
    let loading = running.post_later("/models/minilm/load", &json!(null));
    running.eventually("loading", |running| state(&running.get("/models/minilm").ok()) != "unloaded");
    drop(loading);
    running.eventually("ready", |running| state(&running.get("/models/minilm").ok()) == "ready");
}

#[test]
fn reloading_answers_with_the_old_until_the_new_can() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let mut reloading = running.post_later("/models/delay/load", &json!(null));
    assert_eq!(state(&reloading.reply().ok()), "ready");
    assert_eq!(busy.reply().status, 200, "the old one finished its queue");
    running.still_serves();
}
