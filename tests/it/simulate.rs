//! The command `simulate`: what it prints, what it refuses, and that it foretells what a server does.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trustformers_batching::sim::{Process, Traffic};

use crate::harness::{DELAY, Running, quoted, start};
use crate::process::{Finished, run};

const SLOW: &str = "models.delay.delay = { batch_time = '20ms', item_time = '1ms' }\n";

fn simulate(args: &[&str]) -> Finished {
    run(&[&["simulate"], args].concat())
}

fn printed(args: &[&str]) -> String {
    let finished = simulate(args);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    finished.stdout
}

fn report(args: &[&str]) -> Value {
    serde_json::from_str(&printed(&[args, &["--format", "json"]].concat())).expect("JSON")
}

fn refused(args: &[&str], code: i32, says: &[&str]) {
    let finished = simulate(args);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{finished:?}");
    assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
    for part in says {
        assert!(finished.stderr.contains(part), "{part:?} is not in {}", finished.stderr);
    }
}

/// A configuration file.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn it_prints_tables_that_only_the_seed_changes() {
    let config = file(SLOW);
    let args = ["--config", path(&config), "--rate", "150", "--duration", "30s", "--arrivals", "bursty"];
    let text = printed(&args);
    let first = text.lines().next().unwrap();
    assert_eq!(
        first,
        "delay: bursty arrivals, 150/s, 1 instance; a batch takes 20.0 ms + 1.00 ms x items + 0 ms x elements"
    );
    for part in
        ["requests", "throughput", "mean batch size", "padding", "utilization", "p95", "latency", "share"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(printed(&args), text);
    assert_ne!(printed(&[&args[..], &["--seed", "1"]].concat()), text);
}

#[test]
fn it_obeys_the_settings_of_the_model() {
    let config = file(&format!(
        "{SLOW}models.delay.instances = 2\n[batching]\nmax_batch_size = 4\nmax_queue_size = 100\n"
    ));
    let args = ["--config", path(&config), "--rate", "1000", "--requests", "5000"];
    let small = &report(&args)["simulated"];
    let largest =
        |report: &Value| report["batch_sizes"].as_object().unwrap().keys().next_back().unwrap().clone();
    assert_eq!((&small["requests"], largest(small)), (&json!(5000), "4".to_owned()));
    // Two instances with four every 24 ms.
    let throughput = small["throughput"].as_f64().unwrap();
    assert!((throughput / (8.0 / 0.024) - 1.0).abs() < 0.05, "{throughput}");
    let lost = |report: &Value| {
        let refused = report["refused"].as_object().unwrap().values();
        refused.map(|count| count.as_u64().unwrap()).sum::<u64>() + report["expired"].as_u64().unwrap()
    };
    assert_eq!(lost(small) + small["completed"].as_u64().unwrap(), 5000);
    let large =
        &report(&[&args[..], &["--set", "models.delay.batching.max_batch_size=64"]].concat())["simulated"];
    assert!(lost(large) * 2 < lost(small), "{large} {small}");
    let one = &report(&[&args[..], &["--instances", "1"]].concat())["simulated"];
    assert!(one["throughput"].as_f64().unwrap() < 0.6 * throughput, "{one}");
}

#[test]
fn lengths_priorities_noise_and_failures_show_in_the_result() {
    let service = ["--service", "a=2ms,c=20us", "--rate", "300", "--duration", "20s", "--model", "minilm"];
    let with = |more: &[&str]| report(&[&service[..], more].concat())["simulated"].clone();
    let number = |report: &Value, key: &str| report[key].as_f64().unwrap();
    let plain = with(&["--lengths", "16-256"]);
    let padded = with(&["--lengths", "16-256", "--padded"]);
    assert_eq!(number(&plain, "padding_ratio"), 0.0);
    assert!(number(&padded, "padding_ratio") > 0.2, "{padded}");
    assert!(number(&padded, "device_seconds_per_item") > number(&plain, "device_seconds_per_item"));
    let mixed = with(&["--lengths", "200", "--priorities", "low=5,critical=1"]);
    let p95 = |priority: &str| mixed["latency_by_priority"][priority]["p95"].as_f64().unwrap();
    assert!(p95("critical") < p95("low"), "{mixed}");
    let noisy = with(&["--lengths", "64", "--noise", "0.8"]);
    let steady = with(&["--lengths", "64"]);
    assert!(noisy["latency"]["p99"].as_f64() > steady["latency"]["p99"].as_f64(), "{noisy} {steady}");
    assert!(number(&with(&["--failures", "0.2"]), "failed") > 0.0);
    let day = with(&["--arrivals", "diurnal", "--clients", "3"]);
    assert!((number(&day, "requests") / 6000.0 - 1.0).abs() < 0.1, "{day}");
}

#[test]
fn what_makes_no_sense_is_refused_in_words() {
    for (args, says) in [
        (&[][..], &["--rate"][..]),
        (&["--rate", "0"], &["--rate", "above 0"]),
        (&["--rate", "5", "--trace", "x"], &["--trace", "cannot be used with"]),
        (&["--rate", "5", "--duration", "5"], &["--duration", "unit"]),
        (&["--rate", "5", "--duration", "5s", "--requests", "5"], &["cannot be used with"]),
        (&["--rate", "5", "--arrivals", "weekly"], &["weekly", "bursty"]),
        (&["--rate", "5", "--service", "q=5ms"], &["--service", "\"q\" is none of a, b, c"]),
        (&["--rate", "5", "--lengths", "9-3"], &["--lengths", "16-256"]),
        (&["--rate", "5", "--padded"], &["--lengths"]),
        (&["--rate", "5", "--instances", "0"], &["--instances"]),
    ] {
        refused(args, 2, says);
    }
    refused(&["--rate", "5", "--model", "nope"], 1, &["nope"]);
    refused(&["--rate", "5", "--model", "minilm"], 1, &["\"minilm\"", "--service", "--trace"]);
    refused(&["--rate", "5", "--set", "batching.max_batch_sise=4"], 1, &["did you mean"]);
    refused(&["--trace", "/nowhere"], 1, &["/nowhere", "No such file"]);
    let empty = file("");
    refused(&["--trace", path(&empty)], 1, &[path(&empty), "no request"]);
    let broken = file("{}\n");
    refused(&["--trace", path(&broken)], 1, &[&format!("{}:1", path(&broken)), "event log"]);
}

/// Sends Poisson arrivals whether or not there are answers; how long each took, in seconds, sorted.
fn open_loop(running: &Running, rate: f64, time: Duration) -> Vec<f64> {
    let traffic = Traffic { seed: 7, ..Traffic::new(Process::Poisson { rate }) };
    let end = trustformers_batching::Time::ZERO + time;
    let (done, latencies) = channel();
    thread::scope(|scope| {
        // More connections than requests in flight, so that none waits for an earlier reply.
        let mut lines: Vec<_> = (0..64)
            .map(|_| {
                let mut connection = running.connect();
                let (send, sent) = channel::<()>();
                let (done, body) = (done.clone(), json!({ "data": [1.0] }));
                scope.spawn(move || {
                    for () in sent {
                        let began = Instant::now();
                        connection.start_post(DELAY, &body);
                        assert_eq!(connection.reply().status, 200);
                        done.send(began.elapsed().as_secs_f64()).unwrap();
                    }
                });
                send
            })
            .collect();
        let began = Instant::now();
        for arrival in traffic.arrivals().take_while(|arrival| arrival.at < end) {
            let at = arrival.at.since(trustformers_batching::Time::ZERO);
            thread::sleep(at.saturating_sub(began.elapsed()));
            lines[0].send(()).unwrap();
            lines.rotate_left(1);
        }
    });
    drop(done);
    let mut latencies: Vec<f64> = latencies.iter().collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn within_a_fifth(what: &str, simulated: &Value, measured: f64) {
    let simulated = simulated.as_f64().unwrap();
    let off = simulated / measured - 1.0;
    println!("{what}: simulated {simulated:.5}, measured {measured:.5}, {:.1} % off", 100.0 * off);
    assert!(off.abs() <= 0.2, "{what}: simulated {simulated}, measured {measured}");
}

fn log_of(folder: &Path) -> String {
    folder.join("delay@1.1.jsonl").display().to_string()
}

#[test]
fn a_recorded_trace_simulated_foretells_batch_size_and_latency() {
    let folder = tempfile::tempdir().unwrap();
    let log = quoted(folder.path());
    // About half of what it can do, so that batches form and the queue still empties.
    let running =
        start(&format!("{SLOW}models.delay.batching = {{ event_log = {log}, max_batch_size = 8 }}\n"));
    let latencies = open_loop(&running, 150.0, Duration::from_secs(3));
    let stats = |field: &str| running.count("delay", field) as f64;
    let mean_batch_size = latencies.len() as f64 / stats("executed_batches");
    Arc::clone(&running.server).stop();

    let path = log_of(folder.path());
    let trace = report(&["--trace", &path]);
    let (simulated, recorded) = (&trace["simulated"], &trace["recorded"]);
    assert_eq!(simulated["requests"], json!(latencies.len()));
    assert_eq!(
        (&recorded["completed"], &simulated["completed"]),
        (&json!(latencies.len()), &json!(latencies.len()))
    );
    assert!(mean_batch_size > 2.0, "batches formed: {mean_batch_size}");
    within_a_fifth("mean batch size", &simulated["mean_batch_size"], mean_batch_size);
    within_a_fifth("p95", &simulated["latency"]["p95"], latencies[latencies.len() * 95 / 100]);

    // With other settings it is another run of the same requests.
    let single = report(&["--trace", &path, "--set", "batching.max_batch_size=1", "--model", "delay"]);
    assert_eq!(single["simulated"]["mean_batch_size"], json!(1.0));
    assert!(printed(&["--trace", &path]).contains("recorded"));
}
