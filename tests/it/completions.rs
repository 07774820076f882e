//! `/v1/completions` over a real socket: what is answered, and that what goes wrong goes wrong alone.

use serde_json::{Value, json};

use crate::client::{Connection, Reply};
use crate::harness::{Running, start};

/// Where texts are asked for.
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// Serves the built-in language model.
pub(crate) const TINYLM: &str = "models.tinylm.batching.continuous.kv_cache_memory = '64MB'\n";

/// A prompt that the language model goes on from, the likeliest token each time, until there are so many.
pub(crate) fn endless(tokens: u32) -> Value {
    json!({ "prompt": "The old sailor", "max_tokens": tokens, "temperature": 0, "ignore_eos": true })
}

/// `body` with other fields.
pub(crate) fn with(body: &Value, fields: Value) -> Value {
    let mut body = body.clone();
    let Value::Object(fields) = fields else { panic!("an object") };
    body.as_object_mut().expect("an object").extend(fields);
    body
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().expect("a text")
}

/// The events of a stream, up to its last word.
pub(crate) fn stream(running: &Running, path: &str, body: &Value) -> Vec<Value> {
    events(&running.post(path, &with(body, json!({ "stream": true }))))
}

/// The events of a reply that is a stream.
pub(crate) fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let body = reply.text();
    let events = body.strip_suffix("data: [DONE]\n\n").expect("a last word");
    let event =
        |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
    events.split_terminator("\n\n").map(event).collect()
}

/// The texts of a stream, put together choice by choice, and why each ended.
fn streamed(events: &[Value]) -> (Vec<String>, Vec<Option<String>>) {
    let (mut texts, mut ends) = (Vec::new(), Vec::new());
    for choice in events.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        if texts.len() <= index {
            texts.resize(index + 1, String::new());
            ends.resize(index + 1, None);
        }
        texts[index] += choice["text"].as_str().expect("a text");
        if let Some(end) = choice["finish_reason"].as_str() {
            assert_eq!(ends[index].replace(end.to_owned()), None, "a text ends once");
        }
    }
    (texts, ends)
}

#[test]
fn a_completion_has_openais_fields() {
    let running = start(TINYLM);
    let reply = running.post(COMPLETIONS, &endless(8)).ok();
    let keys: Vec<_> = reply.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["id", "object", "created", "model", "choices", "usage"]);
    assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!("tinylm")));
    let choice = &reply["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!((&choice["logprobs"], &choice["stop_reason"]), (&Value::Null, &Value::Null));
    assert!(!text(&reply).is_empty());
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], 8);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), usage["prompt_tokens"].as_u64().unwrap() + 8);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[test]
fn a_stream_has_the_text_of_the_whole_reply() {
    let running = start(TINYLM);
    for body in [
        endless(40),
        with(&endless(40), json!({ "temperature": 1, "seed": 7, "n": 3 })),
        with(&endless(40), json!({ "stop": [" the ", "."] })),
        with(&endless(40), json!({ "prompt": ["The old sailor", "A girl"] })),
        with(&endless(10), json!({ "echo": true })),
    ] {
        let whole = running.post(COMPLETIONS, &body).ok();
        let choices = whole["choices"].as_array().unwrap();
        let (texts, ends) = streamed(&stream(&running, COMPLETIONS, &body));
        let of = |field: &str| -> Vec<_> {
            choices.iter().map(|choice| choice[field].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(texts, of("text"), "{body}");
        let ends: Vec<_> = ends.into_iter().flatten().collect();
        assert_eq!(ends, of("finish_reason"), "{body}");
    }
}

#[test]
fn usage_ends_a_stream_that_asks_for_it() {
    let running = start(TINYLM);
    let body = with(&endless(5), json!({ "stream_options": { "include_usage": true } }));
    let events = stream(&running, COMPLETIONS, &body);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 5);
    assert!(events[..events.len() - 1].iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn prompts_are_texts_or_ids_one_or_many() {
    let running = start(TINYLM);
    let alone = running.post(COMPLETIONS, &endless(6)).ok();
    let ids = running.post("/tokenize", &json!({ "prompt": "The old sailor" })).ok()["tokens"].clone();
    let of_ids = running.post(COMPLETIONS, &with(&endless(6), json!({ "prompt": ids }))).ok();
    assert_eq!(text(&of_ids), text(&alone));
    let many = with(&endless(6), json!({ "prompt": [ids, ids] }));
    let reply = running.post(COMPLETIONS, &many).ok();
    for (index, choice) in reply["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&choice["index"], choice["text"].as_str()), (&json!(index), Some(text(&alone))));
    }
    assert_eq!(reply["usage"]["completion_tokens"], 12);
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_else_runs() {
    let running = start(TINYLM);
    let body = with(&endless(30), json!({ "temperature": 1.2, "seed": 11 }));
    let alone = text(&running.post(COMPLETIONS, &body).ok()).to_owned();
    let company: Vec<_> = (0..6)
        .map(|seed| {
            running.post_later(COMPLETIONS, &with(&endless(60), json!({ "temperature": 1, "seed": seed })))
        })
        .collect();
    assert_eq!(text(&running.post(COMPLETIONS, &body).ok()), alone);
    let other = running.post(COMPLETIONS, &with(&body, json!({ "seed": 12 }))).ok();
    assert_ne!(text(&other), alone);
    company.into_iter().for_each(|mut connection| {
        connection.reply().ok();
    });
}

#[test]
fn a_text_ends_before_its_stop_string_or_with_it() {
    let running = start(TINYLM);
    let whole = text(&running.post(COMPLETIONS, &endless(40)).ok()).to_owned();
    // Across token borders: from the middle of one word to the middle of the next.
    let (start, end) = (whole.len() / 3, whole.len() / 3 + 7);
    let stop = &whole[start..end];
    let before = &whole[..whole.find(stop).unwrap()];
    let reply = running.post(COMPLETIONS, &with(&endless(40), json!({ "stop": stop }))).ok();
    assert_eq!(text(&reply), before);
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["choices"][0]["stop_reason"], stop);
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 40);
    let included = json!({ "stop": [stop], "include_stop_str_in_output": true });
    let reply = running.post(COMPLETIONS, &with(&endless(40), included)).ok();
    assert_eq!(text(&reply), format!("{before}{stop}"));
    running.eventually("its blocks are free", |running| used_blocks(running) == 0.0);
}

#[test]
fn a_stop_token_ends_a_text_and_is_named() {
    let running = start(TINYLM);
    let logprobs = running.post(COMPLETIONS, &with(&endless(5), json!({ "logprobs": 0 }))).ok();
    let third = logprobs["choices"][0]["logprobs"]["tokens"][2].as_str().unwrap().to_owned();
    let ids = running.post("/tokenize", &json!({ "prompt": third, "add_special_tokens": false })).ok();
    let id = ids["tokens"][0].clone();
    let reply = running.post(COMPLETIONS, &with(&endless(40), json!({ "stop_token_ids": [id] }))).ok();
    assert_eq!(reply["choices"][0]["stop_reason"], id);
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() <= 3);
}

#[test]
fn the_model_ends_its_text_unless_that_is_ignored() {
    let running = start(TINYLM);
    let body = json!({ "prompt": "The old sailor", "max_tokens": 400, "temperature": 0 });
    let reply = running.post(COMPLETIONS, &body).ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["choices"][0]["stop_reason"], Value::Null);
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
    let longer = running.post(COMPLETIONS, &with(&body, json!({ "min_tokens": tokens + 5 }))).ok();
    assert!(longer["usage"]["completion_tokens"].as_u64().unwrap() >= tokens + 5);
    let unsaid = json!({ "prompt": "The old sailor", "min_tokens": 50 });
    assert_eq!(running.post(COMPLETIONS, &unsaid).ok()["usage"]["completion_tokens"], 50);
    let ignored = running.post(COMPLETIONS, &with(&body, json!({ "ignore_eos": true }))).ok();
    assert_eq!(ignored["usage"]["completion_tokens"], 400);
}

#[test]
fn log_probabilities_are_those_of_the_likeliest_and_of_the_token() {
    let running = start(TINYLM);
    let reply = running.post(COMPLETIONS, &with(&endless(4), json!({ "logprobs": 3 }))).ok();
    let logprobs = &reply["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(), text(&reply));
    for (index, token) in tokens.iter().enumerate() {
        let top = logprobs["top_logprobs"][index].as_object().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest.
        let (likeliest, most) = top.iter().next().unwrap();
        assert_eq!((json!(likeliest), most), (token.clone(), &logprobs["token_logprobs"][index]));
        assert!(top.values().all(|value| value.as_f64().unwrap() <= most.as_f64().unwrap()));
    }
    assert_eq!(logprobs["text_offset"][0], 0);
    let first = tokens[0].as_str().unwrap().chars().count();
    assert_eq!(logprobs["text_offset"][1], first);
}

#[test]
fn a_prompt_is_scored_without_a_token_after_it() {
    let running = start(TINYLM);
    let body = with(&endless(3), json!({ "echo": true, "logprobs": 2 }));
    let longer = running.post(COMPLETIONS, &body).ok();
    let prompt = longer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let body = with(&body, json!({ "max_tokens": 0 }));
    let reply = running.post(COMPLETIONS, &body).ok();
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("The old sailor"), &json!("length")));
    assert_eq!(
        (&reply["usage"]["completion_tokens"], &reply["usage"]["prompt_tokens"]),
        (&json!(0), &json!(prompt))
    );
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let of = |reply: &Value| reply["choices"][0]["logprobs"][field].as_array().unwrap().clone();
        assert_eq!(of(&reply), of(&longer)[..prompt], "{field}");
    }
    let (texts, ends) = streamed(&stream(&running, COMPLETIONS, &body));
    assert_eq!((texts[0].as_str(), ends[0].as_deref()), ("The old sailor", Some("length")));
    let many = with(&body, json!({ "prompt": ["a", "b"], "n": 2, "logprobs": null }));
    let many = running.post(COMPLETIONS, &many).ok();
    let texts: Vec<_> =
        many["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(texts, ["a", "a", "b", "b"]);
}

#[test]
fn tokens_begin_in_the_text_where_they_are_said_to() {
    let running = start(TINYLM);
    // Characters of two, three and four bytes, each a token of its own.
    let prompt = "Ein süßer € für 🙂 und 漢字. The old sailor";
    let plain = with(&endless(30), json!({ "prompt": prompt, "echo": true, "logprobs": 0 }));
    let whole = running.post(COMPLETIONS, &plain).ok();
    let characters: Vec<char> = text(&whole).chars().collect();
    let end: String = characters[characters.len() - 12..characters.len() - 3].iter().collect();
    // Held back, as it may become the end, and then let go.
    let held = with(&plain, json!({ "stop": format!("{end}#") }));
    for reply in [&whole, &running.post(COMPLETIONS, &held).ok()] {
        assert_eq!(text(reply), text(&whole));
        let logprobs = &reply["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap());
        let offsets = logprobs["text_offset"].as_array().unwrap().iter();
        let offsets: Vec<_> = offsets.map(|offset| offset.as_u64().unwrap() as usize).collect();
        assert!(offsets.is_sorted(), "{offsets:?}");
        let mut split = 0;
        for (token, &offset) in tokens.zip(&offsets).filter(|(token, _)| !token.starts_with('<')) {
            if token.contains(char::REPLACEMENT_CHARACTER) {
                split += 1;
            } else {
                assert!(
                    characters[offset..].starts_with(&token.chars().collect::<Vec<_>>()),
                    "{token:?} at {offset}"
                );
            }
        }
        assert!(split > 8, "characters are split: {split}");
    }
}

#[test]
fn the_best_of_many_comes_first() {
    let running = start(TINYLM);
    let body = with(&endless(12), json!({ "temperature": 1, "seed": 3, "logprobs": 0 }));
    let mean = |choice: &Value| {
        let values = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        values.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / values.len() as f64
    };
    let all = running.post(COMPLETIONS, &with(&body, json!({ "n": 6 }))).ok();
    let mut means: Vec<_> = all["choices"].as_array().unwrap().iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let best = running.post(COMPLETIONS, &with(&body, json!({ "n": 2, "best_of": 6 }))).ok();
    let chosen: Vec<_> = best["choices"].as_array().unwrap().iter().map(mean).collect();
    // Drawn alike, computed in other company: equal but for rounding.
    assert_eq!(chosen.len(), 2);
    assert!(chosen.iter().zip(&means).all(|(a, b)| (a - b).abs() < 0.02), "{chosen:?} of {means:?}");
    assert_eq!(best["usage"]["completion_tokens"], 72);
}

#[test]
fn prompts_that_begin_alike_are_computed_once() {
    let running = start(TINYLM);
    let prompt: Vec<u32> = (4..104).collect();
    let body = with(&endless(4), json!({ "prompt": prompt }));
    let first = running.post(COMPLETIONS, &body).ok();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = running.post(COMPLETIONS, &body).ok();
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 96);
    assert_eq!(text(&second), text(&first));
    let salted = running.post(COMPLETIONS, &with(&body, json!({ "cache_salt": "tenant" }))).ok();
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(text(&salted), text(&first));
}

/// Blocks of the KV cache that texts hold.
pub(crate) fn used_blocks(running: &Running) -> f64 {
    running.metric("trustformers_kv_blocks{model=\"tinylm\",state=\"used\",version=\"1\"}")
}

/// A stream of which something has come.
pub(crate) fn begun(running: &Running, body: &Value) -> Connection {
    let mut connection = running.post_later(COMPLETIONS, &with(body, json!({ "stream": true })));
    connection.read_until("data: ");
    connection
}

pub(crate) const SEQUENCES_RUNNING: &str =
    "trustformers_sequences{model=\"tinylm\",state=\"running\",version=\"1\"}";

#[test]
fn clients_who_leave_free_their_blocks() {
    let running = start(&format!("{TINYLM}models.tinylm.batching.continuous.max_sequences = 16\n"));
    let body = endless(1900);
    for _ in 0..10 {
        let streams: Vec<_> = (0..10).map(|_| begun(&running, &body)).collect();
        assert!(used_blocks(&running) > 0.0);
        drop(streams);
    }
    // And those who have heard nothing yet.
    let waiting: Vec<_> = (0..100).map(|_| running.post_later(COMPLETIONS, &body)).collect();
    drop(waiting);
    // The one that asks is one.
    running.eventually("all are gone", |running| running.metric("trustformers_connections") == 1.0);
    running.eventually("all blocks are free", |running| used_blocks(running) == 0.0);
    assert_eq!(running.metric(SEQUENCES_RUNNING), 0.0);
    running.eventually("all are counted", |running| running.outcomes("tinylm", "cancelled") >= 100.0);
    assert!(running.post(COMPLETIONS, &endless(3)).ok()["usage"]["completion_tokens"] == 3);
}

#[test]
fn more_texts_than_the_cache_holds_are_all_answered_alike() {
    // In f32 a token does not depend on the company that it is computed in. 24 blocks: 4 of these texts at once.
    let exact = "models.tinylm.dtype = 'f32'\n";
    let small = format!("{exact}models.tinylm.batching.continuous.kv_cache_memory = '500KB'\n");
    let body = |index: u32| with(&endless(80), json!({ "prompt": [4 + index, 5, 6, 7] }));
    let running = start(&format!("{exact}{TINYLM}"));
    let alone: Vec<_> = (0..20).map(|index| running.post(COMPLETIONS, &body(index)).ok()).collect();
    let crowded = start(&small);
    let all: Vec<_> = (0..20).map(|index| crowded.post_later(COMPLETIONS, &body(index))).collect();
    for (mut connection, alone) in all.into_iter().zip(&alone) {
        let reply = connection.reply().ok();
        assert_eq!(reply["usage"]["completion_tokens"], 80);
        assert_eq!(text(&reply), text(alone));
    }
    let preemptions = crowded.metric("trustformers_preemptions_total{model=\"tinylm\",version=\"1\"}");
    assert!(preemptions > 0.0, "the cache was large enough for all");
    assert_eq!(used_blocks(&crowded), 0.0);
}
