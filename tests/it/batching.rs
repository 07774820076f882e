//! Who shares a batch with whom, who leaves first.

use std::cmp::Reverse;
use std::path::Path;

use serde_json::json;
use trustformers_batching::replay::Event;
use trustformers_batching::{Entry, Priority, Ticket};

use crate::client::JSON;
use crate::harness::{BUSY, DELAY, Running, quoted, start};
use crate::replay::events;

/// A server whose scheduler's calls can be read when it has stopped.
pub(crate) fn logged(config: &str, folder: &Path) -> Running {
    start(&format!("{config}models.delay.batching.event_log = {}\n", quoted(folder)))
}

/// Stops a server; the tickets of its batches, in the order in which they ran.
pub(crate) fn batches(running: Running, folder: &Path) -> Vec<Vec<Ticket>> {
    running.server.stop();
    let batch = |event: Event| match event {
        Event::Plan { batch: Some((_, tickets)), .. } => Some(tickets),
        _ => None,
    };
    events(&folder.join("delay@1.1.jsonl")).into_iter().filter_map(batch).collect()
}

#[test]
fn a_free_model_never_waits_for_company() {
    let running = start("models.delay.delay.batch_time = '0ms'\nbatching.max_wait_time = '60s'\n");
    for _ in 0..3 {
        assert_eq!(running.post(DELAY, &json!([1.0])).status, 200);
    }
    assert_eq!(running.count("delay", "executed_batches"), 3);
}

#[test]
fn what_waits_while_the_model_runs_leaves_together_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = "models.delay.delay.batch_time = '1ms'\nmodels.delay.batching.max_batch_size = 3\n";
    let running = logged(config, folder.path());
    let mut many =
        running.post_later(DELAY, &json!({ "instances": [[0], [1], [2], [3], [4], [5], [6], [7]] }));
    assert_eq!(many.reply().status, 200);
    let sizes: Vec<usize> = batches(running, folder.path()).iter().map(Vec::len).collect();
    assert_eq!(sizes, [3, 3, 2]);
}

#[test]
fn inputs_of_different_shapes_never_share_a_batch() {
    let running = start("models.delay.delay.batch_time = '0ms'\n");
    let items = json!({ "instances": [[1.0], [1.0, 2.0], [3.0], [3.0, 4.0], [5.0, 6.0, 7.0]] });
    assert_eq!(running.post(DELAY, &items).status, 200);
    assert_eq!(running.count("delay", "executed_batches"), 3);
}

#[test]
fn the_most_urgent_leaves_first() {
    let folder = tempfile::tempdir().unwrap();
    let running = logged(BUSY, folder.path());
    let mut connections = vec![running.occupy()];
    for (number, priority) in ["low", "normal", "high", "critical", "low", "critical"].iter().enumerate() {
        let mut connection = running.connect();
        if number % 2 == 0 {
            connection.start_post(DELAY, &json!({ "data": [number], "priority": priority }));
        } else {
            let headers = [JSON, ("x-priority", *priority)];
            connection.start("POST", DELAY, &headers, format!("[{number}]").as_bytes());
        }
        connections.push(connection);
    }
    for connection in &mut connections {
        assert_eq!(connection.reply().status, 200);
    }
    running.server.stop();
    let mut waiting: Vec<Entry> = Vec::new();
    let (mut ran, mut overtook) = (Vec::new(), 0);
    for event in events(&folder.path().join("delay@1.1.jsonl")) {
        match event {
            Event::Submit { entry, rejection: None, .. } => waiting.push(entry),
            Event::Plan { batch: Some((_, tickets)), .. } => {
                waiting.sort_by_key(|entry| entry.ticket);
                let (place, first) = waiting
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, entry)| (Reverse(entry.priority), entry.due(), entry.ticket))
                    .unwrap();
                assert_eq!(tickets, [first.ticket]);
                overtook += place;
                ran.push(waiting.remove(place).priority);
            }
            _ => {}
        }
    }
    ran.sort();
    assert_eq!(ran[..3], [Priority::Low, Priority::Low, Priority::Normal]);
    assert_eq!(ran[5..], [Priority::High, Priority::Critical, Priority::Critical]);
    assert!(overtook > 0, "nobody overtook anybody");
}

#[test]
fn a_client_that_floods_leaves_turns_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let config = "models.delay.delay.batch_time = '50ms'\nmodels.delay.batching.max_batch_size = 1\n";
    let running = logged(config, folder.path());
    let mut flood = running.connect();
    let many = json!({ "instances": vec![[1.0]; 20] }).to_string();
    flood.start("POST", DELAY, &[JSON, ("authorization", "Bearer flood")], many.as_bytes());
    running.eventually("the flood waits", |running| running.queued("delay") > 10);
    let mut others = [running.connect(), running.connect()];
    others[0].start("POST", DELAY, &[JSON, ("x-client-id", "one")], b"[1]");
    others[1].start("POST", DELAY, &[JSON, ("x-api-key", "two")], b"[1]");
    others.iter_mut().for_each(|other| assert_eq!(other.reply().status, 200));
    assert!(running.queued("delay") > 0, "they did not wait for the flood to end");
    assert_eq!(flood.reply().status, 200);
    running.server.stop();
    // For each of the others that waits: how many of the flood have left since it came.
    let mut waits: Vec<(Ticket, usize)> = Vec::new();
    let mut served = 0;
    for event in events(&folder.path().join("delay@1.1.jsonl")) {
        match event {
            Event::Submit { entry, rejection: None, .. } if entry.ticket >= Ticket(20) => {
                waits.push((entry.ticket, 0));
            }
            Event::Plan { batch: Some((_, tickets)), .. } if tickets[0] >= Ticket(20) => {
                let place = waits.iter().position(|(ticket, _)| *ticket == tickets[0]).unwrap();
                let (ticket, passed) = waits.remove(place);
                assert!(passed <= 2, "{ticket:?} waited for {passed} of the flood");
                served += 1;
            }
            Event::Plan { batch: Some(_), .. } => waits.iter_mut().for_each(|(_, passed)| *passed += 1),
            _ => {}
        }
    }
    assert_eq!(served, 2);
}

#[test]
fn an_adaptive_limit_follows_the_objective_and_shows() {
    let running = start(
        "models.delay.delay = { batch_time = '0ms', item_time = '1ms' }\n\
         models.delay.batching = { mode = 'adaptive', latency_slo = '8ms' }\n",
    );
    let limit = || running.stats("delay")["batching"]["limits"]["batch_size"].as_u64().unwrap();
    assert_eq!(limit(), 32);
    let mut connection = running.connect();
    for _ in 0..25 {
        // Some may be refused: what is over the objective is.
        connection.post(DELAY, &json!({ "instances": vec![[1.0]; 32] }));
    }
    let limit = limit();
    assert!((1..32).contains(&limit), "{limit}: batches of 32 take four times the objective");
}
