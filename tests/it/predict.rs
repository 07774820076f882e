//! `POST /models/{name}/predict`: one item or many, in JSON and msgpack.

use serde_json::{Value, json};

use crate::client::{JSON, MSGPACK, msgpack};
use crate::fixtures::minilm;
use crate::harness::{DELAY, INSTANT, MINILM, start};

#[test]
fn one_item_is_answered_with_its_model_and_version() {
    let running = start(INSTANT);
    let expected = json!({ "data": [1.0, 2.5, -3.0], "model": "delay", "version": "1" });
    for body in [
        json!({ "data": [1.0, 2.5, -3.0] }),
        json!([1, 2.5, -3]),
        json!({ "data": { "data": [1.0, 2.5, -3.0] } }),
        json!({ "data": [1.0, 2.5, -3.0], "parameters": {}, "priority": "high", "timeout_ms": 60_000 }),
        json!({ "data": [1.0, 2.5, -3.0], "parameters": null, "priority": null, "timeout_ms": null }),
    ] {
        assert_eq!(running.post(DELAY, &body).ok(), expected, "{body}");
        assert_eq!(running.post_raw(DELAY, &[MSGPACK], &msgpack(&body)).ok(), expected, "{body}");
    }
    assert_eq!(running.post("/models/delay/predict?version=1", &json!([1, 2.5, -3])).ok(), expected);
}

#[test]
fn many_items_are_answered_in_order() {
    let running = start(INSTANT);
    let items: Vec<Value> = (0..100).map(|number| json!([f64::from(number)])).collect();
    let reply = running.post(DELAY, &json!({ "instances": items })).ok();
    let predictions = reply["predictions"].as_array().unwrap();
    assert_eq!(
        predictions.iter().map(|one| &one["data"]).collect::<Vec<_>>(),
        items.iter().collect::<Vec<_>>()
    );
    assert_eq!((&reply["model"], &reply["version"]), (&json!("delay"), &json!("1")));
}

#[test]
fn an_item_that_does_not_fit_fails_alone() {
    let running = start(INSTANT);
    let reply = running.post(DELAY, &json!({ "instances": [[1.0], [], "text", [2.0]] })).ok();
    let predictions = reply["predictions"].as_array().unwrap();
    assert_eq!(predictions[0], json!({ "data": [1.0] }));
    assert_eq!(predictions[1]["error"]["code"], "invalid_input");
    assert_eq!(
        predictions[2]["error"]["message"],
        "input \"data\": expected f32 of shape [-1], got a string"
    );
    assert_eq!(predictions[3], json!({ "data": [2.0] }));
    assert_eq!(running.outcomes("delay", "ok"), 2.0);
    assert_eq!(running.outcomes("delay", "invalid_input"), 2.0);
}

#[test]
fn many_items_that_fail_in_the_same_way_are_that_error() {
    let running = start(INSTANT);
    let reply = running.post(DELAY, &json!({ "instances": [[], []] }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    assert_eq!(running.outcomes("delay", "invalid_input"), 2.0, "each item counts once");
}

#[test]
fn accept_chooses_the_format_of_the_reply() {
    let running = start(INSTANT);
    let (text, packed) = (b"[1.5]".to_vec(), msgpack(&json!([1.5])));
    for (body, content, accept, expected) in [
        (&text, JSON, None, JSON.1),
        (&packed, MSGPACK, None, MSGPACK.1),
        (&text, JSON, Some(MSGPACK.1), MSGPACK.1),
        (&packed, MSGPACK, Some(JSON.1), JSON.1),
        (&text, JSON, Some("*/*"), JSON.1),
        (&text, JSON, Some("text/html, application/msgpack;q=0.9"), MSGPACK.1),
        (&text, ("content-type", "application/json; charset=utf-8"), None, JSON.1),
        (&packed, ("content-type", "application/x-msgpack"), None, MSGPACK.1),
    ] {
        let mut headers = vec![content];
        headers.extend(accept.map(|accept| ("accept", accept)));
        let reply = running.post_raw(DELAY, &headers, body);
        assert_eq!(reply.header("content-type"), Some(expected), "{headers:?}");
        assert_eq!(reply.ok()["data"], json!([1.5]), "{headers:?}");
    }
}

#[test]
fn no_content_type_is_taken_for_json() {
    let running = start(INSTANT);
    assert_eq!(running.post_raw(DELAY, &[], b"[1]").ok()["data"], json!([1.0]));
}

#[test]
fn raw_bytes_in_msgpack_are_elements_as_they_lie_in_memory() {
    let running = start(INSTANT);
    let raw: Vec<u8> = [1.5f32, f32::NAN, f32::NEG_INFINITY].iter().flat_map(|x| x.to_ne_bytes()).collect();
    let mut body = vec![0x81, 0xa4];
    body.extend(b"data");
    body.extend([0xc4, 12]);
    body.extend(raw);
    let reply = running.post_raw(DELAY, &[MSGPACK], &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let text = running.post_raw(DELAY, &[MSGPACK, ("accept", JSON.1)], &body).ok();
    assert_eq!(text["data"], json!([1.5, null, null]), "JSON has no word for what is not a number");
    body[6] = 0xc4;
    body[7] = 11;
    body.pop();
    let reply = running.post_raw(DELAY, &[MSGPACK], &body);
    assert_eq!((reply.status, reply.message().contains("11 raw bytes")), (422, true), "{}", reply.text());
}

/// A short text in msgpack.
fn text(text: &str) -> Vec<u8> {
    [&[0xa0 | text.len() as u8], text.as_bytes()].concat()
}

/// A packed tensor in msgpack.
fn packed(dtype: &str, shape: &[u8], data: &[u8]) -> Vec<u8> {
    let shape = [&[0x90 | shape.len() as u8], shape].concat();
    let data = [&[0xc4, data.len() as u8], data].concat();
    [vec![0x83], text("dtype"), text(dtype), text("shape"), shape, text("data"), data].concat()
}

/// A body with one field of msgpack in it.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x81], text(name).as_slice(), value].concat()
}

#[test]
fn packed_tensors_are_checked_and_converted_as_numbers_are() {
    let running = start(INSTANT);
    let post = |value: &[u8]| running.post_raw(DELAY, &[MSGPACK, ("accept", JSON.1)], &field("data", value));
    let halves = [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat();
    assert_eq!(post(&packed("f32", &[2], &halves)).ok()["data"], json!([1.5, -2.0]));
    assert_eq!(post(&packed("f64", &[1], &0.25f64.to_le_bytes())).ok()["data"], json!([0.25]));
    assert_eq!(post(&packed("u8", &[3], &[0, 7, 255])).ok()["data"], json!([0.0, 7.0, 255.0]));
    assert_eq!(post(&packed("i16", &[1], &(-3i16).to_le_bytes())).ok()["data"], json!([-3.0]));
    let named = field("data", &packed("u8", &[1], &[7]));
    assert_eq!(post(&named).ok()["data"], json!([7.0]), "by the name of the input");
    for (value, says) in [
        (packed("f32", &[1, 2], &halves), "expected f32 of shape [-1], got shape [1, 2]"),
        (packed("f32", &[3], &halves), "got 8 bytes for f32 of shape [3]"),
        (packed("f8", &[2], &[0, 0]), "got a tensor of dtype \"f8\""),
        (packed("f64", &[1], &1e300f64.to_le_bytes()), "1e300, which is out of the range of f32"),
        (packed("bool", &[1], &[1]), "got true"),
        (packed("f32", &[0], &[]), "got shape [0]"),
        (field("dtype", &text("f32")), "got an object"),
        ([vec![0x91], packed("f32", &[2], &halves)].concat(), "got shape [2] in dimension 1"),
    ] {
        let reply = post(&value);
        assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"), "{says}");
        assert!(reply.message().contains(says), "{}", reply.message());
    }
    let row = |number: u8| packed("u8", &[1], &[number]);
    let rows = [vec![0x92], row(1), row(2)].concat();
    let many = running.post_raw(DELAY, &[MSGPACK], &field("instances", &rows)).ok();
    assert_eq!(many["predictions"], json!([{ "data": [1.0] }, { "data": [2.0] }]));
}

#[test]
fn a_text_model_answers_texts_one_or_many() {
    let running = start(&minilm());
    let one = running.post(MINILM, &json!({ "data": "a text" })).ok();
    assert_eq!(one["data"].as_array().unwrap().len(), 384);
    let bare = running.post(MINILM, &json!("a text")).ok();
    assert_eq!(bare["data"], one["data"]);
    let many = running.post(MINILM, &json!({ "instances": ["a text", 5, ["a"], "a text"] })).ok();
    let predictions = many["predictions"].as_array().unwrap();
    assert_eq!(predictions[1]["error"]["code"], "invalid_input");
    assert!(predictions[2]["error"]["message"].as_str().unwrap().contains("got a list"));
    let far = |a: &Value, b: &Value| {
        let pairs = a.as_array().unwrap().iter().zip(b.as_array().unwrap());
        pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max)
    };
    assert!(far(&predictions[0]["data"], &one["data"]) < 1e-5);
    assert!(far(&predictions[3]["data"], &one["data"]) < 1e-5);
}

#[test]
fn a_text_that_is_too_long_is_cut_or_refused_as_asked() {
    let running = start(&format!("{}models.minilm.max_length = 8\n", minilm()));
    let long = "one two three four five six seven eight nine ten";
    let cut = running.post(MINILM, &json!({ "data": long })).ok();
    assert_eq!(cut["data"].as_array().unwrap().len(), 384);
    let whole = running.post(MINILM, &json!({ "data": long, "parameters": { "truncate": false } }));
    assert_eq!((whole.status, whole.code().as_str()), (422, "invalid_input"));
    assert_eq!(whole.message(), "the text has 12 tokens, more than the 8 that the model takes");
    let fits = json!({ "data": "one two three four five six", "parameters": { "truncate": false } });
    assert_eq!(running.post(MINILM, &fits).status, 200, "six and the two special ones");
}

#[test]
fn truncate_is_refused_for_a_model_that_reads_tensors() {
    let running = start(INSTANT);
    let reply = running.post(DELAY, &json!({ "data": [1.0], "parameters": { "truncate": true } }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    assert!(reply.message().contains("truncate"), "{}", reply.message());
}
