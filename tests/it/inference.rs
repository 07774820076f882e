//! `POST /v1/inference` and `/v1/inference/batch`: the model is named in the body.

use serde_json::json;

use crate::client::{MSGPACK, msgpack};
use crate::harness::{INSTANT, start};

#[test]
fn the_model_in_the_body_answers_one_item() {
    let running = start(INSTANT);
    for body in [
        json!({ "model": "delay", "data": [1.0] }),
        json!({ "data": [1.0], "version": "1", "model": "delay", "priority": "low" }),
    ] {
        let expected = json!({ "data": [1.0], "model": "delay", "version": "1" });
        assert_eq!(running.post("/v1/inference", &body).ok(), expected);
        assert_eq!(running.post_raw("/v1/inference", &[MSGPACK], &msgpack(&body)).ok(), expected);
    }
}

#[test]
fn the_model_in_the_body_answers_many_items_on_both_routes() {
    let running = start(INSTANT);
    let body = json!({ "model": "delay", "instances": [[1.0], [2.0, 3.0]] });
    let expected = json!({ "predictions": [{ "data": [1.0] }, { "data": [2.0, 3.0] }], "model": "delay", "version": "1" });
    for route in ["/v1/inference", "/v1/inference/batch"] {
        assert_eq!(running.post(route, &body).ok(), expected);
        assert_eq!(running.post_raw(route, &[MSGPACK], &msgpack(&body)).ok(), expected);
    }
}
