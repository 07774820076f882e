//! Streams of records: when batches end, what is assembled ahead, who has a place, with exact times.

use std::time::Duration;

use proptest::prelude::*;

use crate::{Outcome, Stream, StreamConfig, StreamStats, Time};

const WINDOW: Duration = Duration::from_millis(50);

fn config() -> StreamConfig {
    StreamConfig {
        target_cost: 100,
        max_batch_size: 4,
        min_batch_size: 1,
        max_wait: WINDOW,
        max_queue_size: 3,
        prefetch_batches: 1,
    }
}

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn open(config: StreamConfig) -> Stream<u32> {
    let mut stream = Stream::new(config);
    stream.open(at(0));
    stream
}

fn bring(stream: &mut Stream<u32>, now: Time, records: impl IntoIterator<Item = u32>) {
    for record in records {
        assert_eq!(stream.submit(now, 1, record), Ok(()), "no place for {record}");
    }
}

fn end(stream: &mut Stream<u32>, now: Time, records: u64) {
    stream.complete(now, Outcome::Completed, records, records);
}

#[test]
fn a_full_batch_starts_at_once_and_a_partial_one_when_its_first_record_has_waited() {
    let mut stream = open(config());
    bring(&mut stream, at(0), 0..3);
    assert_eq!(stream.start(at(0)), None);
    assert_eq!(stream.due(), Some(at(50)));
    bring(&mut stream, at(10), 3..5);
    assert_eq!(stream.start(at(10)), Some(vec![0, 1, 2, 3]));
    end(&mut stream, at(20), 4);
    stream.assemble(at(59));
    assert_eq!((stream.start(at(59)), stream.due()), (None, Some(at(60))));
    stream.assemble(at(60));
    assert_eq!((stream.start(at(60)), stream.due()), (Some(vec![4]), None));
}

#[test]
fn a_batch_ends_before_the_record_that_would_lift_it_above_its_target() {
    let mut stream = open(config());
    for (record, cost) in [(0, 40), (1, 60), (2, 70), (3, 40), (4, 50), (5, 10)] {
        assert_eq!(stream.submit(at(0), cost, record), Ok(()));
    }
    let mut batches = Vec::new();
    for _ in 0..3 {
        batches.extend(stream.start(at(0)));
        end(&mut stream, at(0), 1);
    }
    assert_eq!(batches, [vec![0, 1], vec![2], vec![3, 4, 5]]);
}

#[test]
fn a_record_above_the_target_runs_alone_even_beside_those_that_cost_nothing() {
    let mut stream = open(StreamConfig { max_queue_size: 10, ..config() });
    for (record, cost) in [(0, 0), (1, u32::MAX), (2, 0)] {
        assert_eq!(stream.submit(at(0), cost, record), Ok(()));
    }
    assert_eq!(stream.start(at(0)), Some(vec![0]));
    end(&mut stream, at(1), 1);
    assert_eq!(stream.start(at(1)), Some(vec![1]));
    end(&mut stream, at(2), 1);
    assert_eq!(stream.start(at(2)), None, "the last one waits its window");
    stream.assemble(at(50));
    assert_eq!(stream.start(at(50)), Some(vec![2]));
}

#[test]
fn what_may_wait_is_what_runs_what_is_ahead_what_is_assembled_and_the_queue() {
    for prefetch_batches in 0..3 {
        let mut stream = open(StreamConfig { prefetch_batches, ..config() });
        bring(&mut stream, at(0), 0..4);
        assert!(stream.start(at(0)).is_some());
        let most = 4 + 4 * prefetch_batches + 4 + 3;
        bring(&mut stream, at(0), 4..most);
        assert_eq!(stream.submit(at(0), 1, 99), Err(99), "{prefetch_batches} ahead");
        end(&mut stream, at(1), 4);
        assert!(stream.start(at(1)).is_some());
        assert!(stream.has_room());
        bring(&mut stream, at(1), 0..4);
        assert!(!stream.has_room(), "as many as the batch that left");
    }
}

#[test]
fn a_batch_may_be_larger_than_the_queue_behind_it() {
    let mut stream = open(StreamConfig { max_batch_size: 64, max_queue_size: 1, ..config() });
    bring(&mut stream, at(0), 0..64);
    assert_eq!(stream.start(at(0)), Some((0..64).collect()));
}

#[test]
fn batches_are_assembled_ahead_by_the_timeout_while_one_runs() {
    let mut stream = open(config());
    bring(&mut stream, at(0), 0..4);
    assert!(stream.start(at(0)).is_some());
    bring(&mut stream, at(0), 4..6);
    stream.assemble(at(50));
    bring(&mut stream, at(51), 6..7);
    end(&mut stream, at(60), 4);
    assert_eq!(stream.start(at(60)), Some(vec![4, 5]), "later records do not join it");
}

#[test]
fn a_batch_below_the_least_size_grows_while_one_runs_and_leaves_by_the_timeout_while_none_does() {
    let mut stream = open(StreamConfig { min_batch_size: 3, ..config() });
    bring(&mut stream, at(0), 0..1);
    stream.assemble(at(50));
    assert_eq!(stream.start(at(50)), Some(vec![0]), "alone, whatever the least size says");
    bring(&mut stream, at(60), 1..3);
    stream.assemble(at(115));
    bring(&mut stream, at(120), 3..4);
    bring(&mut stream, at(130), 4..5);
    end(&mut stream, at(140), 1);
    assert_eq!(stream.start(at(140)), Some(vec![1, 2, 3]), "of the least size, and overdue: it ended");
    end(&mut stream, at(150), 3);
    stream.assemble(at(180));
    assert_eq!(stream.start(at(180)), Some(vec![4]));
}

#[test]
fn a_batch_that_reached_its_cost_is_assembled_ahead_whatever_the_least_size() {
    let mut stream = open(StreamConfig { min_batch_size: 3, ..config() });
    assert_eq!(stream.submit(at(0), 100, 0), Ok(()));
    assert_eq!(stream.start(at(0)), Some(vec![0]));
    assert_eq!(stream.submit(at(0), 100, 1), Ok(()));
    bring(&mut stream, at(0), 2..5);
    end(&mut stream, at(1), 1);
    assert_eq!(stream.start(at(1)), Some(vec![1]));
}

#[test]
fn what_drains_leaves_without_waiting_for_company() {
    let mut stream = open(StreamConfig { min_batch_size: 4, ..config() });
    bring(&mut stream, at(0), 0..2);
    stream.drain(at(1));
    assert_eq!(stream.start(at(1)), Some(vec![0, 1]));
    bring(&mut stream, at(2), 2..3);
    assert!(!stream.is_idle());
    end(&mut stream, at(3), 2);
    assert_eq!(stream.start(at(3)), Some(vec![2]));
    end(&mut stream, at(4), 1);
    assert!(stream.is_idle());
}

#[test]
fn time_is_busy_while_a_batch_runs_and_idle_while_none_does_until_it_is_closed() {
    let mut stream = open(config());
    bring(&mut stream, at(10), 0..4);
    assert!(stream.start(at(10)).is_some());
    assert_eq!((stream.stats(at(15)).busy, stream.stats(at(15)).idle.as_millis()), (at(5).since(at(0)), 10));
    stream.complete(at(40), Outcome::Failed, 4, 44);
    stream.close(at(100));
    let stats = StreamStats {
        submitted: 4,
        completed: 4,
        batches: 1,
        cost: 44,
        busy: Duration::from_millis(30),
        idle: Duration::from_millis(70),
    };
    assert_eq!(stream.stats(at(900)), stats);
}

#[test]
fn a_batch_of_which_nobody_was_left_is_not_counted() {
    let mut stream = open(config());
    bring(&mut stream, at(0), 0..4);
    assert!(stream.start(at(0)).is_some());
    stream.complete(at(0), Outcome::Completed, 0, 0);
    assert_eq!((stream.stats(at(0)).batches, stream.stats(at(0)).completed), (0, 0));
}

#[test]
fn what_is_abandoned_comes_back_and_leaves_nothing_behind() {
    let mut stream = open(config());
    bring(&mut stream, at(0), 0..10);
    assert_eq!(stream.start(at(0)), Some(vec![0, 1, 2, 3]));
    let mut left = stream.abandon(at(1));
    left.sort_unstable();
    assert_eq!(left, (4..10).collect::<Vec<_>>());
    end(&mut stream, at(2), 4);
    assert!(stream.is_idle());
    assert_eq!(stream.stats(at(2)).batches, 0);
}

#[derive(Debug, Clone)]
enum Call {
    Submit(u32),
    Pass(u64),
    Start,
    Complete,
    Drain,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        6 => (0u32..160).prop_map(Call::Submit),
        2 => (0u64..60).prop_map(Call::Pass),
        3 => Just(Call::Start),
        3 => Just(Call::Complete),
        1 => Just(Call::Drain),
    ];
    prop::collection::vec(call, 0..200)
}

proptest! {
    #[test]
    fn every_record_runs_once_in_order_within_the_limits_and_by_its_window(
        calls in calls(),
        max_batch_size in 1u32..6,
        min_batch_size in 1u32..6,
        max_queue_size in 1u32..6,
        prefetch_batches in 0u32..3,
    ) {
        let min_batch_size = min_batch_size.min(max_batch_size);
        let limits =
            StreamConfig { max_batch_size, min_batch_size, max_queue_size, prefetch_batches, ..config() };
        let mut stream = open(limits);
        let (mut now, mut costs, mut ran, mut running) = (0, Vec::new(), 0, 0);
        let mut arrived = Vec::new();
        let most = (max_batch_size * (prefetch_batches + 2) + max_queue_size) as usize;
        for call in calls {
            match call {
                Call::Submit(cost) => {
                    let record = u32::try_from(costs.len()).unwrap();
                    if stream.submit(at(now), cost, record).is_ok() {
                        costs.push(cost);
                        arrived.push(now);
                    }
                    prop_assert!(costs.len() - ran + running <= most);
                }
                Call::Pass(millis) => {
                    now += millis;
                    if stream.due().is_some_and(|due| due <= at(now)) {
                        stream.assemble(at(now));
                    }
                    let overdue = arrived.get(ran).is_some_and(|arrived| arrived + 50 <= now);
                    prop_assert!(!overdue || running > 0 || stream.is_startable(), "left after its window");
                }
                Call::Start => {
                    if let Some(batch) = stream.start(at(now)) {
                        let expected: Vec<u32> = (ran..ran + batch.len()).map(|record| record as u32).collect();
                        prop_assert_eq!(&batch, &expected);
                        prop_assert!(!batch.is_empty() && batch.len() <= max_batch_size as usize);
                        let cost: u32 = batch.iter().map(|&record| costs[record as usize]).sum();
                        prop_assert!(cost <= 100 || batch.len() == 1, "{} of {:?}", cost, batch);
                        running = batch.len();
                        ran += running;
                    }
                }
                Call::Complete => {
                    stream.complete(at(now), Outcome::Completed, running as u64, 0);
                    running = 0;
                }
                Call::Drain => stream.drain(at(now)),
            }
        }
        stream.drain(at(now));
        while !stream.is_idle() {
            stream.complete(at(now), Outcome::Completed, 0, 0);
            ran += stream.start(at(now)).map_or(0, |batch| batch.len());
        }
        prop_assert_eq!(ran, costs.len());
    }
}
