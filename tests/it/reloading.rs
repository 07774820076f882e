//! Models loaded, unloaded and replaced while requests come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::client::Connection;
use crate::fixtures::minilm;
use crate::harness::{DELAY, MINILM, eventually, threads_of};
use crate::process::{Process, serve};

const CYCLES: usize = 50;
const WORKERS: usize = 2;

/// Requests until told to stop: how many were answered, how many found the model not ready.
fn press(
    server: &Process,
    path: &str,
    body: &serde_json::Value,
    stop: &AtomicBool,
    may_be_gone: bool,
) -> (usize, usize) {
    let mut connection: Connection = server.connect();
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

fn resident_bytes(server: &Process) -> usize {
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", server.id())).unwrap();
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

/// The server as users start it, whose memory is not that of its clients and has the binary's allocators.
fn server() -> Process {
    let config = format!(
        "{}models.minilm.warmup = 0\nmodels.minilm.instances = 2\nmodels.delay.instances = 2\n\
         models.delay.delay.batch_time = '200us'\nserver.workers = {WORKERS}\n",
        minilm()
    );
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), config).unwrap();
    let mut server = serve(&["--config", file.path().to_str().unwrap()]);
    server.read_until("ready");
    server
}

#[test]
fn fifty_unloads_and_reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let server = server();
    let named = || {
        let threads = threads_of(&server.id());
        ["delay:", "minilm:"].map(|model| threads.iter().filter(|name| name.starts_with(model)).count())
    };
    // The async workers, and the pool of blocking threads: a load that comes before the thread of the last one
    // is back in the pool starts another, and one that is idle for 10 s ends.
    let others = || threads_of(&server.id()).iter().filter(|name| !name.starts_with("http")).count();
    // Threads name themselves as they begin.
    eventually("all threads are there", || named() == [3, 3]);
    let before = others() + WORKERS;
    let mut control = server.connect();
    let mut samples = Vec::new();
    let stop = AtomicBool::new(false);
    let (delay, text) = thread::scope(|scope| {
        let (server, stop) = (&server, &stop);
        let delay = scope.spawn(move || press(server, DELAY, &json!([1.0]), stop, false));
        let text = scope.spawn(move || press(server, MINILM, &json!("a text"), stop, true));
        for _ in 0..CYCLES {
            cycle(&mut control);
            samples.push(resident_bytes(server));
        }
        stop.store(true, Ordering::Relaxed);
        (delay.join().expect("no failure"), text.join().expect("no failure"))
    });
    eventually("each instance and its timer has one thread", || named() == [3, 3]);
    eventually("no other thread is left", || threads_of(&server.id()).len() == before);
    // Once the first cycles have warmed allocators and thread pools up. What a batch needs is now resident and
    // now not, so each is the usual of five cycles.
    let (early, late) = (&samples[5..10], &samples[CYCLES - 5..]);
    let resident = |samples: &[usize]| median(samples.iter().copied()) as f64;
    let growth = resident(late) / resident(early);
    assert!((0.95..=1.05).contains(&growth), "{growth}: {samples:?}");
    assert!(delay.0 > CYCLES && delay.1 == 0, "{delay:?}");
    assert!(text.0 > 0 && text.1 > 0, "{text:?}");
    assert_eq!(server.connect().post(DELAY, &json!([1.0])).ok()["data"], json!([1.0]));
}

#[test]
fn an_unloaded_model_gives_its_memory_back() {
    let server = server();
    let mut control = server.connect();
    // Once each way, so that what stays is there.
    cycle(&mut control);
    let loaded = resident_bytes(&server);
    control.post("/models/minilm/unload", &json!(null)).ok();
    let unloaded = resident_bytes(&server);
    // Its packed weights are 42 MB.
    assert!(unloaded + 40_000_000 <= loaded, "{loaded} bytes, unloaded {unloaded}");
}
