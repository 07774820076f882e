//! Bodies that are not what they say: each is refused with its place, and costs the server nothing.

use serde_json::json;

use crate::client::{JSON, MSGPACK};
use crate::errors::Refused;
use crate::fixtures::minilm;
use crate::harness::{DELAY, INSTANT, MINILM, Running, start};

fn malformed(running: &Running, format: (&str, &str), body: &[u8], says: &str) {
    let (method, status, code, headers) = ("POST", 400, "malformed_request", &[format]);
    let says = &[says];
    running.refuses(&Refused { method, path: DELAY, headers, body, status, code, says, model: "delay" });
    // The same where the body names the model, if it gets that far.
    let named = match body.strip_prefix(b"{\"data\"") {
        Some(rest) => [b"{\"model\":\"delay\",\"data\"", rest].concat(),
        None => body.to_vec(),
    };
    let reply = running.post_raw("/v1/inference", headers, &named);
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", reply.text());
}

#[test]
fn json_that_does_not_parse_is_400_with_line_and_column() {
    let running = start(INSTANT);
    for body in
        ["", "{", "{\"data\":[1,]}", "{\"data\":[1}", "nope", "{\"data\":[1]} {}", "{'data':[1]}", "\u{0}"]
    {
        malformed(&running, JSON, body.as_bytes(), "line 1 column");
    }
    malformed(&running, JSON, b"{\"data\":\n\n[1,]}", "line 3 column");
    malformed(&running, JSON, b"{\"data\":[\"\xff\xfe\"]}", "JSON");
    malformed(&running, JSON, &[0xef, 0xbb, 0xbf, b'[', b'1', b']'], "line 1 column");
}

#[test]
fn numbers_that_json_does_not_have_are_400() {
    let running = start(INSTANT);
    for number in ["NaN", "Infinity", "-Infinity", "nan", "1e999", "-1e999", "0x1", "01", "1.", "+1", ".5"] {
        malformed(&running, JSON, format!("{{\"data\":[{number}]}}").as_bytes(), "line 1 column");
    }
}

#[test]
fn a_name_that_stands_twice_is_400() {
    let running = start(INSTANT);
    let reply = running.post_raw(DELAY, &[JSON], b"{\"data\":[1],\"data\":[2]}");
    assert_eq!((reply.status, reply.message().contains("stands twice")), (400, true), "{}", reply.text());
}

#[test]
fn msgpack_that_does_not_parse_is_400() {
    let running = start(INSTANT);
    for body in [
        &b""[..],
        b"\xc1",
        b"\x81",
        b"\x81\xa4data",
        b"\x81\xa4data\xdc\xff\xff\x01",
        b"\xdf\xff\xff\xff\xff",
    ] {
        malformed(&running, MSGPACK, body, "msgpack");
    }
    let reply = running.post_raw(DELAY, &[MSGPACK], b"\x91\x01\x02");
    assert_eq!((reply.status, reply.message().as_str()), (400, "1 bytes follow the msgpack value"));
}

#[test]
fn a_length_that_msgpack_only_claims_reserves_no_memory() {
    let running = start(INSTANT);
    // A list, a text and raw bytes of 4 GiB, of which nothing comes.
    for claim in [
        b"\x81\xa4data\xdd\xff\xff\xff\xff",
        b"\x81\xa4data\xdb\xff\xff\xff\xff",
        b"\x81\xa4data\xc6\xff\xff\xff\xff",
    ] {
        malformed(&running, MSGPACK, claim, "msgpack");
    }
    assert!(peak_resident_bytes() < 1 << 30);
}

fn peak_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn ten_megabytes_of_nesting_are_refused_wherever_they_stand() {
    let running = start(&format!("{INSTANT}{}", minilm()));
    const DEPTH: usize = 10 << 20;
    let lists = "[".repeat(DEPTH);
    let objects = "{\"a\":".repeat(DEPTH / 5);
    for nest in [lists, objects] {
        for before in [
            "",
            "{\"data\":",
            "{\"instances\":",
            "{\"parameters\":",
            "{\"unknown\":",
            "{\"data\":{\"x\":",
            "{\"priority\":",
        ] {
            let body = format!("{before}{nest}");
            let others = [DELAY, MINILM, "/v1/inference", "/v1/embeddings"];
            // All routes for the first of each, to keep it short.
            let paths = if before.is_empty() || before == "{\"data\":" { &others[..] } else { &others[..1] };
            for path in paths {
                let reply = running.post_raw(path, &[JSON], body.as_bytes());
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (400, "malformed_request"),
                    "{path} {before}"
                );
            }
        }
    }
    let packed = vec![0x91; DEPTH];
    for before in [&b""[..], b"\x81\xa4data", b"\x81\xa9instances", b"\x81\xaaparameters", b"\x81\xa7unknown"]
    {
        let body = [before, &packed].concat();
        for path in [DELAY, MINILM, "/v1/inference"] {
            let reply = running.post_raw(path, &[MSGPACK], &body);
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "malformed_request"),
                "{path} {before:?}"
            );
        }
    }
    running.still_serves();
}

#[test]
fn nesting_that_is_closed_is_a_value_that_does_not_fit() {
    let running = start(INSTANT);
    let body = format!("{{\"data\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let (headers, body, says) = (&[JSON], body.as_bytes(), &["more than 1 dimensions"]);
    let (status, code, model) = (422, "invalid_input", "delay");
    running.refuses(&Refused { method: "POST", path: DELAY, headers, body, status, code, says, model });
}

#[test]
fn a_ragged_list_is_422_naming_the_rows() {
    let folder = crate::fixtures::torchscript("double");
    let path = crate::harness::quoted(&folder);
    let running = start(&format!(
        "{INSTANT}models.grid.path = {path}\n\
         models.grid.inputs = [{{ name = 'x', dtype = 'f32', shape = [-1, -1] }}]\n\
         models.grid.outputs = [{{ name = 'y', dtype = 'f32', shape = [-1, -1] }}]\n"
    ));
    let good = running.post("/models/grid/predict", &json!([[1, 2], [3, 4]])).ok();
    assert_eq!(good["data"], json!([[2.0, 4.0], [6.0, 8.0]]));
    running.refuses(&Refused {
        method: "POST",
        path: "/models/grid/predict",
        headers: &[JSON],
        body: b"[[1,2],[3]]",
        status: 422,
        code: "invalid_input",
        says: &["\"x\"", "f32 of shape [-1, -1]", "ragged", "rows of 2 and of 1"],
        model: "grid",
    });
}
