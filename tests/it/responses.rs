//! `/v1/responses`: a text or a conversation in, what the model says to it out, whole.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::completions::{COMPLETIONS, TINYLM, with};
use crate::fixtures::{chatty, language_model};
use crate::harness::{Running, quoted, start};

const RESPONSES: &str = "/v1/responses";

/// A greedy response of a few tokens that nothing but their number ends.
fn hello() -> Value {
    json!({ "input": "Hello 🦊", "temperature": 0, "max_output_tokens": 12, "ignore_eos": true })
}

/// The same with other fields.
fn respond(running: &Running, changes: &Value) -> Reply {
    running.post(RESPONSES, &with(&hello(), changes.clone()))
}

fn text(reply: &Value) -> &str {
    reply["output"][0]["content"][0]["text"].as_str().unwrap()
}

#[test]
fn a_response_goes_on_from_the_prompt_that_the_models_template_writes() {
    let running = start(&chatty());
    let reply = respond(&running, &json!({ "instructions": "Be brief" })).ok();
    let prompt = "<s>[system] Be brief</s>[user] Hello 🦊</s>[assistant] ";
    let plain = json!({
        "prompt": prompt, "add_special_tokens": false, "temperature": 0, "max_tokens": 12, "ignore_eos": true,
    });
    let completion = running.post(COMPLETIONS, &plain).ok();
    assert_eq!(completion["choices"][0]["text"], text(&reply));
    assert_eq!(completion["usage"]["prompt_tokens"], reply["usage"]["input_tokens"]);
}

#[test]
fn a_response_has_openais_fields() {
    let running = start(&chatty());
    let reply = respond(&running, &json!({ "metadata": { "run": "7" }, "top_p": 0.7 })).ok();
    assert!(reply["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("response"), &json!("chatty")));
    assert!(reply["created_at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&reply["metadata"], &reply["store"]), (&json!({ "run": "7" }), &json!(false)));
    assert_eq!((&reply["temperature"], &reply["top_p"]), (&json!(0.0), &json!(0.7)));
    assert_eq!((&reply["max_output_tokens"], &reply["instructions"]), (&json!(12), &Value::Null));
    let message = &reply["output"][0];
    assert_eq!(reply["output"].as_array().unwrap().len(), 1);
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    let content = &message["content"][0];
    assert_eq!((&content["type"], &content["annotations"]), (&json!("output_text"), &json!([])));
    let usage = &reply["usage"];
    assert_eq!(usage["output_tokens"], 12);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), usage["input_tokens"].as_u64().unwrap() + 12);
    assert_eq!(usage["output_tokens_details"], json!({ "reasoning_tokens": 0 }));
}

#[test]
fn a_response_that_its_length_ends_is_incomplete_and_one_that_ends_itself_is_complete() {
    let running = start(&chatty());
    let cut = respond(&running, &json!({})).ok();
    assert_eq!((&cut["status"], &cut["completed_at"]), (&json!("incomplete"), &Value::Null));
    assert_eq!(cut["incomplete_details"], json!({ "reason": "max_output_tokens" }));
    assert_eq!(cut["output"][0]["status"], "incomplete");
    let at = text(&cut).char_indices().nth(3).map_or(0, |(at, _)| at);
    let stop = text(&cut)[at..].chars().next().unwrap().to_string();
    let ended = respond(&running, &json!({ "stop": stop })).ok();
    assert_eq!(text(&ended), text(&cut).split(&stop).next().unwrap());
    assert_eq!((&ended["status"], &ended["incomplete_details"]), (&json!("completed"), &Value::Null));
    assert_eq!(ended["output"][0]["status"], "completed");
    assert!(ended["completed_at"].as_u64() >= ended["created_at"].as_u64());
}

#[test]
fn a_conversation_goes_on_with_what_was_responded_before() {
    let running = start(&chatty());
    let before = respond(&running, &json!({})).ok();
    let asked = |output: Value| {
        let parts = json!([{ "type": "input_text", "text": "And then?" }]);
        let last = json!({ "type": "message", "role": "user", "content": parts });
        json!({ "input": [{ "role": "user", "content": "Hello 🦊" }, output, last] })
    };
    let whole = respond(&running, &asked(before["output"][0].clone())).ok();
    let short = respond(&running, &asked(json!({ "role": "assistant", "content": text(&before) }))).ok();
    assert_eq!(
        (text(&whole), &whole["usage"]["total_tokens"]),
        (text(&short), &short["usage"]["total_tokens"])
    );
    assert!(whole["usage"]["input_tokens"].as_u64() > before["usage"]["total_tokens"].as_u64());
}

#[test]
fn what_was_computed_before_counts_as_cached() {
    let running = start(&chatty());
    let long = json!({ "input": "The quick brown fox jumps over the lazy dog. ".repeat(4) });
    let cached = |reply: &Value| reply["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&respond(&running, &long).ok()), 0);
    assert!(cached(&respond(&running, &long).ok()) > 0);
}

#[test]
fn a_model_without_a_chat_template_goes_on_from_the_input_itself() {
    let running = start(&format!("models.plain.path = {}\n", quoted(&language_model("plain"))));
    let asked = json!({ "input": "The old sailor" });
    let reply = respond(&running, &asked).ok();
    let plain = json!({ "prompt": "The old sailor", "temperature": 0, "max_tokens": 12, "ignore_eos": true });
    assert_eq!(running.post(COMPLETIONS, &plain).ok()["choices"][0]["text"], text(&reply));
    let message = json!({ "input": [{ "role": "user", "content": "The old sailor" }] });
    assert_eq!(text(&respond(&running, &message).ok()), text(&reply));
    let none = "model \"plain\" has no chat template";
    let told = json!({ "instructions": "Be brief" });
    refused(&running, &told, Some("instructions"), none);
    let system = json!({ "input": [{ "role": "system", "content": "Be brief" }] });
    refused(&running, &system, Some("input"), none);
}

/// Checks the error of a request that cannot be answered.
fn refused(running: &Running, changes: &Value, param: Option<&str>, message: &str) {
    let reply = respond(running, changes);
    let error = &reply.json()["error"];
    assert_eq!(reply.status, 400, "{error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"], json!(param), "{error}");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains(message), "{said}");
}

#[test]
fn a_response_that_cannot_be_made_is_refused_by_the_field_at_fault() {
    let running = start(&format!("{}models.delay.delay.batch_time = '0ms'\n", chatty()));
    let running = &running;
    let chatty = |fields: Value| with(&fields, json!({ "model": "chatty" }));
    refused(running, &chatty(json!({ "input": null })), Some("input"), "\"input\" is missing");
    refused(running, &chatty(json!({ "input": "fox ".repeat(1000) })), Some("input"), "512");
    let late = json!([{ "role": "user", "content": "a" }, { "role": "system", "content": "b" }]);
    refused(running, &chatty(json!({ "input": late })), Some("input"), "the system message comes first");
    refused(running, &chatty(json!({ "stream": true })), Some("stream"), "responses are not streamed");
    refused(running, &chatty(json!({ "store": true })), Some("store"), "responses are not stored");
    refused(running, &chatty(json!({ "temperature": -1 })), Some("temperature"), "temperature");
    let most = Some("max_output_tokens");
    refused(running, &chatty(json!({ "max_output_tokens": 0 })), most, "at least 1");
    refused(running, &chatty(json!({ "max_output_tokens": 5000 })), most, "5000");
    refused(running, &chatty(json!({ "max_tokens": 5 })), None, "it is called \"max_output_tokens\"");
    refused(running, &chatty(json!({ "temprature": 1 })), None, "did you mean \"temperature\"?");
    refused(running, &json!({ "model": "delay" }), Some("model"), "\"delay\" does not generate text");
    assert_eq!(respond(running, &json!({ "model": "nobody" })).code(), "model_not_found");
    // Nothing of this harms those who ask for what can be done.
    respond(running, &json!({})).ok();
}

#[test]
fn the_description_of_the_routes_has_responses() {
    let running = start(TINYLM);
    let described = running.get("/openapi.json").ok();
    let summary = described["paths"]["/v1/responses"]["post"]["summary"].as_str().unwrap();
    assert_eq!(summary, "What a model says to a text or a conversation, as OpenAI has it");
}

#[test]
fn responses_are_counted_as_other_texts_are() {
    let running = start(TINYLM);
    respond(&running, &json!({})).ok();
    respond(&running, &json!({ "top_p": 2 }));
    assert_eq!(running.outcomes("tinylm", "ok"), 1.0);
    assert_eq!(running.outcomes("tinylm", "invalid_input"), 1.0);
    assert_eq!(
        running.metric("trustformers_tokens_total{kind=\"generated\",model=\"tinylm\",version=\"1\"}"),
        12.0
    );
}
