//! A model that does not return holds no stop up, and who was running is told so.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{DELAY, start};
use crate::process::serve;

/// A model that runs for longer than any test, one request at a time.
const HANGS: &str = "models.delay.delay.batch_time = '60s'\nmodels.delay.batching.max_batch_size = 1\n";

/// Far less than the model takes, and enough for a slow machine.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_model_that_does_not_return_is_left_behind() {
    let running = start(&format!("server.shutdown_timeout = '50ms'\n{HANGS}"));
    let mut busy = running.occupy();
    let started = Instant::now();
    running.server.stop();
    let took = started.elapsed();
    assert!(took < SOON, "{took:?}");
    assert!(!running.server.is_running());
    let reply = busy.reply().ok();
    let codes: Vec<_> = (0..2).map(|item| reply["predictions"][item]["error"].clone()).collect();
    let ran = json!({ "code": "model_failed", "message": "the server stopped while the model ran" });
    let waited = json!({ "code": "shutting_down", "message": "the server stopped before the request ran" });
    assert_eq!(codes, [ran, waited]);
    drop(running);
    assert!(started.elapsed() < SOON, "dropping waits for nothing");
}

#[test]
fn a_process_whose_model_does_not_return_ends_in_time_and_names_it() {
    let sets = [
        "server.shutdown_timeout=200ms",
        "models.delay.delay.batch_time=60s",
        "models.delay.batching.max_batch_size=1",
    ];
    let mut process = serve(&["--set", sets[0], "--set", sets[1], "--set", sets[2]]);
    process.read_until("ready");
    let mut running = process.connect();
    running.start_post(DELAY, &json!({ "instances": [[1.0], [2.0]] }));
    let mut look = process.connect();
    let deadline = Instant::now() + SOON;
    while look.request("GET", "/admin/stats", &[], b"").ok()["models"][0]["batching"]["queue"]["requests"]
        != 1
    {
        assert!(Instant::now() < deadline, "it does not run");
    }
    process.signal("TERM");
    let finished = process.finish(SOON);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let warning = finished.stderr.lines().find(|line| line.contains("still runs")).unwrap_or_default();
    assert!(warning.contains("WARN") && warning.contains("delay"), "{}", finished.stderr);
}

#[test]
fn a_request_that_ran_when_the_server_stopped_is_not_one_to_try_again() {
    let running = start(&format!("server.shutdown_timeout = '50ms'\n{HANGS}"));
    let mut busy = running.post_later(DELAY, &json!([1.0]));
    let busy_ratio = "trustformers_instance_busy_ratio{instance=\"0\",model=\"delay\",version=\"1\"}";
    running.eventually("it runs", |running| running.metric(busy_ratio) > 0.0);
    running.server.stop();
    let reply = busy.reply();
    assert_eq!((reply.status, reply.code().as_str()), (500, "model_failed"));
    assert_eq!(reply.message(), "the server stopped while the model ran");
}
