//! Texts while their model comes and goes: stopped servers, unloaded and reloaded models.

use serde_json::{Value, json};

use crate::client::Connection;
use crate::completions::{COMPLETIONS, SEQUENCES_RUNNING, TINYLM, begun, endless, events, used_blocks, with};
use crate::harness::{Running, start, threads_named};

/// What is left of a stream: its text's end, or its error's code.
fn outcome(connection: &mut Connection) -> String {
    let rest = connection.read_until("data: [DONE]\n\n");
    let events = rest.split("\n\n").filter_map(|event| event.split_once('{'));
    let events = events.filter_map(|(_, event)| serde_json::from_str::<Value>(&format!("{{{event}")).ok());
    let end = |event: Value| {
        let error = event["error"]["code"].as_str().map(str::to_owned);
        error.or_else(|| event["choices"][0]["finish_reason"].as_str().map(str::to_owned))
    };
    events.filter_map(end).last().expect("an end")
}

#[test]
fn an_urgent_text_runs_before_one_that_has_waited_for_longer() {
    let running = start(&format!("{TINYLM}models.tinylm.batching.continuous.max_sequences = 1\n"));
    let held = begun(&running, &endless(2000));
    let waits = running.post_later(COMPLETIONS, &with(&endless(2000), json!({ "priority": "low" })));
    running.eventually("one runs and one waits", |running| {
        running.metric(SEQUENCES_RUNNING) == 1.0 && running.queued("tinylm") == 1
    });
    let mut urgent = running.post_later(COMPLETIONS, &with(&endless(2), json!({ "priority": "high" })));
    drop(held);
    urgent.reply().ok();
    assert_eq!(running.outcomes("tinylm", "ok"), 1.0, "it came after the other");
    drop(waits);
    running.eventually("its blocks are free", |running| used_blocks(running) == 0.0);
}

#[test]
fn a_stopping_server_lets_streams_end() {
    let running = start(TINYLM);
    let mut text = begun(&running, &endless(600));
    running.server.stop();
    assert_eq!(outcome(&mut text), "length");
    assert_eq!(threads_named("tinylm"), 0);
}

#[test]
fn a_stream_that_is_cut_off_says_so() {
    let running = start(&format!("server.shutdown_timeout = '50ms'\n{TINYLM}"));
    let mut text = begun(&running, &endless(2000));
    running.server.stop();
    assert_eq!(outcome(&mut text), "shutting_down");
}

#[test]
fn an_unloaded_model_ends_its_texts_first() {
    let running = start(TINYLM);
    let mut text = begun(&running, &endless(600));
    running.post("/models/tinylm/unload", &json!(null)).ok();
    assert_eq!(outcome(&mut text), "length");
    let reply = running.post(COMPLETIONS, &with(&endless(1), json!({ "model": "tinylm" })));
    assert_eq!((reply.status, reply.code().as_str()), (503, "model_not_ready"));
    assert_eq!(threads_named("tinylm"), 0);
    running.post("/models/tinylm/load", &json!(null)).ok();
    assert_eq!(running.post(COMPLETIONS, &endless(1)).status, 200);
}

#[test]
fn a_reload_loses_no_text() {
    // One thread: LibTorch's helpers have their caller's name.
    let running = start(&format!("{TINYLM}models.tinylm.threads = 1\n"));
    let mut texts: Vec<_> = (0..4).map(|_| begun(&running, &endless(300))).collect();
    let mut reload = running.post_later("/models/tinylm/load", &json!(null));
    let during: Vec<_> = (0..8).map(|_| running.post(COMPLETIONS, &endless(20))).collect();
    reload.reply().ok();
    assert!(during.iter().all(|reply| reply.status == 200));
    assert!(texts.iter_mut().all(|text| outcome(text) == "length"));
    // One runs steps, and one tells callers.
    assert_eq!(threads_named("tinylm"), 2, "those of the old one have ended");
    assert_eq!(used_blocks(&running), 0.0);
}

/// Which samples of the gauges of texts and blocks are shown.
fn gauges(running: &Running) -> Vec<String> {
    let text = running.get("/metrics").text();
    let of = |line: &&str| {
        line.starts_with("trustformers_kv_blocks{") || line.starts_with("trustformers_sequences{")
    };
    text.lines().filter(of).map(str::to_owned).collect()
}

#[test]
fn the_gauges_are_those_of_the_model_that_answers() {
    let running = start(TINYLM);
    running.post(COMPLETIONS, &endless(40)).ok();
    let cached = "trustformers_kv_blocks{model=\"tinylm\",state=\"cached\",version=\"1\"}";
    assert!(running.metric(cached) > 0.0);
    assert_eq!(gauges(&running).len(), 6);
    running.post("/models/tinylm/load", &json!(null)).ok();
    assert_eq!(running.metric(cached), 0.0, "the replacement has cached nothing");
    running.post(COMPLETIONS, &endless(40)).ok();
    let mut text = begun(&running, &endless(600));
    running.post("/models/tinylm/unload", &json!(null)).ok();
    assert_eq!(outcome(&mut text), "length");
    assert_eq!(gauges(&running), [""; 0]);
    running.post("/models/tinylm/load", &json!(null)).ok();
    assert_eq!(gauges(&running).len(), 6);
    assert_eq!((used_blocks(&running), running.metric(cached)), (0.0, 0.0));
}

#[test]
fn a_text_that_a_stop_string_ends_has_ended_like_any_other() {
    let running = start(TINYLM);
    let whole = running.post(COMPLETIONS, &endless(30)).ok();
    let stop: String = whole["choices"][0]["text"].as_str().unwrap().chars().skip(30).take(9).collect();
    let before = running.stats("tinylm")["generation"].clone();
    let body = with(&endless(1500), json!({ "stop": stop }));
    assert_eq!(running.post(COMPLETIONS, &body).ok()["choices"][0]["stop_reason"], stop);
    let stats = running.stats("tinylm");
    let after = &stats["generation"];
    assert_eq!((&before["ended"]["stopped"], &after["ended"]["stopped"]), (&json!(0), &json!(1)));
    assert_eq!((&after["cancelled"], &stats["ok"]), (&json!(0), &json!(2)));
    let share = |stats: &Value| stats["output_share"].as_f64().unwrap();
    assert!(share(after) < share(&before), "{} of {}", share(after), share(&before));
    let trace = running.get("/admin/trace").ok();
    let lives = trace["traceEvents"].as_array().unwrap().iter();
    let ends: Vec<_> =
        lives.filter(|event| event["ph"] == "b").filter_map(|event| event["args"]["end"].as_str()).collect();
    assert_eq!(ends, ["length", "stopped"]);
    assert_eq!(used_blocks(&running), 0.0);
}

#[test]
fn the_servers_own_stream_says_the_same() {
    let running = start(TINYLM);
    let parameters = json!({ "max_tokens": 20, "temperature": 0, "ignore_eos": true });
    let body = json!({ "model": "tinylm", "prompt": "The old sailor", "parameters": parameters });
    let events = events(&running.post("/v1/inference/stream", &body));
    let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    let whole = running.post(COMPLETIONS, &endless(20)).ok();
    assert_eq!(whole["choices"][0]["text"], text.as_str());
    let ends: Vec<_> = events.iter().filter_map(|event| event["finish_reason"].as_str()).collect();
    assert_eq!(ends, ["length"]);
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
}

#[test]
fn the_servers_own_stream_answers_conversations_too() {
    let running = start(TINYLM);
    let parameters = json!({ "max_tokens": 20, "temperature": 0 });
    let messages = json!([{ "role": "user", "content": "a story about a sailor" }]);
    let body = json!({ "messages": messages, "parameters": parameters });
    let text: String = events(&running.post("/v1/inference/stream", &body))
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    let chat = json!({ "messages": messages, "max_tokens": 20, "temperature": 0 });
    let whole = running.post("/v1/chat/completions", &chat).ok();
    assert_eq!(whole["choices"][0]["message"]["content"], text.as_str());
    let both = json!({ "messages": messages, "prompt": "x" });
    let refused = running.post("/v1/inference/stream", &both);
    assert_eq!((refused.status, refused.code().as_str()), (422, "invalid_input"));
}
