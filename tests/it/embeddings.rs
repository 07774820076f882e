//! `POST /v1/embeddings` and `GET /v1/models`, as OpenAI's clients use them.

use serde_json::{Value, json};

use crate::fixtures::{copy_minilm, minilm, minilm_folder};
use crate::harness::{INSTANT, quoted, start};

const ROUTE: &str = "/v1/embeddings";

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn a_text_gives_one_normalised_embedding_and_its_tokens_are_counted() {
    let running = start(&minilm());
    let reply = running.post(ROUTE, &json!({ "input": "hello world", "model": "minilm" })).ok();
    assert_eq!((&reply["object"], &reply["model"]), (&json!("list"), &json!("minilm")));
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 4, "total_tokens": 4 }), "[CLS] hello world [SEP]");
    let data = reply["data"].as_array().unwrap();
    assert_eq!(data.len(), 1);
    assert_eq!((&data[0]["object"], &data[0]["index"]), (&json!("embedding"), &json!(0)));
    let embedding = floats(&data[0]["embedding"]);
    assert_eq!(embedding.len(), 384);
    assert!((embedding.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-4);
    assert_eq!(
        running.metric("trustformers_tokens_total{kind=\"prompt\",model=\"minilm\",version=\"1\"}"),
        4.0
    );
}

#[test]
fn texts_and_token_ids_of_the_same_text_give_the_same_embedding() {
    let running = start(&minilm());
    let embedding = |input: Value| {
        let reply = running.post(ROUTE, &json!({ "input": input })).ok();
        floats(&reply["data"].as_array().unwrap().last().unwrap()["embedding"])
    };
    let text = embedding(json!("hello world"));
    // "hello world" in BERT's uncased vocabulary.
    let ids = json!([101, 7592, 2088, 102]);
    for other in [json!(["something else", "hello world"]), ids.clone(), json!([[101, 102], ids])] {
        let same = embedding(other.clone());
        assert!(text.iter().zip(&same).all(|(a, b)| (a - b).abs() < 1e-5), "{other}");
    }
}

#[test]
fn base64_holds_the_same_numbers_as_float() {
    let running = start(&minilm());
    let ask = |format: &str| {
        running.post(ROUTE, &json!({ "input": "hello", "encoding_format": format })).ok()["data"][0]["embedding"]
            .clone()
    };
    let bytes = decode_base64(ask("base64").as_str().unwrap());
    let decoded: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    let plain: Vec<f32> = floats(&ask("float")).into_iter().map(|x| x as f32).collect();
    assert_eq!(decoded.len(), 384);
    assert!(decoded.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-6));
}

fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.bytes().filter(|&byte| byte != b'=').flat_map(|byte| {
        let value = ALPHABET.iter().position(|&letter| letter == byte).expect("base64");
        (0..6).rev().map(move |bit| u8::from(value >> bit & 1 == 1))
    });
    let bits: Vec<u8> = bits.collect();
    bits.chunks_exact(8).map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
}

#[test]
fn the_model_may_be_left_out_only_where_one_reads_text() {
    let folder = tempfile::tempdir().unwrap();
    copy_minilm(&folder.path().join("other"));
    let other = quoted(&folder.path().join("other"));
    let two = start(&format!("{}models.other.path = {other}\n", minilm()));
    let reply = two.post(ROUTE, &json!({ "input": "a" }));
    assert_eq!((reply.status, reply.code().as_str()), (400, "malformed_request"));
    assert!(reply.message().contains("\"model\""), "{}", reply.message());
    assert_eq!(two.post(ROUTE, &json!({ "input": "a", "model": "other" })).ok()["model"], "other");
    let none = start(INSTANT);
    let reply = none.post(ROUTE, &json!({ "input": "a" }));
    assert_eq!((reply.status, reply.code().as_str()), (404, "model_not_found"));
    let one = start(&format!("{INSTANT}{}", minilm()));
    assert_eq!(one.post(ROUTE, &json!({ "input": "a" })).ok()["model"], "minilm");
}

#[test]
fn openais_list_of_models_has_every_model() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    let reply = running.get("/v1/models").ok();
    assert_eq!(reply["object"], "list");
    let models = reply["data"].as_array().unwrap();
    let ids: Vec<_> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["delay", "minilm"]);
    assert!(models.iter().all(|model| model["object"] == "model" && model["created"].as_u64().unwrap() > 0));
    assert_eq!(running.get("/v1/models/minilm").ok()["id"], "minilm");
    assert_eq!(running.get("/v1/models/nobody").code(), "model_not_found");
    assert!(minilm_folder().is_dir());
}
