//! What is no HTTP request, or stops half-way in its head: told like every other error, and the end of its
//! connection.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Connection, Reply, request};
use crate::harness::{BUSY, DELAY, INSTANT, Running, start};
use crate::process::serve;

/// A server that gives a head little time to arrive.
fn impatient() -> String {
    format!("server.request_timeout = '150ms'\n{INSTANT}")
}

const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: t\r\n\r\n";

/// Asserts everything that is promised of an error that ends a connection.
fn is_last_words(reply: &Reply, connection: &mut Connection, status: u16, code: &str) {
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("connection"), Some("close"));
    assert!(reply.header("date").is_some_and(|date| date.ends_with(" GMT")), "{:?}", reply.headers);
    let id = reply.header("x-request-id").expect("every reply has one");
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let error = &reply.json()["error"];
    let keys: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "message", "request_id"]);
    assert_eq!(error["request_id"], id);
    assert!(connection.closes_silently(), "nothing follows");
}

impl Running {
    /// Asserts that `bytes` on a connection of their own are refused, and counted once.
    fn refuses_head(&self, bytes: &[u8], status: u16, code: &str, says: &str) {
        let before = self.outcomes("", code);
        let mut connection = self.connect();
        connection.send(bytes);
        let reply = connection.reply();
        is_last_words(&reply, &mut connection, status, code);
        assert!(reply.message().contains(says), "{says:?} is not in {}", reply.message());
        assert_eq!(self.outcomes("", code), before + 1.0, "{} is counted once", reply.text());
        self.still_serves();
    }

    /// What was counted as an error of no model.
    fn errors(&self) -> Vec<String> {
        let text = self.get("/metrics").text();
        let of_none = "trustformers_requests_total{model=\"\"";
        text.lines().filter(|line| line.starts_with(of_none)).map(str::to_owned).collect()
    }
}

#[test]
fn what_is_not_http_is_400_with_the_reason() {
    let running = start(INSTANT);
    for (bytes, says) in [
        (&b"nonsense\r\n\r\n"[..], "not HTTP/1.1: invalid HTTP method"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "not HTTP/1.1: invalid HTTP method"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not spoken here"),
        (b"GET /health HTTP/3.0\r\n\r\n", "invalid HTTP version"),
        (b"GET /hea lth HTTP/1.1\r\n\r\n", "invalid HTTP version"),
        (b"GET /health HTTP/1.1\r\ncontent-length: many\r\n\r\n", "content-length"),
        (b"GET /health HTTP/1.1\r\na header\r\n\r\n", "invalid HTTP header"),
        (b"GET /health HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "content-length"),
    ] {
        running.refuses_head(bytes, 400, "malformed_request", says);
    }
}

#[test]
fn a_uri_over_the_limit_is_414_whether_or_not_it_ends() {
    let running = start(INSTANT);
    let whole = format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "a".repeat(70_000));
    running.refuses_head(whole.as_bytes(), 414, "uri_too_long", "URI");
    // More than is ever read, and the client is still sending when it is refused.
    let endless = format!("GET /{}", "a".repeat(4 << 20));
    running.refuses_head(endless.as_bytes(), 414, "uri_too_long", "URI");
    let fits = format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "a".repeat(60_000));
    let mut connection = running.connect();
    connection.send(fits.as_bytes());
    assert_eq!(connection.reply().code(), "route_not_found");
}

#[test]
fn headers_over_the_limits_are_431() {
    let running = start(INSTANT);
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    running.refuses_head(many.as_bytes(), 431, "headers_too_large", "too many or too long");
    let long = format!("GET /health HTTP/1.1\r\na: {}", "b".repeat(4 << 20));
    running.refuses_head(long.as_bytes(), 431, "headers_too_large", "too many or too long");
    let fits = format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    let mut connection = running.connect();
    connection.send(fits.as_bytes());
    assert_eq!(connection.reply().status, 200);
}

#[test]
fn a_head_that_stops_half_way_is_408_in_time() {
    let running = start(&impatient());
    for half in [&b"G"[..], b"POST /models/delay/predict HTTP/1.1\r\nhost: te", b"\r\nGET / HTTP/1.1\r\n"] {
        let started = Instant::now();
        running.refuses_head(half, 408, "request_timeout", "head");
        assert!(started.elapsed() >= Duration::from_millis(150));
    }
}

#[test]
fn good_requests_before_it_on_the_connection_are_answered_first() {
    let running = start(BUSY);
    let good = request("POST", DELAY, &[], b"[1.0]");
    for (bad, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "malformed_request"),
        (format!("GET /{}", "a".repeat(1 << 20)), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\na: {}", "b".repeat(1 << 20)), 431, "headers_too_large"),
    ] {
        // At once: it is there while the request before it still runs.
        let mut connection = running.connect();
        connection.send(&[LIVE, &good, bad.as_bytes()].concat());
        assert_eq!(connection.reply().status, 200);
        assert_eq!(connection.reply().ok()["data"], json!([1.0]));
        let reply = connection.reply();
        is_last_words(&reply, &mut connection, status, code);
        // Later, on a connection that was kept alive.
        let mut connection = running.connect();
        connection.send(LIVE);
        assert_eq!(connection.reply().status, 200);
        connection.send(bad.as_bytes());
        let reply = connection.reply();
        is_last_words(&reply, &mut connection, status, code);
    }
    // The version of the request before it is that of hyper's reply, which no client must see.
    let mut connection = running.connect();
    connection.send(b"GET /health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\nnonsense\r\n\r\n");
    assert_eq!(connection.reply().status, 200);
    let reply = connection.reply();
    is_last_words(&reply, &mut connection, 400, "malformed_request");
    running.still_serves();
}

#[test]
fn half_a_head_behind_a_good_request_is_408_after_its_reply() {
    let running = start(&impatient());
    let mut connection = running.connect();
    connection.send(&[LIVE, b"GET /hea"].concat());
    assert_eq!(connection.reply().status, 200);
    let reply = connection.reply();
    is_last_words(&reply, &mut connection, 408, "request_timeout");
}

#[test]
fn a_client_that_leaves_or_says_nothing_is_no_error() {
    let running = start(&impatient());
    // One that is silent, one that only ends lines, and one that is done with its requests.
    for said in [&b""[..], b"\r\n\r\n", LIVE] {
        let mut idle = running.connect();
        idle.send(said);
        if said == LIVE {
            assert_eq!(idle.reply().status, 200);
        }
        assert!(idle.closes_silently(), "{said:?}");
    }
    for said in [&b""[..], b"\r\n", b"GET /hea", LIVE] {
        let mut leaving = running.connect();
        leaving.send(said);
        leaving.finish_sending();
        let rest = leaving.read_rest();
        assert!(rest.is_empty() || said == LIVE, "{said:?} is answered {rest}");
        drop(running.connect());
    }
    running
        .eventually("no connection but its own", |running| running.metric("trustformers_connections") == 1.0);
    assert_eq!(running.errors(), Vec::<String>::new());
}

#[test]
fn a_refused_head_is_a_log_line_with_the_id_of_its_reply() {
    let server =
        serve(&["--set", "models.delay.delay.batch_time=0ms", "--set", "server.request_timeout=150ms"]);
    let ids = [&b"nonsense\r\n\r\n"[..], b"GET /half"].map(|bytes| {
        let mut connection = server.connect();
        connection.send(bytes);
        connection.reply().header("x-request-id").expect("every reply has one").to_owned()
    });
    server.signal("TERM");
    let log = server.finish(Duration::from_secs(10)).stderr;
    for (id, code) in ids.iter().zip(["malformed_request", "request_timeout"]) {
        let line = log.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("{id}: {log}"));
        assert!(line.contains("request refused") && line.contains(code), "{line}");
    }
}
