//! Everything is bounded, and what is over a bound is told so.

use std::time::Duration;

use serde_json::json;

use crate::client::{JSON, MSGPACK};
use crate::errors::Refused;
use crate::fixtures::minilm;
use crate::harness::{BUSY, DELAY, INSTANT, MINILM, start};

#[test]
fn a_body_over_the_limit_is_413_declared_or_not() {
    let running = start(&format!("server.max_body_size = '1KB'\n{INSTANT}"));
    let long = format!("[{}1]", "1,".repeat(1000));
    for format in [JSON, MSGPACK] {
        running.refuses(&Refused {
            method: "POST",
            path: DELAY,
            headers: &[format],
            body: long.as_bytes(),
            status: 413,
            code: "body_too_large",
            says: &["1000 bytes"],
            model: "delay",
        });
    }
    let mut chunked = running.connect();
    chunked.send(b"POST /models/delay/predict HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n");
    chunked.send(format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()).as_bytes());
    assert_eq!(chunked.reply().code(), "body_too_large");
    assert_eq!(running.outcomes("delay", "body_too_large"), 3.0);
    let fits = format!("[{}1]", "1,".repeat(499 - 1));
    assert_eq!(fits.len(), 999);
    assert_eq!(running.post_raw(DELAY, &[JSON], fits.as_bytes()).status, 200);
}

#[test]
fn a_client_that_declares_too_much_and_waits_is_told_at_once_or_soon() {
    let running = start(&format!("server.max_body_size = '1KB'\n{INSTANT}"));
    let mut waiting = running.connect();
    waiting.send(b"POST /models/delay/predict HTTP/1.1\r\nhost: t\r\ncontent-length: 999999999999\r\n\r\n");
    assert_eq!(waiting.reply().code(), "body_too_large");
    running.still_serves();
}

#[test]
fn a_full_queue_refuses_what_is_too_much_and_runs_the_rest() {
    let running = start(&format!("{BUSY}models.delay.batching.max_queue_size = 3\n"));
    let mut busy = running.occupy();
    let reply = running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0]] })).ok();
    let predictions = reply["predictions"].as_array().unwrap();
    assert_eq!((&predictions[0], &predictions[1]), (&json!({ "data": [1.0] }), &json!({ "data": [2.0] })));
    for refused in &predictions[2..] {
        assert_eq!(refused["error"]["code"], "queue_full");
    }
    assert_eq!(busy.reply().status, 200);
    assert_eq!(running.rejections("delay", "queue_full"), 1.0);
    assert_eq!(running.count("delay", "executed_items"), 4);
}

#[test]
fn a_call_of_more_items_than_the_queue_ever_holds_is_422_and_none_runs() {
    let running = start(&format!("{INSTANT}models.delay.batching.max_queue_size = 3\n"));
    let reply = running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0], [4.0]] }));
    assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    assert!(reply.message().contains("more than 3 instances"), "{}", reply.message());
    assert_eq!(running.count("delay", "executed_items"), 0);
}

#[test]
fn tokens_over_what_the_queue_holds_are_429() {
    let running = start(&format!("{BUSY}models.delay.batching.max_queue_tokens = 2\n"));
    let mut busy = running.occupy();
    let mut second = running.post_later(DELAY, &json!([1.0]));
    running.until_queued(2);
    let reply = running.post(DELAY, &json!([1.0]));
    assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
    assert_eq!(reply.message(), "the queue is full: 2 of at most 2 tokens are waiting, 1 more do not fit");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(running.rejections("delay", "queue_tokens_full"), 1.0);
    assert_eq!((busy.reply().status, second.reply().status), (200, 200));
}

#[test]
fn a_text_with_more_tokens_than_a_batch_ever_holds_is_422() {
    let running = start(&format!("{INSTANT}{}models.minilm.batching.max_batch_tokens = 6\n", minilm()));
    assert_eq!(running.post(MINILM, &json!("two words")).status, 200);
    let long = json!({ "data": "one two three four five" });
    running.refuses(&Refused {
        method: "POST",
        path: MINILM,
        headers: &[JSON],
        body: long.to_string().as_bytes(),
        status: 422,
        code: "invalid_input",
        says: &["7 tokens", "more than the 6"],
        model: "minilm",
    });
    assert_eq!(running.rejections("minilm", "never_fits"), 1.0);
    let input = json!({ "input": "one two three four five" });
    running.refuses(&Refused {
        method: "POST",
        path: "/v1/embeddings",
        headers: &[JSON],
        body: input.to_string().as_bytes(),
        status: 400,
        code: "invalid_input",
        says: &["7 tokens"],
        model: "minilm",
    });
}

#[test]
fn tokens_of_a_batch_stay_within_their_limit() {
    let window =
        "models.minilm.batching.dispatch = 'window'\nmodels.minilm.batching.max_wait_time = '20ms'\n";
    let running = start(&format!("{}{window}models.minilm.batching.max_batch_tokens = 8\n", minilm()));
    // Four tokens each, special ones included: two fit.
    let reply =
        running.post(MINILM, &json!({ "instances": ["two words", "hello world", "good night", "one day"] }));
    assert_eq!(reply.status, 200);
    assert_eq!(running.count("minilm", "executed_items"), 4);
    assert_eq!(running.count("minilm", "executed_batches"), 2);
    assert_eq!(running.metric("trustformers_batch_tokens_sum{model=\"minilm\",version=\"1\"}"), 16.0);
}

#[test]
fn connections_over_the_limit_wait_until_one_closes() {
    let running = start(&format!("server.max_connections = 2\n{INSTANT}"));
    let mut inside: Vec<_> = (0..2).map(|_| running.connect()).collect();
    for connection in &mut inside {
        assert_eq!(connection.post(DELAY, &json!([1.0])).status, 200);
    }
    let mut waiting = running.post_later(DELAY, &json!([2.0]));
    assert!(waiting.is_silent_for(Duration::from_millis(100)));
    assert_eq!(inside[0].post(DELAY, &json!([1.0])).status, 200, "those inside go on");
    inside.pop();
    assert_eq!(waiting.reply().ok()["data"], json!([2.0]));
}
