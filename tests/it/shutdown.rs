//! How a server ends: in this process, and as a process with signals.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Connection;
use crate::harness::{BUSY, DELAY, INSTANT, start, threads, threads_named};
use crate::process::serve;

#[test]
fn stopping_finishes_what_is_in_flight() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    let mut more = running.post_later(DELAY, &json!([5.0]));
    running.until_queued(2);
    running.server.stop();
    assert!(!running.server.is_running());
    let predictions = busy.reply().ok()["predictions"].clone();
    assert_eq!(predictions, json!([{ "data": [0.0] }, { "data": [0.0] }]));
    assert_eq!(more.reply().ok()["data"], json!([5.0]));
    assert!(std::net::TcpStream::connect(running.addr()).is_err(), "nobody listens any more");
}

#[test]
fn what_is_not_finished_in_time_is_503_shutting_down() {
    let running = start(&format!("server.shutdown_timeout = '50ms'\n{BUSY}"));
    let mut busy = running.occupy();
    let mut more = running.post_later(DELAY, &json!([5.0]));
    running.until_queued(2);
    let started = Instant::now();
    running.server.stop();
    assert!(started.elapsed() >= Duration::from_millis(50));
    // Of the first call, one item ran.
    let items = busy.reply().ok();
    let codes = [0, 1].map(|item| items["predictions"][item]["error"]["code"].clone());
    assert_eq!(codes, ["model_failed", "shutting_down"]);
    let reply = more.reply();
    assert_eq!((reply.status, reply.code().as_str()), (503, "shutting_down"));
    assert_eq!(reply.message(), "the server stopped before the request ran");
    assert!(reply.header("x-request-id").is_some());
}

#[test]
fn an_idle_connection_is_closed_and_holds_nothing_up() {
    let running = start(INSTANT);
    let mut idle = running.connect();
    assert_eq!(idle.post(DELAY, &json!([1.0])).status, 200);
    let started = Instant::now();
    running.server.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "far less than the 30 s it may take");
    assert!(idle.closes_silently());
}

#[test]
fn a_client_that_never_finishes_its_request_holds_a_stop_up_no_longer_than_it_may() {
    let running = start(&format!("server.shutdown_timeout = '200ms'\n{INSTANT}"));
    let mut slow = running.connect();
    slow.send(b"POST /models/delay/predict HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n[1");
    running.eventually("it is connected", |running| running.metric("trustformers_connections") == 2.0);
    let started = Instant::now();
    running.server.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn stopping_from_many_threads_waits_in_each() {
    let running = start(BUSY);
    let mut busy = running.occupy();
    thread::scope(|scope| {
        for _ in 0..4 {
            let server = Arc::clone(&running.server);
            scope.spawn(move || {
                server.stop();
                assert!(!server.is_running());
            });
        }
    });
    assert_eq!(busy.reply().status, 200);
}

#[test]
fn twenty_servers_leave_no_thread_behind() {
    let before = threads().len();
    for _ in 0..20 {
        let running = start(INSTANT);
        running.still_serves();
        running.server.stop();
    }
    // A thread that was joined may still be in the kernel's list for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    let now = || (threads().len(), threads_named("delay:"), threads_named("http"));
    while now() != (before, 0, 0) {
        assert!(Instant::now() < deadline, "{before} threads before, now {:?}", now());
    }
}

#[test]
fn two_servers_live_in_one_process_and_count_apart() {
    let (one, two) = (start(INSTANT), start(INSTANT));
    one.still_serves();
    assert_eq!((one.count("delay", "ok"), two.count("delay", "ok")), (1, 0));
    one.server.stop();
    two.still_serves();
}

/// The command line's settings for a model that is busy for so long, one request at a time.
fn busy(time: &str) -> [String; 2] {
    [format!("models.delay.delay.batch_time={time}"), "models.delay.batching.max_batch_size=1".to_owned()]
}

/// Sends a request and waits until its model runs it.
fn in_flight(addr: std::net::SocketAddr) -> Connection {
    let mut connection = Connection::open(addr);
    connection.start_post(DELAY, &json!({ "instances": [[1.0], [2.0]] }));
    let mut look = Connection::open(addr);
    let deadline = Instant::now() + Duration::from_secs(30);
    while look.request("GET", "/admin/stats", &[], b"").ok()["models"][0]["batching"]["queue"]["requests"]
        != 1
    {
        assert!(Instant::now() < deadline, "it did not run");
    }
    connection
}

#[test]
fn a_signal_ends_the_process_with_0_after_what_is_in_flight() {
    for signal in ["TERM", "INT"] {
        let [time, size] = busy("200ms");
        let mut process = serve(&["--set", &time, "--set", &size]);
        process.read_until("ready");
        let mut connection = in_flight(process.addr());
        process.signal(signal);
        assert_eq!(connection.reply().ok()["predictions"], json!([{ "data": [1.0] }, { "data": [2.0] }]));
        let finished = process.finish(Duration::from_secs(10));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let last = finished.stderr.lines().last().unwrap_or_default().to_owned();
        assert!(last.contains("shutting down") && last.contains(signal), "{}", finished.stderr);
        assert!(
            !finished.stderr.contains("ERROR") && !finished.stderr.contains("panic"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        ends_at_once(signal, code);
    }
}

fn ends_at_once(signal: &str, code: i32) {
    let [time, size] = busy("20s");
    let mut process = serve(&["--set", &time, "--set", &size]);
    process.read_until("ready");
    let mut connection = in_flight(process.addr());
    process.signal("TERM");
    // The listener is closed as soon as the first signal is handled.
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(process.addr()).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
    }
    process.signal(signal);
    let finished = process.finish(Duration::from_secs(5));
    assert_eq!(finished.code, Some(code), "{}", finished.stderr);
    assert!(connection.try_reply().is_none());
}

#[test]
fn a_signal_while_models_load_ends_the_process() {
    let config = crate::fixtures::minilm();
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), config).unwrap();
    let process = serve(&["--config", file.path().to_str().unwrap()]);
    process.signal("INT");
    let finished = process.finish(Duration::from_secs(10));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}
