//! Every key of `[batching]` with two values, each of which makes a running server do something else.

use std::time::{Duration, Instant};

use serde_json::json;
use trustformers_batching::replay::Event;
use trustformers_batching::{OptimizationTarget, PaddingStrategy, SchedulerConfig};

use crate::batching::{batches, logged};
use crate::fixtures::script_model;
use crate::harness::{BUSY, DELAY, INSTANT, quoted, start};
use crate::keys::{two_values, two_values_for_all_and_one};
use crate::replay::events;

/// Whether a lone request is answered long before its batch is full, and before half of its time has passed,
/// which is when its window ends.
fn lone_request_is_answered(line: &str) -> bool {
    let running = start(&format!(
        "{line}{INSTANT}models.delay.batching.max_batch_size = 2\nmodels.delay.batching.max_wait_time = '30s'\n"
    ));
    let asked = Instant::now();
    assert_eq!(running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 3000 })).status, 200);
    asked.elapsed() < HALF
}

/// Half of the time that a lone request has.
const HALF: Duration = Duration::from_millis(1500);

#[test]
fn mode() {
    two_values_for_all_and_one("mode", ("'dynamic'", true), ("'fixed'", false), lone_request_is_answered);
}

#[test]
fn dispatch() {
    two_values_for_all_and_one("dispatch", ("'eager'", true), ("'window'", false), lone_request_is_answered);
}

/// Batches that four items of one call make.
fn batches_of_four(line: &str) -> u64 {
    let running = start(&format!("{line}{INSTANT}"));
    assert_eq!(running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0], [4.0]] })).status, 200);
    running.count("delay", "executed_batches")
}

#[test]
fn max_batch_size() {
    two_values_for_all_and_one("max_batch_size", ("4", 1), ("2", 2), batches_of_four);
}

#[test]
fn max_batch_tokens() {
    two_values_for_all_and_one("max_batch_tokens", ("4", 1), ("1", 4), batches_of_four);
}

#[test]
fn max_wait_time() {
    two_values_for_all_and_one("max_wait_time", ("'1ms'", true), ("'30s'", false), |line| {
        let running = start(&format!("{line}{INSTANT}models.delay.batching.mode = 'fixed'\n"));
        let asked = Instant::now();
        assert_eq!(running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 3000 })).status, 200);
        asked.elapsed() < HALF
    });
}

/// How many of four items of one call the queue takes.
fn admitted_of_four(line: &str) -> usize {
    let running = start(&format!("{line}{INSTANT}"));
    let reply = running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0], [4.0]] })).ok();
    let predictions = reply["predictions"].as_array().unwrap();
    predictions.iter().filter(|prediction| prediction["data"].is_array()).count()
}

#[test]
fn max_queue_size() {
    two_values_for_all_and_one("max_queue_size", ("4", 200), ("3", 422), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0], [4.0]] })).status
    });
}

#[test]
fn max_queue_tokens() {
    two_values_for_all_and_one("max_queue_tokens", ("100", 4), ("2", 2), admitted_of_four);
}

#[test]
fn event_log() {
    let root = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| quoted(&root.path().join(name)));
    two_values_for_all_and_one("event_log", (&one, vec!["one"]), (&two, vec!["two"]), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        running.still_serves();
        running.server.stop();
        let folder = |name: &&str| root.path().join(name);
        let logged = ["one", "two"].into_iter().filter(|name| folder(name).join("delay@1.1.jsonl").is_file());
        let logged: Vec<_> = logged.collect();
        logged.iter().for_each(|name| std::fs::remove_dir_all(folder(name)).unwrap());
        logged
    });
}

/// What the running scheduler was told, for keys whose effect takes a history of load to see; the batching
/// crate tests what each does.
fn scheduler(line: &str) -> SchedulerConfig {
    let folder = tempfile::tempdir().unwrap();
    let running = logged(&format!("{line}{INSTANT}"), folder.path());
    running.still_serves();
    running.server.stop();
    match events(&folder.path().join("delay@1.1.jsonl")).into_iter().next() {
        Some(Event::Start { config }) => config,
        other => panic!("the log begins with {other:?}"),
    }
}

#[test]
fn isolation() {
    two_values_for_all_and_one("isolation", ("'bisect'", 200), ("'none'", 500), |line| {
        let running = start(&format!("{line}{}", script_model("delay", "double")));
        running.post(DELAY, &json!({ "instances": [[1.0], [-1.0]] })).status
    });
}

#[test]
fn min_batch_size() {
    two_values_for_all_and_one("min_batch_size", ("1", true), ("2", false), lone_request_is_answered);
}

#[test]
fn max_queue_bytes() {
    // Four bytes an item.
    two_values_for_all_and_one("max_queue_bytes", ("'1KB'", 4), ("'8B'", 2), admitted_of_four);
}

#[test]
fn optimization_target() {
    use OptimizationTarget::{Cost, Throughput};
    two_values_for_all_and_one(
        "optimization_target",
        ("'cost'", Cost),
        ("'throughput'", Throughput),
        |line| scheduler(line).optimization_target,
    );
}

#[test]
fn latency_slo() {
    two_values_for_all_and_one("latency_slo", ("'60s'", false), ("'20ms'", true), |line| {
        let running = start(&format!(
            "{line}models.delay.delay.batch_time = '20ms'\n\
             models.delay.batching.max_batch_size = 1\nmodels.delay.batching.max_wait_time = '0ms'\n"
        ));
        // Before some batches have run nothing is predicted.
        (0..10).for_each(|_| running.still_serves());
        running.post(DELAY, &json!({ "instances": vec![[1.0]; 30] }));
        running.rejections("delay", "overloaded") > 0.0
    });
}

#[test]
fn memory_limit() {
    two_values_for_all_and_one("memory_limit", ("'4KB'", 1), ("'1KB'", 4), |line| {
        batches_of_four(&format!("{line}models.delay.batching.dynamic.bytes_per_element = '1KB'\n"))
    });
}

#[test]
fn memory_limit_of_a_device() {
    two_values("device.memory_limit", ("'4KB'", 1), ("'1KB'", 4), |line| {
        batches_of_four(&format!("{line}models.delay.batching.dynamic.bytes_per_element = '1KB'\n"))
    });
}

#[test]
fn bytes_per_element() {
    two_values_for_all_and_one("dynamic.bytes_per_element", ("'1KB'", 1), ("'4KB'", 4), |line| {
        batches_of_four(&format!("{line}models.delay.batching.memory_limit = '4KB'\n"))
    });
}

#[test]
fn memory_aware() {
    two_values_for_all_and_one("dynamic.memory_aware", ("false", 1), ("true", 4), |line| {
        batches_of_four(&format!(
            "{line}device.memory_limit = '1KB'\nmodels.delay.batching.dynamic.bytes_per_element = '1KB'\n"
        ))
    });
}

#[test]
fn enable_priority_scheduling() {
    two_values_for_all_and_one("enable_priority_scheduling", ("true", true), ("false", false), |line| {
        let folder = tempfile::tempdir().unwrap();
        let running = logged(&format!("{line}{BUSY}"), folder.path());
        let mut waiting = vec![running.occupy(), running.post_later(DELAY, &json!([1.0]))];
        running.until_queued(2);
        waiting.push(running.post_later(DELAY, &json!({ "data": [1.0], "priority": "high" })));
        waiting.iter_mut().for_each(|connection| assert_eq!(connection.reply().status, 200));
        let order: Vec<u64> = batches(running, folder.path()).iter().map(|tickets| tickets[0].0).collect();
        let place = |ticket| order.iter().position(|other| *other == ticket);
        place(3) < place(2)
    });
}

#[test]
fn priority_ageing() {
    let (short, long) = (Duration::from_millis(5), Duration::from_secs(3600));
    two_values_for_all_and_one("priority_ageing", ("'5ms'", Some(short)), ("'1h'", Some(long)), |line| {
        scheduler(line).ageing
    });
}

#[test]
fn max_priority() {
    two_values_for_all_and_one("max_priority", ("'critical'", 200), ("'high'", 403), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        assert_eq!(running.post(DELAY, &json!({ "data": [1.0], "priority": "high" })).status, 200);
        running.post(DELAY, &json!({ "data": [1.0], "priority": "critical" })).status
    });
}

/// The status of a request of `priority` that names no time and runs for 300 ms.
fn patience(line: &str, priority: &str) -> u16 {
    start(&format!("{line}{BUSY}")).post(DELAY, &json!({ "data": [1.0], "priority": priority })).status
}

#[test]
fn timeout_multipliers_low() {
    let status = |line: &str| patience(line, "low");
    two_values_for_all_and_one("timeout_multipliers.low", ("1", 200), ("0.001", 504), status);
}

#[test]
fn timeout_multipliers_normal() {
    let status = |line: &str| patience(line, "normal");
    two_values_for_all_and_one("timeout_multipliers.normal", ("1", 200), ("0.001", 504), status);
}

#[test]
fn timeout_multipliers_high() {
    let status = |line: &str| patience(line, "high");
    two_values_for_all_and_one("timeout_multipliers.high", ("1", 200), ("0.001", 504), status);
}

#[test]
fn timeout_multipliers_critical() {
    let status = |line: &str| patience(line, "critical");
    two_values_for_all_and_one("timeout_multipliers.critical", ("1", 200), ("0.001", 504), status);
}

#[test]
fn stall_timeout() {
    two_values_for_all_and_one("stall_timeout", ("'60s'", false), ("'10ms'", true), |line| {
        let running = start(&format!("{line}{BUSY}"));
        let _busy = running.occupy();
        let mut stalled = false;
        running.eventually("the first batch is over", |running| {
            let stats = running.stats("delay");
            stalled |= stats["batching"]["stalled_instances"] == json!([0]);
            stats["executed_batches"] != 0
        });
        stalled
    });
}

/// The reply to the last of `requests` to a model that always fails.
fn failing(line: &str, requests: usize) -> crate::client::Reply {
    let model = script_model("delay", "raises");
    let running = start(&format!("{line}{model}models.delay.warmup = 0\n"));
    (1..requests).for_each(|_| assert_eq!(running.post(DELAY, &json!([1.0])).status, 500));
    running.post(DELAY, &json!([1.0]))
}

#[test]
fn breaker_failures() {
    two_values_for_all_and_one("breaker.failures", ("1", 503), ("0", 500), |line| failing(line, 2).status);
}

#[test]
fn breaker_window() {
    two_values_for_all_and_one("breaker.window", ("'1h'", 503), ("'1us'", 500), |line| {
        failing(&format!("{line}models.delay.batching.breaker.failures = 2\n"), 3).status
    });
}

#[test]
fn breaker_open() {
    two_values_for_all_and_one("breaker.open", ("'1m'", false), ("'1h'", true), |line| {
        let reply = failing(&format!("{line}models.delay.batching.breaker.failures = 1\n"), 2);
        reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 60
    });
}

#[test]
fn target_utilization() {
    two_values_for_all_and_one("dynamic.target_utilization", ("0.5", 0.5), ("1", 1.0), |line| {
        scheduler(line).target_utilization
    });
}

#[test]
fn size_increment() {
    two_values_for_all_and_one("dynamic.size_increment", ("1", 1), ("8", 8), |line| {
        scheduler(line).size_increment
    });
}

#[test]
fn padding_strategy() {
    use PaddingStrategy::{Dynamic, Maximum};
    two_values_for_all_and_one(
        "dynamic.padding_strategy",
        ("'dynamic'", Dynamic),
        ("'maximum'", Maximum),
        |line| scheduler(line).buckets.strategy,
    );
}

#[test]
fn enable_bucketing() {
    two_values_for_all_and_one("dynamic.enable_bucketing", ("true", true), ("false", false), |line| {
        scheduler(line).buckets.enabled
    });
}

#[test]
fn bucket_boundaries() {
    two_values_for_all_and_one(
        "dynamic.bucket_boundaries",
        ("[]", vec![]),
        ("[8, 16]", vec![8, 16]),
        |line| scheduler(line).buckets.boundaries,
    );
}

#[test]
fn low_load_threshold() {
    two_values_for_all_and_one("adaptive.low_load_threshold", ("1", 1.0), ("50.5", 50.5), |line| {
        scheduler(line).adaptive.low_load_threshold
    });
}

#[test]
fn high_load_threshold() {
    two_values_for_all_and_one("adaptive.high_load_threshold", ("20", 20.0), ("1000", 1000.0), |line| {
        scheduler(line).adaptive.high_load_threshold
    });
}

#[test]
fn adjustment_interval() {
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
    two_values_for_all_and_one("adaptive.adjustment_interval", ("'50ms'", short), ("'1m'", long), |line| {
        scheduler(line).adaptive.adjustment_interval
    });
}

#[test]
fn high_load_batch_size() {
    two_values_for_all_and_one("adaptive.high_load_batch_size", ("8", 8), ("128", 128), |line| {
        scheduler(line).adaptive.high_load_batch_size
    });
}

#[test]
fn low_load_timeout() {
    let (none, some) = (Duration::ZERO, Duration::from_millis(20));
    two_values_for_all_and_one("adaptive.low_load_timeout", ("'0ms'", none), ("'20ms'", some), |line| {
        scheduler(line).adaptive.low_load_timeout
    });
}
