//! Every route answers, over one connection that stays open.

use serde_json::json;
use trustformers_serve::http::ROUTES;

use crate::fixtures::{chatty, minilm};
use crate::harness::{INSTANT, start};

#[test]
fn every_route_answers() {
    let running = start(&format!("{INSTANT}{}{}", minilm(), chatty()));
    let mut connection = running.connect();
    for &(method, route) in ROUTES {
        let path = route.replace("{name}", "delay");
        let body = match route {
            "/models/{name}/predict" => json!({ "data": [1.0] }),
            "/v1/inference" => json!({ "model": "delay", "data": [1.0] }),
            "/v1/inference/batch" => json!({ "model": "delay", "instances": [[1.0]] }),
            "/v1/embeddings" => json!({ "input": "a text" }),
            "/v1/completions" | "/v1/inference/stream" | "/tokenize" => json!({ "prompt": "a text" }),
            "/v1/chat/completions" => {
                json!({ "messages": [{ "role": "user", "content": "a text" }], "max_tokens": 2 })
            }
            "/v1/responses" => json!({ "input": "a text", "max_output_tokens": 2 }),
            "/detokenize" => json!({ "tokens": [0] }),
            _ => json!(null),
        };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", "application/json"), ("x-request-id", "route-test")];
        let reply = connection.request(method, &path, &headers, body.as_bytes());
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text());
        assert_eq!(reply.header("x-request-id"), Some("route-test"), "{method} {path}");
    }
}

#[test]
fn head_is_answered_like_get_without_a_body() {
    let running = start(INSTANT);
    let mut connection = running.connect();
    connection.send(b"HEAD /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    let answer = connection.read_rest();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn requests_sent_ahead_on_one_connection_are_answered_in_order() {
    let running = start(INSTANT);
    let mut connection = running.connect();
    for number in 0..20 {
        connection.start_post(crate::harness::DELAY, &json!([number]));
    }
    for number in 0..20 {
        assert_eq!(connection.reply().ok()["data"], json!([f64::from(number)]));
    }
}
