//! The circuit breaker: exact times, then random runs against a reference that keeps all of history.

use std::time::Duration;

use proptest::prelude::*;

use crate::breaker::{Breaker, BreakerConfig, BreakerState};
use crate::{Ticket, Time};

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Opened at second 4 by five failures: open until second 14.
fn opened() -> Breaker {
    let mut breaker = Breaker::new(BreakerConfig::default());
    for second in 0..5 {
        assert_eq!(breaker.admit(at(second), Ticket(second)), Ok(()));
        breaker.failed(at(second));
    }
    breaker
}

#[test]
fn five_failures_within_the_window_open_it() {
    let mut breaker = opened();
    assert_eq!(breaker.state(at(5)), BreakerState::Open { until: at(14) });
    assert_eq!(breaker.admit(at(5), Ticket(9)), Err(seconds(9)));
}

#[test]
fn failures_further_apart_than_the_window_do_not() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    for number in 0..50 {
        breaker.failed(at(number * 3));
    }
    assert_eq!(breaker.state(at(150)), BreakerState::Closed);
}

#[test]
fn a_success_between_failures_starts_the_count_again() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    for number in 0..100 {
        breaker.failed(at(0));
        if number % 4 == 3 {
            breaker.succeeded(at(0));
        }
    }
    assert_eq!(breaker.state(at(0)), BreakerState::Closed);
}

#[test]
fn half_open_lets_one_probe_through_and_its_success_closes() {
    let mut breaker = opened();
    assert_eq!(breaker.state(at(14)), BreakerState::HalfOpen);
    assert_eq!(breaker.admit(at(14), Ticket(20)), Ok(()));
    assert_eq!(breaker.admit(at(15), Ticket(21)), Err(seconds(9)));
    breaker.succeeded(at(16));
    assert_eq!(breaker.state(at(16)), BreakerState::Closed);
    assert_eq!(breaker.admit(at(16), Ticket(22)), Ok(()));
}

#[test]
fn a_failed_probe_opens_it_for_as_long_again() {
    let mut breaker = opened();
    assert_eq!(breaker.admit(at(20), Ticket(20)), Ok(()));
    breaker.failed(at(21));
    assert_eq!(breaker.state(at(21)), BreakerState::Open { until: at(31) });
}

#[test]
fn a_probe_that_ended_without_running_makes_room_for_the_next() {
    let mut breaker = opened();
    assert_eq!(breaker.admit(at(14), Ticket(20)), Ok(()));
    breaker.ended(Ticket(19));
    assert_eq!(breaker.admit(at(14), Ticket(21)), Err(seconds(10)), "another ticket is not the probe");
    breaker.ended(Ticket(20));
    assert_eq!(breaker.state(at(14)), BreakerState::HalfOpen);
    assert_eq!(breaker.admit(at(14), Ticket(21)), Ok(()));
}

#[test]
fn a_probe_that_never_ends_does_not_block_for_ever() {
    let mut breaker = opened();
    assert_eq!(breaker.admit(at(14), Ticket(20)), Ok(()));
    assert_eq!(breaker.admit(at(23), Ticket(21)), Err(seconds(1)));
    assert_eq!(breaker.admit(at(24), Ticket(21)), Ok(()));
    breaker.ended(Ticket(20));
    assert_eq!(breaker.admit(at(24), Ticket(22)), Err(seconds(10)), "21 is the probe now");
}

#[test]
fn batches_that_were_running_when_it_opened_change_nothing() {
    let mut breaker = opened();
    breaker.failed(at(10));
    breaker.succeeded(at(11));
    assert_eq!(breaker.state(at(12)), BreakerState::Open { until: at(14) });
}

#[test]
fn reset_closes_it_at_once() {
    let mut breaker = opened();
    breaker.reset();
    assert_eq!(breaker.state(at(5)), BreakerState::Closed);
    breaker.failed(at(5));
    assert_eq!(breaker.state(at(5)), BreakerState::Closed, "the count starts again");
}

#[test]
fn zero_failures_mean_that_it_never_opens() {
    let mut breaker = Breaker::new(BreakerConfig { failures: 0, ..BreakerConfig::default() });
    for _ in 0..1000 {
        breaker.failed(at(1));
    }
    assert_eq!(breaker.state(at(1)), BreakerState::Closed);
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Advance(u64),
    Admit(u64),
    Failed,
    Succeeded,
    Ended(u64),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (1_u64..6).prop_map(Op::Advance),
        3 => (0_u64..4).prop_map(Op::Admit),
        6 => Just(Op::Failed),
        1 => Just(Op::Succeeded),
        1 => (0_u64..4).prop_map(Op::Ended),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(op, 0..100)
}

/// Keeps every failure since the last success; `opened`: when it opened; `probe`: who, since when.
#[derive(Default)]
struct Reference {
    failures: Vec<u64>,
    opened: Option<u64>,
    probe: Option<(u64, u64)>,
}

const WINDOW: u64 = 6;
const OPEN: u64 = 5;
const FAILURES: usize = 3;

impl Reference {
    fn refuses(&self, now: u64) -> Option<u64> {
        let wait = |since: u64| (since + OPEN > now).then(|| since + OPEN - now);
        self.opened.and_then(wait).or_else(|| self.probe.and_then(|(_, since)| wait(since)))
    }

    fn open(&self, now: u64) -> bool {
        self.opened.is_some_and(|opened| now < opened + OPEN)
    }

    fn step(&mut self, now: u64, op: Op) {
        match op {
            Op::Failed if self.open(now) => {}
            Op::Failed => {
                self.failures.push(now);
                let lately = self.failures.iter().filter(|failure| now - **failure <= WINDOW).count();
                if self.opened.is_some() || lately >= FAILURES {
                    *self = Self { opened: Some(now), ..Self::default() };
                }
            }
            Op::Succeeded if self.open(now) => {}
            Op::Succeeded | Op::Reset => *self = Self::default(),
            Op::Ended(ticket) if self.probe.is_some_and(|(probe, _)| probe == ticket) => self.probe = None,
            Op::Admit(ticket) if self.opened.is_some() && self.refuses(now).is_none() => {
                self.probe = Some((ticket, now));
            }
            Op::Ended(_) | Op::Admit(_) | Op::Advance(_) => {}
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_reference_does(ops in ops()) {
        let nanos = Duration::from_nanos;
        let config =
            BreakerConfig { failures: FAILURES as u32, window: nanos(WINDOW), open: nanos(OPEN) };
        let mut breaker = Breaker::new(config);
        let mut reference = Reference::default();
        let mut now = 0;
        for op in ops {
            let time = Time::from_nanos(now);
            match op {
                Op::Advance(by) => now += by,
                Op::Admit(ticket) => {
                    let expected = reference.refuses(now).map_or(Ok(()), |wait| Err(nanos(wait)));
                    prop_assert_eq!(breaker.admit(time, Ticket(ticket)), expected);
                }
                Op::Failed => breaker.failed(time),
                Op::Succeeded => breaker.succeeded(time),
                Op::Ended(ticket) => breaker.ended(Ticket(ticket)),
                Op::Reset => breaker.reset(),
            }
            reference.step(time.as_nanos(), op);
            let state = match reference.opened {
                None => BreakerState::Closed,
                Some(opened) if now < opened + OPEN => {
                    BreakerState::Open { until: Time::from_nanos(opened + OPEN) }
                }
                Some(_) => BreakerState::HalfOpen,
            };
            prop_assert_eq!(breaker.state(Time::from_nanos(now)), state);
        }
    }
}
