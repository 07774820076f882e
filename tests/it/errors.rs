//! Every error a client can cause: status, code, message, request id, metric, and life goes on.

use serde_json::{Value, json};

use crate::client::{JSON, MSGPACK, Reply, msgpack};
use crate::fixtures::{minilm, script_model};
use crate::harness::{BUSY, DELAY, INSTANT, Running, start, start_unready};

/// A request that must be refused.
pub(crate) struct Refused<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
    pub(crate) status: u16,
    pub(crate) code: &'a str,
    /// What the message must have.
    pub(crate) says: &'a [&'a str],
    /// The model that counts it; empty when none does.
    pub(crate) model: &'a str,
}

impl Running {
    /// Asserts everything that is promised of an error.
    pub(crate) fn refuses(&self, case: &Refused<'_>) {
        let what = format!("{} {} {}", case.method, case.path, String::from_utf8_lossy(case.body));
        let what = &what[..what.len().min(300)];
        let before = self.outcomes(case.model, case.code);
        let mut headers = case.headers.to_vec();
        headers.push(("x-request-id", "error-test:1"));
        let reply = self.connect().request(case.method, case.path, &headers, case.body);
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (case.status, case.code),
            "{what}: {}",
            reply.text()
        );
        for part in case.says {
            assert!(reply.message().contains(part), "{what}: {part:?} is not in {}", reply.message());
        }
        assert_eq!(reply.header("content-type"), Some("application/json"), "{what}");
        assert_eq!(reply.header("x-request-id"), Some("error-test:1"), "{what}");
        let openai = case.path.starts_with("/v1/") && !case.path.starts_with("/v1/inference");
        if openai {
            openai_style(&reply, what);
        } else {
            own_style(&reply, what);
        }
        assert_eq!(self.outcomes(case.model, case.code), before + 1.0, "{what} is counted once");
        self.still_serves();
    }
}

fn own_style(reply: &Reply, what: &str) {
    let error = &reply.json()["error"];
    let keys: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "message", "request_id"], "{what}");
    assert_eq!(error["request_id"], "error-test:1", "{what}");
}

fn openai_style(reply: &Reply, what: &str) {
    let error = &reply.json()["error"];
    let keys: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{what}");
    let kind = match reply.status {
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    assert_eq!(error["type"], kind, "{what}");
}

/// The same request in both formats.
fn refuses_in_both(
    running: &Running,
    path: &str,
    body: &Value,
    status: u16,
    code: &str,
    says: &[&str],
    model: &str,
) {
    let text = body.to_string().into_bytes();
    let packed = msgpack(body);
    for (format, body) in [(JSON, text), (MSGPACK, packed)] {
        let headers = &[format, ("accept", format.1)];
        running.refuses(&Refused { method: "POST", path, headers, body: &body, status, code, says, model });
    }
}

#[test]
fn an_unknown_model_is_404_and_the_known_ones_are_named() {
    let running = start(INSTANT);
    let item = json!({ "data": [1.0] });
    let says = ["\"nope\"", "\"delay\""];
    refuses_in_both(&running, "/models/nope/predict", &item, 404, "model_not_found", &says, "");
    let body = json!({ "model": "nope", "data": [1.0] });
    refuses_in_both(&running, "/v1/inference", &body, 404, "model_not_found", &says, "");
    let body = json!({ "model": "nope", "instances": [[1.0]] });
    refuses_in_both(&running, "/v1/inference/batch", &body, 404, "model_not_found", &says, "");
    for (method, path) in
        [("GET", "/models/nope"), ("POST", "/models/nope/load"), ("POST", "/models/nope/unload")]
    {
        running.refuses(&Refused {
            method,
            path,
            headers: &[],
            body: b"",
            status: 404,
            code: "model_not_found",
            says: &says,
            model: "",
        });
    }
}

#[test]
fn an_unknown_version_is_404_and_the_known_ones_are_named() {
    let running = start(INSTANT);
    let item = json!({ "data": [1.0] });
    let says = ["\"9\"", "\"delay\"", "\"1\""];
    refuses_in_both(&running, "/models/delay/predict?version=9", &item, 404, "version_not_found", &says, "");
    let body = json!({ "model": "delay", "version": "9", "data": [1.0] });
    refuses_in_both(&running, "/v1/inference", &body, 404, "version_not_found", &says, "");
    for path in ["/models/delay/load?version=9", "/models/delay/unload?version=9"] {
        running.refuses(&Refused {
            method: "POST",
            path,
            headers: &[],
            body: b"",
            status: 404,
            code: "version_not_found",
            says: &says,
            model: "",
        });
    }
}

#[test]
fn an_unknown_route_is_404_and_named() {
    let running = start(INSTANT);
    for path in
        ["/nope", "/v1/inference/nope", "/models/delay/nope", "/v1/nope", "//", "/models/delay/predict/"]
    {
        running.refuses(&Refused {
            method: "GET",
            path,
            headers: &[],
            body: b"",
            status: 404,
            code: "route_not_found",
            says: &[path],
            model: "",
        });
    }
}

#[test]
fn a_wrong_method_is_405_and_the_right_one_is_named() {
    let running = start(INSTANT);
    for (path, right) in [
        ("/models/delay/predict", "POST"),
        ("/v1/inference", "POST"),
        ("/v1/embeddings", "POST"),
        ("/models", "GET,HEAD"),
        ("/health", "GET,HEAD"),
        ("/metrics", "GET,HEAD"),
        ("/v1/models", "GET,HEAD"),
    ] {
        running.refuses(&Refused {
            method: "DELETE",
            path,
            headers: &[],
            body: b"",
            status: 405,
            code: "method_not_allowed",
            says: &[path, "DELETE"],
            model: "",
        });
        let reply = running.connect().request("DELETE", path, &[], b"");
        assert_eq!(reply.header("allow"), Some(right), "{path}");
    }
}

#[test]
fn another_content_type_is_415_and_the_right_ones_are_named() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        for (path, model) in [(DELAY, "delay"), ("/v1/inference", ""), ("/v1/inference/batch", "")] {
            running.refuses(&Refused {
                method: "POST",
                path,
                headers: &[("content-type", content_type)],
                body: b"{\"data\":[1]}",
                status: 415,
                code: "unsupported_media_type",
                says: &[content_type, "application/json", "application/msgpack"],
                model,
            });
        }
    }
    running.refuses(&Refused {
        method: "POST",
        path: "/v1/embeddings",
        headers: &[MSGPACK],
        body: &msgpack(&json!({ "input": "a" })),
        status: 415,
        code: "unsupported_media_type",
        says: &["application/json"],
        model: "",
    });
}

#[test]
fn what_does_not_fit_the_model_is_422_naming_input_expected_and_got() {
    let running = start(INSTANT);
    for (data, got) in [
        (json!([]), "shape [0]"),
        (json!([[1.0]]), "more than 1 dimensions"),
        (json!(1.0), "a single value"),
        (json!("text"), "a string"),
        (json!(["text"]), "a string"),
        (json!([true]), "true"),
        (json!([null]), "null"),
        (json!(null), "null"),
        (json!([1.0, [2.0]]), "more than 1 dimensions"),
        (json!([{ "a": 1 }]), "an object"),
        (json!([1e39]), "out of the range of f32"),
    ] {
        let says = ["\"data\"", "f32 of shape [-1]", got];
        let body = json!({ "data": data });
        refuses_in_both(&running, DELAY, &body, 422, "invalid_input", &says, "delay");
        let body = json!({ "model": "delay", "data": data });
        refuses_in_both(&running, "/v1/inference", &body, 422, "invalid_input", &says, "delay");
    }
    let unknown = json!({ "data": { "other": [1.0] } });
    refuses_in_both(&running, DELAY, &unknown, 422, "invalid_input", &["\"other\"", "\"data\""], "delay");
}

#[test]
fn an_empty_list_of_instances_is_422() {
    let running = start(INSTANT);
    let empty = json!({ "instances": [] });
    refuses_in_both(&running, DELAY, &empty, 422, "invalid_input", &["\"instances\" is empty"], "delay");
    let body = json!({ "model": "delay", "instances": [] });
    refuses_in_both(&running, "/v1/inference/batch", &body, 422, "invalid_input", &["empty"], "delay");
}

#[test]
fn a_body_of_another_form_is_400_saying_what_is_missing_or_too_much() {
    let running = start(INSTANT);
    for (body, says) in [
        (json!({}), "needs \"data\" or \"instances\""),
        (json!({ "priority": "high" }), "neither \"data\" nor \"instances\""),
        (json!({ "data": [1.0], "instances": [[1.0]] }), "both \"data\" and \"instances\""),
        (json!({ "data": [1.0], "colour": 1 }), "\"colour\""),
        (json!({ "data": [1.0], "priority": "urgent" }), "urgent"),
        (json!({ "data": [1.0], "timeout_ms": -1 }), "-1"),
        (json!({ "data": [1.0], "parameters": { "colour": 1 } }), "colour"),
        (json!({ "instances": [1.0], "model": "delay" }), "\"model\""),
        (json!({ "instances": 1.0 }), "a list of items"),
    ] {
        refuses_in_both(&running, DELAY, &body, 400, "malformed_request", &[says], "delay");
    }
    let reply = running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": "5" }));
    assert!(reply.status == 400 && reply.message().contains("expected u64"), "{}", reply.text());
    let unnamed = json!({ "data": [1.0] });
    refuses_in_both(&running, "/v1/inference", &unnamed, 400, "malformed_request", &["\"model\""], "");
    let single = json!({ "model": "delay", "data": [1.0] });
    let says = ["\"instances\""];
    refuses_in_both(&running, "/v1/inference/batch", &single, 400, "malformed_request", &says, "delay");
}

#[test]
fn headers_that_make_no_sense_are_400() {
    let running = start(INSTANT);
    for (header, says) in [
        (("x-priority", "urgent"), "low, normal, high or critical"),
        (("x-timeout-ms", "soon"), "whole milliseconds"),
        (("x-timeout-ms", "-1"), "whole milliseconds"),
    ] {
        running.refuses(&Refused {
            method: "POST",
            path: DELAY,
            headers: &[JSON, header],
            body: b"{\"data\":[1]}",
            status: 400,
            code: "malformed_request",
            says: &[says, header.1],
            model: "delay",
        });
    }
    for path in ["/models/delay/predict?version=1&version=2", "/models/%ff/predict"] {
        running.refuses(&Refused {
            method: "POST",
            path,
            headers: &[JSON],
            body: b"{\"data\":[1]}",
            status: 400,
            code: "malformed_request",
            says: &[],
            model: "",
        });
    }
}

#[test]
fn a_model_that_is_not_loaded_is_503_and_its_state_is_said() {
    let running = start(&format!("{INSTANT}{}models.minilm.load = false\n", minilm()));
    let item = json!({ "data": "text" });
    let says = ["\"minilm\"", "\"1\"", "is not loaded"];
    refuses_in_both(&running, "/models/minilm/predict", &item, 503, "model_not_ready", &says, "minilm");
    running.refuses(&Refused {
        method: "POST",
        path: "/v1/embeddings",
        headers: &[JSON],
        body: b"{\"input\":\"a\",\"model\":\"minilm\"}",
        status: 503,
        code: "model_not_ready",
        says: &says,
        model: "minilm",
    });
}

#[test]
fn a_model_that_failed_to_load_is_503_with_the_reason_and_its_loading_500() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let path = crate::harness::quoted(folder.path());
    let running = start_unready(&format!("{INSTANT}models.broken.path = {path}\n"));
    running.server.wait_settled();
    let item = json!({ "data": "text" });
    let says = ["\"broken\"", "failed to load", "config.json"];
    refuses_in_both(&running, "/models/broken/predict", &item, 503, "model_not_ready", &says, "broken");
    running.refuses(&Refused {
        method: "POST",
        path: "/models/broken/load",
        headers: &[],
        body: b"",
        status: 500,
        code: "model_failed",
        says: &says,
        model: "",
    });
}

#[test]
fn a_model_that_raises_is_500_with_its_own_words_and_goes_on() {
    let running = start(&format!("{INSTANT}{}", script_model("double", "double")));
    let path = "/models/double/predict";
    let says = ["negative numbers are not for this model"];
    let body = json!({ "data": [-1.0] });
    refuses_in_both(&running, path, &body, 500, "model_failed", &says, "double");
    let reply = running.post(path, &body);
    assert!(!reply.message().contains("Exception raised from"), "no C++ backtrace: {}", reply.message());
    assert_eq!(running.post(path, &json!({ "data": [1.0] })).ok()["data"], json!([2.0]));
    assert_eq!(running.get("/health/ready").status, 200, "one failed batch makes nothing unhealthy");
    let many = json!({ "instances": [[-1.0], [-2.0]] });
    assert_eq!(running.post(path, &many).code(), "model_failed");
}

#[test]
fn openai_routes_have_openai_errors() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    let cases: &[(&str, u16, &str, &str, &str)] = &[
        ("{\"input\":\"a\",\"model\":\"nope\"}", 404, "model_not_found", "\"nope\"", ""),
        ("{\"input\":\"a\",\"model\":\"delay\"}", 400, "invalid_input", "does not make embeddings", "delay"),
        ("{\"input\":[]}", 400, "invalid_input", "\"input\" is empty", "minilm"),
        ("{\"input\":[[]]}", 400, "invalid_input", "", "minilm"),
        ("{\"input\":[30523]}", 400, "invalid_input", "30523", "minilm"),
        ("{\"input\":\"a\",\"dimensions\":5}", 400, "invalid_input", "384", "minilm"),
        ("{\"input\":1}", 400, "malformed_request", "\"input\" to be", ""),
        ("{\"input\":\"a\",\"encoding_format\":\"hex\"}", 400, "malformed_request", "hex", ""),
        ("{}", 400, "malformed_request", "input", ""),
        ("{", 400, "malformed_request", "EOF", ""),
    ];
    for &(body, status, code, says, model) in cases {
        running.refuses(&Refused {
            method: "POST",
            path: "/v1/embeddings",
            headers: &[JSON],
            body: body.as_bytes(),
            status,
            code,
            says: &[says],
            model,
        });
    }
}

#[test]
fn a_full_queue_is_429_with_when_to_retry_in_both_formats() {
    let running = start(&format!("{BUSY}models.delay.batching.max_queue_size = 2\n"));
    running.still_serves();
    let mut busy = vec![running.occupy(), running.post_later(DELAY, &json!([0.0]))];
    running.until_queued(2);
    for (format, body) in [(JSON, b"[1]".to_vec()), (MSGPACK, msgpack(&json!([1.0])))] {
        let reply = running.post_raw(DELAY, &[format], &body);
        assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
        assert_eq!(reply.message(), "the queue is full: 2 requests are waiting");
        assert_eq!(reply.header("retry-after"), Some("1"), "600 ms, rounded up to whole seconds");
    }
    assert_eq!(running.outcomes("delay", "queue_full"), 2.0);
    assert_eq!(running.rejections("delay", "queue_full"), 2.0);
    for connection in &mut busy {
        assert_eq!(connection.reply().status, 200);
    }
    running.still_serves();
}

#[test]
fn a_request_id_is_echoed_when_sane_and_replaced_when_not() {
    let running = start(INSTANT);
    let id_of = |headers: &[(&str, &str)], path: &str| {
        let reply = running.connect().request("GET", path, headers, b"");
        reply.header("x-request-id").expect("every reply has one").to_owned()
    };
    let long = "x".repeat(128);
    for sane in ["a", "7b0c-42/(x)", &long] {
        assert_eq!(id_of(&[("x-request-id", sane)], "/health"), sane);
        assert_eq!(id_of(&[("x-request-id", sane)], "/nope"), sane);
    }
    let mut made = Vec::new();
    for insane in ["", "two words", "tab\there", "ä", &"x".repeat(129)] {
        made.push(id_of(&[("x-request-id", insane)], "/health"));
    }
    made.push(id_of(&[], "/health"));
    made.push(id_of(&[], "/nope"));
    for id in &made {
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 7, "each request has its own");
    let reply = running.get("/nope");
    assert_eq!(reply.json()["error"]["request_id"], reply.header("x-request-id").unwrap());
}
