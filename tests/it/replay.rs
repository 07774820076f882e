//! The log of a real server's scheduler replays to the same batches.

use std::collections::HashSet;
use std::path::Path;

use serde_json::json;
use trustformers_batching::replay::{Event, Replayed, replay};
use trustformers_batching::{Rejection, Verdict};

use crate::harness::{DELAY, Running, quoted, start};

/// The log in a file.
pub(crate) fn events(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).expect("the log is there");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Many clients at once: some patient, some not, some that leave; of three shapes and all priorities.
fn load(running: &Running) {
    std::thread::scope(|scope| {
        for client in 0..8_usize {
            scope.spawn(move || {
                let mut connection = running.connect();
                for number in 0..60_usize {
                    let items: Vec<_> =
                        (0..1 + (client + number) % 4).map(|i| vec![0.5; 1 + i % 3]).collect();
                    let priority = ["low", "normal", "high", "critical"][(client + number / 7) % 4];
                    let timeout_ms = if number % 5 == 0 { 1 + number % 7 } else { 60_000 };
                    let body = json!({ "instances": items, "priority": priority, "timeout_ms": timeout_ms });
                    if number % 6 == 5 {
                        // Leaves at once.
                        drop(running.post_later(DELAY, &body));
                    } else {
                        let status = connection.post(DELAY, &body).status;
                        assert!([200, 429, 504].contains(&status), "{status}");
                    }
                }
            });
        }
    });
    running.eventually("everybody is answered or gone", |running| running.queued("delay") == 0);
}

/// Loads a server with these settings and replays its log; what happened in it.
fn replays(batching: &str) -> (Vec<Event>, Replayed) {
    let folder = tempfile::tempdir().unwrap();
    let log = quoted(folder.path());
    let running = start(&format!(
        "models.delay.delay = {{ batch_time = '2ms', item_time = '100us' }}\nmodels.delay.instances = 3\n\
         models.delay.batching = {{ event_log = {log}, max_queue_size = 6, {batching} }}\n"
    ));
    load(&running);
    let executed = running.count("delay", "executed_batches");
    running.server.stop();
    let events = events(&folder.path().join("delay@1.1.jsonl"));
    let replayed = replay(events.clone()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(replayed.events, events.len());
    assert!(replayed.batches as u64 >= executed && executed > 20, "{replayed:?}, {executed} executed");
    (events, replayed)
}

/// Asserts that the log has every kind of event and end, so that the replay has seen them.
fn has_everything(events: &[Event]) {
    let mut seen = HashSet::new();
    let mut instances = HashSet::new();
    for event in events {
        let verdicts = match event {
            Event::Start { .. } | Event::Flush { .. } | Event::ResetBreaker => continue,
            Event::Submit { rejection, .. } => {
                if let Some(Rejection::QueueFull { .. }) = rejection {
                    seen.insert("full");
                }
                continue;
            }
            Event::Cancel { .. } => {
                seen.insert("cancel");
                continue;
            }
            Event::Plan { instance, batch, verdicts, .. } => {
                batch.is_some().then(|| instances.insert(*instance));
                verdicts
            }
            Event::Drain => {
                seen.insert("drain");
                continue;
            }
            Event::Complete { verdicts, .. } | Event::Expire { verdicts, .. } => verdicts,
        };
        for (_, verdict) in verdicts {
            seen.insert(match verdict {
                Verdict::Completed => "completed",
                Verdict::Failed => "failed",
                Verdict::ExpiredInQueue | Verdict::GivenUp | Verdict::ExpiredRunning => "expired",
                Verdict::NeverFits => "never fits",
            });
        }
    }
    let mut seen: Vec<_> = seen.into_iter().collect();
    seen.sort_unstable();
    assert_eq!(seen, ["cancel", "completed", "drain", "expired", "full"]);
    assert_eq!(instances.len(), 3, "every instance ran something");
}

#[test]
fn a_dynamic_servers_log_replays_to_the_same_batches() {
    let (events, _) = replays("mode = 'dynamic', max_batch_size = 4");
    has_everything(&events);
}

#[test]
fn a_fixed_servers_log_replays_to_the_same_batches() {
    let (events, _) = replays("mode = 'fixed', max_batch_size = 4, max_wait_time = '3ms'");
    has_everything(&events);
}

#[test]
fn a_windowed_servers_log_replays_to_the_same_batches() {
    replays("dispatch = 'window', max_batch_size = 8, max_wait_time = '5ms', max_batch_tokens = 5");
}

#[test]
fn a_replay_of_a_log_that_was_changed_says_where() {
    let (mut events, _) = replays("mode = 'dynamic', max_batch_size = 4");
    let changed = events
        .iter_mut()
        .enumerate()
        .find_map(|(index, event)| match event {
            Event::Plan { batch: Some((_, tickets)), .. } if tickets.len() > 1 => {
                tickets.swap(0, 1);
                Some(index)
            }
            _ => None,
        })
        .expect("a batch of two");
    let error = replay(events).expect_err("the log was changed").to_string();
    assert!(error.contains(&format!("event {changed} differs")), "{error}");
}

#[test]
fn a_reloaded_model_begins_a_new_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = quoted(folder.path());
    let running = start(&format!(
        "models.delay.delay.batch_time = '20ms'\n\
         models.delay.batching = {{ event_log = {log}, max_batch_size = 1 }}\n"
    ));
    let mut busy = running.post_later(DELAY, &json!({ "instances": [[1], [2], [3], [4], [5]] }));
    running.eventually("it is busy", |running| running.queued("delay") > 0);
    // The old one still runs its queue, and logs it, while the new one has its log.
    assert_eq!(running.post("/models/delay/load", &json!(null)).status, 200);
    assert_eq!(busy.reply().status, 200);
    assert_eq!(running.post(DELAY, &json!([6])).status, 200);
    running.server.stop();
    // Each has a file of its own, and none a line of the other.
    for (load, batches) in [(1, 5), (2, 1)] {
        let events = events(&folder.path().join(format!("delay@1.{load}.jsonl")));
        let replayed = replay(events).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(replayed.batches, batches);
    }
}
