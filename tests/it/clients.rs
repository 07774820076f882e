//! Clients that are slow, silent, too many, or gone.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{JSON, request};
use crate::harness::{DELAY, INSTANT, start};

/// A server whose clients must be quick.
fn impatient() -> String {
    format!("server.request_timeout = '150ms'\n{INSTANT}")
}

#[test]
fn a_body_that_does_not_arrive_in_time_is_408() {
    let running = start(&impatient());
    let whole = request("POST", DELAY, &[JSON], b"{\"data\":[1]}");
    let mut slow = running.connect();
    let started = Instant::now();
    slow.send(&whole[..whole.len() - 5]);
    let reply = slow.reply();
    assert!(started.elapsed() >= Duration::from_millis(150));
    assert_eq!((reply.status, reply.code().as_str()), (408, "request_timeout"));
    assert!(reply.message().contains("body"), "{}", reply.message());
    assert!(reply.header("x-request-id").is_some());
    assert_eq!(running.outcomes("delay", "request_timeout"), 1.0);
    assert!(slow.closes_silently(), "what would follow is no request");
    running.still_serves();
}

#[test]
fn a_chunked_body_that_stops_is_408() {
    let running = start(&impatient());
    let mut slow = running.connect();
    slow.send(
        b"POST /models/delay/predict HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n",
    );
    assert_eq!(slow.reply().code(), "request_timeout");
    running.still_serves();
}

#[test]
fn a_client_that_says_nothing_is_hung_up_on_in_time_and_holds_nobody_up() {
    let running = start(&impatient());
    let mut silent: Vec<_> = (0..20).map(|_| running.connect()).collect();
    running.still_serves();
    for connection in &mut silent {
        assert!(connection.closes_silently());
    }
    running
        .eventually("no connection but its own", |running| running.metric("trustformers_connections") == 1.0);
}

#[test]
fn a_reply_never_waits_for_the_next_request() {
    let running = start(INSTANT);
    let mut connection = running.connect();
    connection.send(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\nGET /hea");
    assert_eq!(connection.reply().status, 200, "with half a request behind it");
    connection.send(b"lth/live HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(connection.reply().status, 200);
}

#[test]
fn a_client_that_resets_its_connection_disturbs_nobody() {
    let running = start(INSTANT);
    for _ in 0..50 {
        let connection = running.post_later(DELAY, &json!([1.0]));
        // Closing a socket with unread bytes in it sends a reset.
        connection.await_bytes();
        drop(connection);
    }
    for body in [&b"[1"[..], b"[1.0, 2.0]"] {
        let mut connection = running.connect();
        connection.send(&request("POST", DELAY, &[JSON], body)[..40]);
        drop(connection);
    }
    running
        .eventually("no connection but its own", |running| running.metric("trustformers_connections") == 1.0);
    running.still_serves();
}

#[test]
fn a_body_that_breaks_off_is_no_request() {
    let running = start(INSTANT);
    let whole = request("POST", DELAY, &[JSON], b"{\"data\":[1]}");
    let mut broken = running.connect();
    broken.send(&whole[..whole.len() - 5]);
    broken.finish_sending();
    let rest = broken.read_rest();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest}");
    assert_eq!(running.count("delay", "executed_items"), 0);
    running.still_serves();
}

#[test]
fn a_thousand_connections_at_once_are_all_served_and_others_meanwhile() {
    let running = start("models.delay.delay.batch_time = '1ms'\n");
    let mut connections: Vec<_> = (0..1000).map(|_| running.connect()).collect();
    running.still_serves();
    for (number, connection) in connections.iter_mut().enumerate() {
        connection.start_post(DELAY, &json!([number]));
    }
    running.still_serves();
    for (number, connection) in connections.iter_mut().enumerate() {
        assert_eq!(connection.reply().ok()["data"], json!([number as f64]));
    }
    // Connections that closed just now may still be counted.
    running.eventually("all are open", |running| running.metric("trustformers_connections") == 1001.0);
    // Each once more, all open still.
    for connection in &mut connections {
        connection.start_post(DELAY, &json!([0.0]));
    }
    for connection in &mut connections {
        assert_eq!(connection.reply().status, 200);
    }
    running.still_serves();
}

#[test]
fn clients_on_many_threads_get_their_own_answers() {
    let running = start("models.delay.delay.batch_time = '1ms'\nmodels.delay.instances = 2\n");
    let together = Barrier::new(16);
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (running, together) = (&running, &together);
            scope.spawn(move || {
                let mut connection = running.connect();
                together.wait();
                for number in 0..50 {
                    let item = json!([f64::from(client), f64::from(number)]);
                    assert_eq!(connection.post(DELAY, &item).ok()["data"], item);
                }
            });
        }
    });
    assert_eq!(running.count("delay", "executed_items"), 800);
    assert!(running.count("delay", "executed_batches") < 800, "some shared a batch");
}
