//! Everything at once on real threads: submits, cancels, deadlines, several instances, and an end.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::support::{Plain, Results, batcher, eager, request, tenfold};
use crate::replay::replay;
use crate::{Batcher, Dispatch, Instances, ModelError, Priority, SchedulerConfig, ShapeKey, Submission};

const ROUNDS: u64 = 150;
const CALLERS: u64 = 4;
const REQUESTS: u64 = 400;

/// Numbers that look random, the same for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What a caller knows of one request.
struct Sent {
    input: u64,
    admitted: bool,
    /// What cancelling it said; `None` where it was not tried.
    cancelled: Option<bool>,
    answers: Arc<AtomicU32>,
}

/// How a round ends: under load, or after it.
#[derive(Clone, Copy)]
enum Ending {
    Abort,
    Close,
    Drain,
}

fn caller(batcher: &Batcher<u64, u64>, id: u64, ending: Ending, dice: &mut Dice) -> Vec<Sent> {
    let mut sent = Vec::new();
    let last = dice.roll(REQUESTS);
    for number in 0..REQUESTS {
        match ending {
            Ending::Abort if number == last => batcher.abort(),
            Ending::Close if number == last => batcher.close(),
            _ => {}
        }
        let input = id * REQUESTS + number;
        let answers = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&answers);
        let timeout = match dice.roll(4) {
            0 => Some(Duration::from_micros(dice.roll(300))),
            _ => None,
        };
        let priority = if dice.roll(3) == 0 { Priority::High } else { Priority::Normal };
        let reply = Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let shape = ShapeKey(dice.roll(3));
        let submission = Submission { timeout, priority, shape, ..request(input, reply) };
        let ticket = batcher.submit([submission]).remove(0).ok();
        let cancelled = ticket.filter(|_| dice.roll(3) == 0).map(|ticket| {
            if dice.roll(2) == 0 {
                thread::yield_now();
            }
            batcher.cancel(ticket)
        });
        sent.push(Sent { input, admitted: ticket.is_some(), cancelled, answers });
    }
    sent
}

/// How many requests met each fate: a stress that no request feels proves nothing.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    answered: u64,
    cancelled_queued: u64,
    cancelled_running: u64,
    cancelled_late: u64,
}

fn round(seed: u64, tally: &mut Tally) {
    let mut dice = Dice(seed * 0x9E37_79B9 + 1);
    let config = SchedulerConfig {
        dispatch: if dice.roll(2) == 0 { Dispatch::Eager } else { Dispatch::Window },
        max_wait: Duration::from_micros(200),
        max_queue_size: 64,
        ..eager(1 + dice.roll(16) as u32)
    };
    let (batcher, memory) = batcher(config, 3);
    let ran = Arc::new(Mutex::new(HashSet::new()));
    let twice = Arc::new(AtomicU32::new(0));
    let model = |_| {
        let (ran, twice) = (Arc::clone(&ran), Arc::clone(&twice));
        Plain(move |inputs: &[u64]| -> Results {
            let again = inputs.iter().filter(|input| !ran.lock().unwrap().insert(**input)).count();
            twice.fetch_add(again as u32, Ordering::SeqCst);
            if inputs[0] % 50 == 7 {
                Err(ModelError("a bad batch".to_owned()).into())
            } else {
                tenfold(inputs)
            }
        })
    };
    let instances = Instances::spawn("stress", Arc::clone(&batcher), (0..3).map(model).collect()).unwrap();
    // Two rounds of three end under load, at one caller's hand.
    let ending = [Ending::Abort, Ending::Close, Ending::Drain][dice.roll(3) as usize];
    let seeds: Vec<_> = (0..CALLERS).map(|_| dice.roll(u64::MAX) + 1).collect();
    let sent: Vec<Sent> = thread::scope(|scope| {
        let callers: Vec<_> = seeds
            .into_iter()
            .zip(0..)
            .map(|(seed, id)| {
                let batcher = &batcher;
                let ending = if id == 0 { ending } else { Ending::Drain };
                scope.spawn(move || caller(batcher, id, ending, &mut Dice(seed)))
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    instances.drain();
    drop(instances);

    assert_eq!(Arc::strong_count(&batcher), 1, "a thread still holds the batcher");
    assert!(batcher.remembers_nothing());
    assert_eq!(twice.load(Ordering::SeqCst), 0, "a request ran twice");
    let ran = ran.lock().unwrap();
    for request in sent {
        let input = request.input;
        match (request.admitted, request.cancelled, request.answers.load(Ordering::SeqCst)) {
            (false, None, 0) => tally.refused += 1,
            (true, None, 1) => tally.answered += 1,
            (true, Some(true), 0) => {
                assert!(!ran.contains(&input), "{input} ran though cancelled");
                tally.cancelled_queued += 1;
            }
            (true, Some(false), 0) => tally.cancelled_running += 1,
            (true, Some(false), 1) => tally.cancelled_late += 1,
            other => panic!("round {seed}, request {input}: {other:?} (admitted, cancelled, answers)"),
        }
        // The reply is gone, called or not: nothing keeps what it holds.
        assert_eq!(Arc::strong_count(&request.answers), 1, "a reply is kept");
    }
    let log = std::mem::take(&mut *memory.events.lock().unwrap());
    let batches = memory.batches.lock().unwrap().len();
    assert_eq!(replay(log).map(|replayed| replayed.batches), Ok(batches));
}

#[test]
fn under_load_every_request_is_answered_once_or_cancelled_and_the_log_replays() {
    let mut tally = Tally::default();
    (0..ROUNDS).for_each(|seed| round(seed, &mut tally));
    let Tally { refused, answered, cancelled_queued, cancelled_running, cancelled_late } = tally;
    let rarest = [refused, answered, cancelled_queued, cancelled_running, cancelled_late].into_iter().min();
    assert!(rarest > Some(0), "{tally:?}");
}
