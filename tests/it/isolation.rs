//! What fails, is refused or hangs leaves the others alone, and shows.

use serde_json::{Value, json};

use crate::client::JSON;
use crate::errors::Refused;
use crate::fixtures::script_model;
use crate::harness::{BUSY, DELAY, INSTANT, Running, start};

const DOUBLE: &str = "/models/double/predict";
const RESET: &str = "/admin/models/double/reset_breaker";

fn double(config: &str) -> Running {
    start(&format!("{INSTANT}{}{config}", script_model("double", "double")))
}

#[test]
fn one_poison_in_a_batch_fails_alone() {
    let running = double("");
    let items: Vec<_> = (0..32).map(|number| [f64::from(if number == 13 { -1 } else { number })]).collect();
    let reply = running.post(DOUBLE, &json!({ "instances": items })).ok();
    for (number, prediction) in reply["predictions"].as_array().unwrap().iter().enumerate() {
        if number == 13 {
            assert_eq!(prediction["error"]["code"], "model_failed");
            let message = prediction["error"]["message"].as_str().unwrap();
            assert!(message.contains("negative numbers are not for this model"), "{message}");
        } else {
            assert_eq!(*prediction, json!({ "data": [2.0 * number as f64] }));
        }
    }
    let runs = running.count("double", "executed_batches");
    assert!((2..=11).contains(&runs), "{runs} runs, at most 2 log2(32) extra ones");
    assert_eq!(running.outcomes("double", "ok"), 31.0);
    assert_eq!(running.outcomes("double", "model_failed"), 1.0);
    assert_eq!(running.stats("double")["batching"]["breaker"]["state"], "closed");
}

fn breaker(running: &Running) -> (Value, f64) {
    let gauge = running.metric("trustformers_breaker_state{model=\"double\",version=\"1\"}");
    (running.stats("double")["batching"]["breaker"]["state"].clone(), gauge)
}

#[test]
fn a_model_that_keeps_failing_is_left_alone_until_it_is_reset() {
    let running = double("batching.breaker.open = '1h'\n");
    let fail = || running.post(DOUBLE, &json!([-1.0]));
    for _ in 0..4 {
        assert_eq!(fail().code(), "model_failed");
    }
    assert_eq!(breaker(&running), (json!("closed"), 0.0));
    assert_eq!(fail().code(), "model_failed");
    assert_eq!(breaker(&running), (json!("open"), 2.0));
    let reply = running.post(DOUBLE, &json!([1.0]));
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    running.refuses(&Refused {
        method: "POST",
        path: DOUBLE,
        headers: &[JSON],
        body: b"[1]",
        status: 503,
        code: "breaker_open",
        says: &["the model keeps failing", "the next try is in"],
        model: "double",
    });
    assert_eq!(running.rejections("double", "breaker_open"), 2.0);
    assert_eq!(running.get("/health/ready").status, 200, "one model's trouble is not the server's");
    let reset = running.post(RESET, &json!(null)).ok();
    let closed = json!({ "state": "closed", "retry_after_seconds": null });
    assert_eq!(reset, json!({ "name": "double", "version": "1", "breaker": closed }));
    assert_eq!(running.post(DOUBLE, &json!([1.0])).ok()["data"], json!([2.0]));
    assert_eq!(breaker(&running), (json!("closed"), 0.0));
}

#[test]
fn after_a_pause_one_request_tries_the_model_and_opens_it_for_all() {
    let running = double("batching.breaker = { failures = 1, open = '1ms' }\n");
    assert_eq!(running.post(DOUBLE, &json!([-1.0])).code(), "model_failed");
    running.eventually("the pause is over", |running| breaker(running) == (json!("half_open"), 1.0));
    assert_eq!(running.post(DOUBLE, &json!([1.0])).status, 200);
    assert_eq!(breaker(&running), (json!("closed"), 0.0));
}

#[test]
fn only_a_known_model_has_a_breaker_to_reset() {
    let running = start(INSTANT);
    for (path, code) in [
        ("/admin/models/nope/reset_breaker", "model_not_found"),
        ("/admin/models/delay/reset_breaker?version=9", "version_not_found"),
    ] {
        let reply = running.post(path, &json!(null));
        assert_eq!((reply.status, reply.code().as_str()), (404, code));
    }
    assert_eq!(running.post("/admin/models/delay/reset_breaker?version=1", &json!(null)).status, 200);
}

/// A model of 20 ms a request, known well enough to predict, with a queue of 40.
fn crowded(config: &str) -> (Running, crate::client::Connection) {
    let running = start(&format!(
        "models.delay.delay.batch_time = '20ms'\nmodels.delay.batching.max_batch_size = 1\n\
         models.delay.batching.max_wait_time = '0ms'\n{config}"
    ));
    (0..10).for_each(|_| running.still_serves());
    let crowd = json!({ "instances": vec![[1.0]; 40], "priority": "critical" });
    let crowd = running.post_later(DELAY, &crowd);
    running.eventually("the crowd waits", |running| running.queued("delay") > 20);
    (running, crowd)
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_once_with_the_prediction() {
    let (running, _crowd) = crowded("");
    let reply = running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 100 }));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    let message = reply.message();
    assert!(
        message.starts_with("the deadline cannot be met: the request would be answered after "),
        "{message}"
    );
    assert_eq!(running.rejections("delay", "deadline_unmeetable"), 1.0);
    assert!(running.queued("delay") > 0, "the queue had not drained");
}

#[test]
fn what_would_wait_too_long_is_429_overloaded_unless_it_is_critical() {
    let (running, mut crowd) = crowded("batching.latency_slo = '10ms'\n");
    let reply = running.post(DELAY, &json!([1.0]));
    assert_eq!((reply.status, reply.code().as_str()), (429, "overloaded"));
    assert!(reply.message().contains("the request would wait"), "{}", reply.message());
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(running.rejections("delay", "overloaded"), 1.0);
    assert_eq!(running.post(DELAY, &json!({ "data": [1.0], "priority": "critical" })).status, 200);
    assert_eq!(crowd.reply().status, 200);
}

#[test]
fn what_no_device_could_ever_hold_is_422_with_both_numbers() {
    let limit = "device.memory_limit = '500B'\nmodels.big.batching.dynamic.bytes_per_element = '1KB'\n";
    let running = start(&format!(
        "{limit}{INSTANT}models.big.delay.batch_time = '0ms'\nmodels.big.format = 'builtin'\n"
    ));
    running.refuses(&Refused {
        method: "POST",
        path: "/models/big/predict",
        headers: &[JSON],
        body: b"[1]",
        status: 422,
        code: "invalid_input",
        says: &["1000 bytes", "more than the 500"],
        model: "big",
    });
    assert_eq!(running.rejections("big", "never_fits_memory"), 1.0);
    let limit = running.metric("trustformers_memory_bytes{kind=\"limit\",model=\"big\",version=\"1\"}");
    assert_eq!(limit, 500.0);
    assert_eq!(running.stats("big")["batching"]["memory"]["limit_bytes"], 500);
}

#[test]
fn models_of_one_device_share_its_memory() {
    let model = |name: &str| {
        format!(
            "models.{name} = {{ format = 'builtin', delay = {{ batch_time = '200ms' }}, \
             batching.dynamic.bytes_per_element = '1KB' }}\n"
        )
    };
    let running = start(&format!("device.memory_limit = '1KB'\n{}{}", model("a"), model("b")));
    let mut both =
        ["a", "b"].map(|name| running.post_later(&format!("/models/{name}/predict"), &json!([1.0])));
    both.iter_mut().for_each(|connection| assert_eq!(connection.reply().status, 200));
    let waited = ["a", "b"].map(|name| running.stats(name)["mean_queue_seconds"].as_f64().unwrap());
    assert!(waited[0].max(waited[1]) > 0.1, "one waited for the other: {waited:?}");
    let predicted = running.metric("trustformers_memory_bytes{kind=\"predicted\",model=\"a\",version=\"1\"}");
    assert_eq!(predicted, 1000.0);
}

#[test]
fn a_stalled_instance_shows_and_the_others_go_on() {
    let running =
        start(&format!("{BUSY}models.delay.instances = 2\nmodels.delay.batching.stall_timeout = '20ms'\n"));
    let mut first = running.post_later(DELAY, &json!([1.0]));
    let gauge = "trustformers_stalled_instances{model=\"delay\",version=\"1\"}";
    running.eventually("it is stalled", |running| running.metric(gauge) == 1.0);
    let mut second = running.post_later(DELAY, &json!([2.0]));
    assert_eq!(running.get("/health/ready").status, 200);
    assert_eq!(second.reply().ok()["data"], json!([2.0]));
    assert_eq!(first.reply().ok()["data"], json!([1.0]));
    assert!(
        running.stats("delay")["mean_queue_seconds"].as_f64().unwrap() < 0.2,
        "neither waited for the other"
    );
    assert_eq!(running.stats("delay")["batching"]["stalled_instances"], json!([]));
    assert_eq!(running.metric(gauge), 0.0);
}

#[test]
fn a_priority_above_what_is_allowed_is_403() {
    let running = start(&format!("{INSTANT}batching.max_priority = 'normal'\n"));
    for (headers, body) in [
        (&[JSON][..], &b"{\"data\":[1],\"priority\":\"high\"}"[..]),
        (&[JSON, ("x-priority", "High")], b"[1]"),
    ] {
        running.refuses(&Refused {
            method: "POST",
            path: DELAY,
            headers,
            body,
            status: 403,
            code: "priority_not_allowed",
            says: &["\"high\"", "\"normal\""],
            model: "delay",
        });
    }
    assert_eq!(running.post(DELAY, &json!({ "data": [1.0], "priority": "low" })).status, 200);
}

#[test]
fn a_request_that_names_no_time_has_what_its_priority_gets() {
    let running = start(&format!("server.request_timeout = '200ms'\n{BUSY}"));
    let status = |body: Value| running.post(DELAY, &body).status;
    assert_eq!(status(json!({ "data": [1.0], "priority": "low" })), 200, "400 ms");
    assert_eq!(status(json!({ "data": [1.0], "priority": "low", "timeout_ms": 60_000 })), 200, "as much");
    assert_eq!(status(json!({ "data": [1.0] })), 504, "200 ms");
}

#[test]
fn nothing_is_padded_where_nothing_has_a_length() {
    let running = start(INSTANT);
    running.still_serves();
    let sample = |name: &str| running.metric(&format!("{name}{{model=\"delay\",version=\"1\"}}"));
    assert_eq!(sample("trustformers_padding_ratio_count"), 1.0);
    assert_eq!(sample("trustformers_padding_ratio_sum"), 0.0);
}
