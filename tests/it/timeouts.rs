//! A request's time covers queue and execution, whoever sets it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::JSON;
use crate::harness::{BUSY, DELAY, start};

#[test]
fn a_request_that_waits_too_long_is_504_and_never_runs() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let reply = running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 20 }));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(reply.message(), "the deadline passed while the request was queued");
    assert_eq!(running.queued("delay"), 1, "it was answered while the model was busy with the first of two");
    assert_eq!(busy.reply().status, 200);
    assert_eq!(running.count("delay", "executed_items"), 2);
    assert_eq!(running.outcomes("delay", "deadline_exceeded"), 1.0);
    running.still_serves();
}

#[test]
fn a_request_that_runs_too_long_is_504_when_its_time_is_over() {
    let running = start("models.delay.delay.batch_time = '500ms'\n");
    let started = Instant::now();
    let reply = running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 50 }));
    let waited = started.elapsed();
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(reply.message(), "the deadline passed while the model ran");
    assert!(waited >= Duration::from_millis(50), "{waited:?}");
    assert_eq!(running.count("delay", "executed_items"), 0, "it was answered before the model ended");
    running.eventually("the batch ends", |running| running.count("delay", "executed_items") == 1);
}

#[test]
fn a_time_may_stand_in_the_body_or_a_header_and_the_body_wins() {
    let running = start("models.delay.delay.batch_time = '200ms'\n");
    let ask = |header: &str, body: serde_json::Value| {
        running.post_raw(DELAY, &[JSON, ("x-timeout-ms", header)], body.to_string().as_bytes()).status
    };
    assert_eq!(ask("20", json!({ "data": [1.0] })), 504);
    assert_eq!(ask("20", json!([1.0])), 504);
    assert_eq!(ask("60000", json!([1.0])), 200);
    assert_eq!(ask("60000", json!({ "data": [1.0], "timeout_ms": 20 })), 504);
    assert_eq!(ask("20", json!({ "data": [1.0], "timeout_ms": 60_000 })), 200);
}

#[test]
fn no_request_gets_more_time_than_the_server_gives() {
    let running = start("server.request_timeout = '50ms'\nmodels.delay.delay.batch_time = '300ms'\n");
    assert_eq!(running.post(DELAY, &json!([1.0])).code(), "deadline_exceeded");
    assert_eq!(
        running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 60_000 })).code(),
        "deadline_exceeded"
    );
}

#[test]
fn a_time_that_is_over_before_it_begins_is_refused_at_once() {
    let running = start(BUSY);
    let reply = running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 0 }));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(running.rejections("delay", "deadline_passed"), 1.0);
    assert_eq!(running.count("delay", "executed_items"), 0);
}

#[test]
fn items_of_one_call_expire_together_and_neighbours_go_on() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let mut patient = running.post_later(DELAY, &json!([7.0]));
    running.until_queued(2);
    let reply = running.post(DELAY, &json!({ "instances": [[1.0], [2.0]], "timeout_ms": 20 }));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(running.outcomes("delay", "deadline_exceeded"), 2.0);
    assert_eq!(busy.reply().status, 200);
    assert_eq!(patient.reply().ok()["data"], json!([7.0]));
}
