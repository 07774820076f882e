//! `/tokenize`, `/detokenize`, `/tokenizer_info`: what a language model makes of texts.

use serde_json::{Value, json};

use crate::fixtures::{chatty, language_model};
use crate::harness::{INSTANT, Running, quoted, start};

fn tokenize(running: &Running, body: &Value) -> Value {
    running.post("/tokenize", body).ok()
}

fn text(running: &Running, tokens: &Value) -> Value {
    running.post("/detokenize", &json!({ "tokens": tokens })).ok()["prompt"].clone()
}

#[test]
fn a_text_becomes_tokens_and_tokens_become_the_text() {
    let running = start(&chatty());
    let reply = tokenize(&running, &json!({ "prompt": "The fox 🦊" }));
    let tokens = reply["tokens"].as_array().unwrap();
    assert_eq!(reply["count"], tokens.len());
    assert_eq!(reply["max_model_len"], 512);
    assert_eq!(reply["token_strs"], Value::Null);
    assert_eq!(text(&running, &reply["tokens"]), "<s>The fox 🦊");
    let bare = tokenize(&running, &json!({ "prompt": "The fox 🦊", "add_special_tokens": false }));
    assert_eq!(bare["tokens"], json!(tokens[1..]));
    assert_eq!(text(&running, &bare["tokens"]), "The fox 🦊");
}

#[test]
fn tokens_are_spelled_as_in_the_vocabulary_on_demand() {
    let running = start(&chatty());
    let reply = tokenize(&running, &json!({ "prompt": "The fox", "return_token_strs": true }));
    let spelled = reply["token_strs"].as_array().unwrap();
    assert_eq!(spelled.len(), reply["count"].as_u64().unwrap() as usize);
    let joined: String = spelled.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, "<s>TheĠfox");
}

#[test]
fn a_conversation_becomes_the_tokens_of_its_prompt() {
    let running = start(&chatty());
    let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }]);
    let reply = tokenize(&running, &json!({ "messages": messages }));
    assert_eq!(text(&running, &reply["tokens"]), "<s>[user] Hi</s>[assistant] ");
    let without = json!({
        "messages": messages, "add_generation_prompt": false, "chat_template_kwargs": { "note": "!" },
    });
    assert_eq!(text(&running, &tokenize(&running, &without)["tokens"]), "<s>[user] Hi</s>!");
}

#[test]
fn an_empty_list_of_tokens_is_an_empty_text() {
    let running = start(&chatty());
    assert_eq!(text(&running, &json!([])), "");
    let reply = tokenize(&running, &json!({ "prompt": "", "add_special_tokens": false }));
    assert_eq!((&reply["tokens"], &reply["count"]), (&json!([]), &json!(0)));
}

#[test]
fn a_tokenizer_is_described_with_its_chat_template() {
    let running = start(&chatty());
    let info = running.get("/tokenizer_info").ok();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert!(info["tokenizer_class"].is_string());
    assert!(info["chat_template"].as_str().unwrap().starts_with("{{ bos_token }}"));
}

#[test]
fn what_is_no_text_and_no_token_is_refused_by_the_field_at_fault() {
    let running = start(&format!("{}{INSTANT}", chatty()));
    let refused = |path: &str, body: Value, param: Option<&str>, message: &str| {
        let reply = running.post(path, &body);
        let error = &reply.json()["error"];
        assert_eq!(reply.status, 400, "{error}");
        assert_eq!(error["param"], json!(param), "{error}");
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    };
    refused("/tokenize", json!({ "prompt": 7 }), Some("prompt"), "has to be a text");
    refused("/tokenize", json!({}), Some("messages"), "\"messages\" is missing");
    refused("/tokenize", json!({ "prompt": "a", "tokens": 1 }), None, "unknown field \"tokens\"");
    refused("/tokenize", json!({ "prompt": "a", "model": "delay" }), Some("model"), "does not generate text");
    refused("/detokenize", json!({}), Some("tokens"), "\"tokens\" is missing");
    refused("/detokenize", json!({ "tokens": ["a"] }), Some("tokens"), "\"tokens\" is [\"a\"]");
    refused(
        "/detokenize",
        json!({ "tokens": [100_000] }),
        Some("tokens"),
        "token 100000 is not in the vocabulary",
    );
}

#[test]
fn where_several_models_have_a_tokenizer_one_has_to_be_named() {
    let plain = quoted(&language_model("plain"));
    let running = start(&format!("{}models.plain.path = {plain}\n", chatty()));
    let reply = running.get("/tokenizer_info");
    assert_eq!((reply.status, reply.code().as_str()), (400, "malformed_request"));
    let info = running.get("/tokenizer_info?model=plain").ok();
    assert_eq!(info.get("chat_template"), None);
    running.post("/tokenize", &json!({ "prompt": "a", "model": "plain" })).ok();
}
