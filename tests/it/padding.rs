//! Items of different lengths in one batch of a model that pads.

use serde_json::{Value, json};

use crate::fixtures::{masked_mean, script_model};
use crate::harness::{Running, start};

const TAGGER: &str = "/models/tagger/predict";

/// An item of `length` ids, every third of which the mask leaves out.
fn item(length: u64) -> Value {
    let ids: Vec<u64> = (0..length).map(|place| (length * 7 + place * 13) % 99 + 1).collect();
    let mask: Vec<u64> = (0..length).map(|place| u64::from(place % 3 != 2)).collect();
    json!({ "ids": ids, "mask": mask })
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn assert_same(batched: &Value, alone: &Value, what: &str) {
    for output in ["mean", "parts"] {
        let (batched, alone) = (numbers(&batched[output]), numbers(&alone[output]));
        assert_eq!(batched.len(), alone.len(), "{output} of {what}");
        let near = batched.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near, "{output} of {what}: {batched:?} {alone:?}");
    }
}

fn alone(running: &Running, item: &Value) -> Value {
    running.post(TAGGER, &json!({ "data": item })).ok()["data"].clone()
}

#[test]
fn items_of_mixed_lengths_share_a_batch_and_get_what_they_get_alone() {
    let running = start(&masked_mean("tagger"));
    let lengths = [5, 1, 32, 17, 5, 2, 31, 8, 64, 3];
    let solo: Vec<Value> = lengths.iter().map(|&length| alone(&running, &item(length))).collect();
    assert_eq!(running.count("tagger", "executed_batches"), 10);
    let items: Vec<Value> = lengths.iter().map(|&length| item(length)).collect();
    let reply = running.post(TAGGER, &json!({ "instances": items })).ok();
    assert_eq!(running.count("tagger", "executed_batches"), 11, "one batch for all");
    for ((length, alone), prediction) in
        lengths.iter().zip(&solo).zip(reply["predictions"].as_array().unwrap())
    {
        assert_eq!(prediction["data"]["parts"].as_array().unwrap().len() as u64, *length, "cut back");
        assert_same(&prediction["data"], alone, &format!("length {length}"));
    }
}

#[test]
fn a_length_counts_as_the_tokens_of_a_batch() {
    let running = start(&format!("{}models.tagger.batching.max_batch_tokens = 24\n", masked_mean("tagger")));
    let items: Vec<Value> = [8, 8, 8, 8].into_iter().map(item).collect();
    running.post(TAGGER, &json!({ "instances": items })).ok();
    assert_eq!(running.count("tagger", "executed_batches"), 2, "three of length 8, and one");
    let reply = running.post(TAGGER, &json!({ "data": item(25) }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
}

#[test]
fn inputs_padded_together_must_have_one_length() {
    let running = start(&masked_mean("tagger"));
    let odd = json!({ "ids": [1, 2, 3], "mask": [1, 1] });
    let reply = running.post(TAGGER, &json!({ "data": odd }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    assert_eq!(reply.message(), "inputs \"ids\" and \"mask\" must have one length, but have 3 and 2");
    let reply = running.post(TAGGER, &json!({ "instances": [item(3), odd] })).ok();
    let predictions = reply["predictions"].as_array().unwrap();
    assert!(predictions[0]["data"]["mean"].is_array(), "its neighbour is answered");
    assert_eq!(predictions[1]["error"]["code"], "invalid_input");
}

#[test]
fn an_item_that_is_too_long_is_refused_or_cut_as_the_model_or_the_request_says() {
    let running = start(&format!("{}models.tagger.max_length = 4\n", masked_mean("tagger")));
    let reply = running.post(TAGGER, &json!({ "data": item(6) }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    assert_eq!(reply.message(), "the item has length 6, more than the 4 that the model takes");
    let cut = json!({ "data": item(6), "parameters": { "truncate": true } });
    let cut = running.post(TAGGER, &cut).ok()["data"].clone();
    assert_eq!(cut["parts"].as_array().unwrap().len(), 4);
    let mut first = item(6);
    for input in ["ids", "mask"] {
        first[input].as_array_mut().unwrap().truncate(4);
    }
    assert_same(&cut, &alone(&running, &first), "the first four");
}

#[test]
fn the_list_of_models_says_what_is_padded() {
    let inputs = start(&masked_mean("tagger")).get("/models/tagger").ok()["inputs"].clone();
    assert_eq!(inputs[0], json!({ "name": "ids", "dtype": "i64", "shape": [-1], "pad": 0.0 }));
}

#[test]
fn rows_that_fill_up_a_static_batch_are_nobodys() {
    let config = script_model("m", "fixed_rows");
    let running =
        start(&format!("{config}models.m.static_batch = true\nmodels.m.batching.max_batch_size = 4\n"));
    let reply = running.post("/models/m/predict", &json!({ "instances": [[1, 2], [3, 4]] })).ok();
    assert_eq!(reply["predictions"], json!([{ "data": [2.0, 4.0] }, { "data": [6.0, 8.0] }]));
    assert_eq!(running.post("/models/m/predict", &json!([5])).ok()["data"], json!([10.0]));
}
