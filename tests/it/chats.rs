//! `/v1/chat/completions`: a conversation in, the next message out, whole or in parts.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::completions::{COMPLETIONS, stream, with};
use crate::fixtures::{chatty, language_model};
use crate::harness::{DELAY, Running, quoted, start};

const CHAT: &str = "/v1/chat/completions";

/// A greedy chat of a few tokens that nothing but their number ends.
fn hello() -> Value {
    let messages =
        json!([{ "role": "system", "content": "Be brief" }, { "role": "user", "content": "Hello 🦊" }]);
    json!({ "messages": messages, "temperature": 0, "max_tokens": 12, "ignore_eos": true })
}

/// The same with other fields.
fn chat(running: &Running, changes: &Value) -> Reply {
    running.post(CHAT, &with(&hello(), changes.clone()))
}

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_chat_goes_on_from_the_prompt_that_its_template_writes() {
    let running = start(&chatty());
    let reply = chat(&running, &json!({})).ok();
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "chatty");
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &reply["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["logprobs"], Value::Null);
    let prompt = "<s>[system] Be brief</s>[user] Hello 🦊</s>[assistant] ";
    let plain = json!({
        "prompt": prompt, "add_special_tokens": false, "temperature": 0, "max_tokens": 12, "ignore_eos": true,
    });
    let completion = running.post(COMPLETIONS, &plain).ok();
    assert_eq!(completion["choices"][0]["text"], content(&reply));
    assert_eq!(completion["usage"]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
    assert_eq!(reply["usage"]["completion_tokens"], 12);
}

#[test]
fn a_streamed_chat_begins_with_its_role_and_adds_up_to_the_whole() {
    let running = start(&chatty());
    let whole = chat(&running, &json!({})).ok();
    let asked = with(&hello(), json!({ "stream_options": { "include_usage": true } }));
    let events = stream(&running, CHAT, &asked);
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let (usage, parts) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let text = |part: &Value| part["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    assert_eq!(parts.iter().map(text).collect::<String>(), content(&whole));
    let reasons: Vec<_> = parts.iter().map(|part| &part["choices"][0]["finish_reason"]).collect();
    let (last, before) = reasons.split_last().unwrap();
    assert!(before.iter().all(|reason| reason.is_null()));
    assert_eq!(**last, "length");
}

#[test]
fn several_answers_are_told_apart_whole_and_streamed() {
    let running = start(&chatty());
    let changes = json!({ "n": 3, "temperature": 1, "seed": 5 });
    let whole = chat(&running, &changes).ok();
    let answers = whole["choices"].as_array().unwrap();
    let mut texts = vec![String::new(); 3];
    let mut roles = [0; 3];
    for event in stream(&running, CHAT, &with(&hello(), changes)) {
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        roles[index] += usize::from(choice["delta"]["role"] == "assistant");
    }
    assert_eq!(roles, [1; 3]);
    let expected: Vec<_> =
        answers.iter().map(|answer| answer["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(texts, expected);
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "{texts:?}");
}

#[test]
fn a_stop_string_ends_an_answer_and_is_no_part_of_it() {
    let running = start(&chatty());
    let whole = chat(&running, &json!({})).ok();
    let text = content(&whole);
    let at = text.char_indices().nth(3).map_or(0, |(at, _)| at);
    let stop = text[at..].chars().next().unwrap().to_string();
    let stopped = chat(&running, &json!({ "stop": [stop, "never"] })).ok();
    assert_eq!(content(&stopped), text.split(&stop).next().unwrap());
    let choice = &stopped["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
}

#[test]
fn logprobs_name_tokens_with_their_bytes_and_the_likeliest_others() {
    let running = start(&chatty());
    let reply = chat(&running, &json!({ "logprobs": true, "top_logprobs": 2 })).ok();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 12);
    let mut bytes = Vec::new();
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // The likeliest is what was drawn.
        assert_eq!((&top[0]["token"], &top[0]["bytes"]), (&token["token"], &token["bytes"]));
        bytes.extend(token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8_lossy(&bytes), content(&reply));
    let none = chat(&running, &json!({ "logprobs": true })).ok();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn the_last_message_goes_on_where_that_is_asked_for() {
    let running = start(&chatty());
    let messages =
        json!([{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": "The quick" }]);
    let changes = json!({ "messages": messages, "continue_final_message": true });
    let prompt = running.post("/tokenize", &changes).ok();
    let text = running.post("/detokenize", &json!({ "tokens": prompt["tokens"] })).ok();
    assert_eq!(text["prompt"], "<s>[user] Hi</s>[assistant] The quick");
    let reply = chat(&running, &changes).ok();
    assert_eq!(reply["usage"]["prompt_tokens"], prompt["count"]);
}

#[test]
fn a_template_takes_variables_of_the_request() {
    let running = start(&chatty());
    let changes = json!({ "chat_template_kwargs": { "note": "(a note of some length)" } });
    let tokens = |changes: &Value| chat(&running, changes).ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&changes) > tokens(&json!({})));
}

/// Checks the error of a request that cannot be answered.
fn refused(running: &Running, changes: &Value, param: Option<&str>, message: &str) {
    let reply = chat(running, changes);
    let error = &reply.json()["error"];
    assert_eq!(reply.status, 400, "{error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"], json!(param), "{error}");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains(message), "{said}");
}

#[test]
fn a_chat_that_cannot_be_answered_is_refused_by_the_field_at_fault() {
    let running = start(&chatty());
    let messages = Some("messages");
    refused(&running, &json!({ "messages": [] }), messages, "\"messages\" is empty");
    let robot = json!([{ "role": "robot", "content": "a" }]);
    refused(&running, &json!({ "messages": robot }), messages, "the role \"robot\"");
    let image =
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
    refused(&running, &json!({ "messages": image }), messages, "only \"text\" is supported");
    let late = json!([{ "role": "user", "content": "a" }, { "role": "system", "content": "b" }]);
    let words = "the model's chat template refuses the messages: the system message comes first";
    refused(&running, &json!({ "messages": late }), messages, words);
    refused(&running, &json!({ "temperature": -1 }), Some("temperature"), "temperature");
    refused(&running, &json!({ "max_tokens": 0 }), Some("max_tokens"), "at least 1");
    refused(&running, &json!({ "max_completion_tokens": 5000 }), Some("max_tokens"), "512");
    refused(&running, &json!({ "n": 0 }), Some("n"), "\"n\" is 0");
    refused(&running, &json!({ "top_logprobs": 3 }), Some("top_logprobs"), "needs \"logprobs\"");
    refused(&running, &json!({ "temprature": 1 }), None, "did you mean \"temperature\"?");
    let long = json!([{ "role": "user", "content": "fox ".repeat(1000) }]);
    refused(&running, &json!({ "messages": long, "stream": true }), messages, "512");
    // Nothing of this harms those who ask for what can be done.
    chat(&running, &json!({})).ok();
}

#[test]
fn a_model_without_a_chat_template_says_what_it_can_do() {
    let running = start(&format!("models.plain.path = {}\n", quoted(&language_model("plain"))));
    let words = "model \"plain\" has no chat template: ask /v1/completions with a prompt";
    refused(&running, &json!({}), Some("messages"), words);
    running.post(COMPLETIONS, &json!({ "prompt": "The", "max_tokens": 2 })).ok();
}

#[test]
fn a_model_that_makes_no_text_is_refused_by_its_name() {
    let running = start(&format!("{}models.delay.delay.batch_time = '0ms'\n", chatty()));
    refused(&running, &json!({ "model": "delay" }), Some("model"), "model \"delay\" does not generate text");
    assert_eq!(chat(&running, &json!({ "model": "nobody" })).code(), "model_not_found");
    running.post(DELAY, &json!([1.0])).ok();
}
