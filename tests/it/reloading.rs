//! Models loaded, unloaded and replaced while requests come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::client::Connection;
use crate::fixtures::minilm;
use crate::harness::{DELAY, MINILM, Running, start, threads, threads_named};

const CYCLES: usize = 50;

/// Requests until told to stop: how many were answered, how many found the model not ready.
fn press(
    running: &Running,
    path: &str,
    body: &serde_json::Value,
    stop: &AtomicBool,
    may_be_gone: bool,
) -> (usize, usize) {
    let mut connection: Connection = running.connect();
    let (mut served, mut gone) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let reply = connection.post(path, body);
        match reply.status {
            200 => served += 1,
            503 if may_be_gone && reply.code() == "model_not_ready" => gone += 1,
            _ => panic!("{path}: {} {}", reply.status, reply.text()),
        }
    }
    (served, gone)
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn median(values: impl Iterator<Item = usize>) -> usize {
    let mut values: Vec<usize> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// Unloads and loads the text model, and loads the delay model anew.
fn cycle(control: &mut Connection) {
    for path in ["/models/minilm/unload", "/models/delay/load", "/models/minilm/load"] {
        control.post(path, &json!(null)).ok();
    }
}

#[test]
fn fifty_unloads_and_reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let running = start(&format!(
        "{}models.minilm.warmup = 0\nmodels.minilm.instances = 2\nmodels.delay.instances = 2\n\
         models.delay.delay.batch_time = '200us'\n",
        minilm()
    ));
    let stop = AtomicBool::new(false);
    let named = || (threads_named("delay:"), threads_named("minilm:"));
    // Threads name themselves as they begin.
    running.eventually("all threads are there", |_| named() == (3, 3));
    let mut control = running.connect();
    let mut samples = Vec::new();
    let (delay, text) = thread::scope(|scope| {
        let (running, stop) = (&running, &stop);
        let delay = scope.spawn(move || press(running, DELAY, &json!([1.0]), stop, false));
        let text = scope.spawn(move || press(running, MINILM, &json!("a text"), stop, true));
        for _ in 0..CYCLES {
            cycle(&mut control);
            samples.push((threads().len(), resident_bytes()));
        }
        stop.store(true, Ordering::Relaxed);
        (delay.join().expect("no failure"), text.join().expect("no failure"))
    });
    running.eventually("each instance and its timer has one thread", |_| named() == (3, 3));
    // The first cycles warm allocators and thread pools up. What is resident at one moment under load is
    // now more, now less: the usual at the end is held against the most at the beginning.
    let (warm, end) = (&samples[5..20], &samples[CYCLES - 15..]);
    let threads = |samples: &[(usize, usize)]| median(samples.iter().map(|sample| sample.0));
    assert_eq!(threads(end), threads(warm), "{samples:?}");
    let most = warm.iter().map(|sample| sample.1).max().unwrap_or_default();
    assert!(median(end.iter().map(|sample| sample.1)) as f64 <= most as f64 * 1.05, "{samples:?}");
    assert!(delay.0 > CYCLES && delay.1 == 0, "{delay:?}");
    assert!(text.0 > 0 && text.1 > 0, "{text:?}");
    running.still_serves();
}
