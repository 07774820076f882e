//! Clients that leave while they wait.

use serde_json::json;

use crate::fixtures::minilm;
use crate::harness::{BUSY, DELAY, start};

#[test]
fn requests_of_clients_that_left_while_queued_never_run() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let leaving: Vec<_> = (0..20).map(|_| running.post_later(DELAY, &json!([1.0]))).collect();
    running.until_queued(21);
    drop(leaving);
    running.until_queued(1);
    assert_eq!(busy.reply().status, 200);
    running.still_serves();
    assert_eq!(running.count("delay", "executed_items"), 3, "two that kept it busy, and the last");
    assert_eq!(running.outcomes("delay", "cancelled"), 20.0);
    assert_eq!(running.outcomes("delay", "ok"), 3.0);
    assert_eq!(running.metric("trustformers_queue_depth{model=\"delay\",version=\"1\"}"), 0.0);
}

#[test]
fn every_item_of_a_client_that_left_is_forgotten() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let leaving =
        running.post_later("/v1/inference/batch", &json!({ "model": "delay", "instances": [[1], [2], [3]] }));
    running.until_queued(4);
    drop(leaving);
    running.until_queued(1);
    assert_eq!(busy.reply().status, 200);
    assert_eq!(running.count("delay", "executed_items"), 2);
    assert_eq!(running.outcomes("delay", "cancelled"), 3.0);
}

#[test]
fn a_client_that_left_while_its_request_ran_is_counted_as_gone() {
    let running = start("models.delay.delay.batch_time = '300ms'\n");
    let leaving = running.post_later(DELAY, &json!([1.0]));
    running.eventually("it runs", |running| running.metric("trustformers_connections") >= 2.0);
    drop(leaving);
    running.eventually("gone", |running| {
        running.outcomes("delay", "cancelled") == 1.0 || running.metric("trustformers_connections") == 1.0
    });
    running.still_serves();
    assert_eq!(running.outcomes("delay", "ok"), 1.0);
}

#[test]
fn a_queue_emptied_by_leaving_clients_admits_others() {
    let running = start(&format!("{BUSY}models.delay.batching.max_queue_size = 2\n"));
    let mut busy = running.occupy();
    let leaving = running.post_later(DELAY, &json!([1.0]));
    running.until_queued(2);
    assert_eq!(running.post(DELAY, &json!([1.0])).code(), "queue_full");
    drop(leaving);
    running.until_queued(1);
    assert_eq!(running.post(DELAY, &json!([5.0])).ok()["data"], json!([5.0]));
    assert_eq!(busy.reply().status, 200);
}

#[test]
fn embeddings_of_clients_that_left_never_run() {
    let window = "models.minilm.batching.dispatch = 'window'\nmodels.minilm.batching.max_wait_time = '30s'\n";
    let running = start(&format!("{}{window}", minilm()));
    let leaving: Vec<_> =
        (0..5).map(|_| running.post_later("/v1/embeddings", &json!({ "input": "a text" }))).collect();
    running.eventually("queued", |running| running.queued("minilm") == 5);
    drop(leaving);
    running.eventually("forgotten", |running| running.queued("minilm") == 0);
    running.eventually("counted", |running| running.outcomes("minilm", "cancelled") == 5.0);
    assert_eq!(running.count("minilm", "executed_items"), 0);
}
