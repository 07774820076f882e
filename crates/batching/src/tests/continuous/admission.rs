//! Who is refused, why, and when requests are given up.

use std::time::Duration;

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, Deadlines, End, Refusal, Request};
use crate::scheduler::Rejection;
use crate::time::Time;

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

#[test]
fn what_asks_for_nothing_is_refused() {
    let mut world = World::new(config());
    assert_eq!(world.submit(request([], 4)), Err(Refusal::EmptyPrompt));
    assert_eq!(world.submit(request(0..4, 0)), Err(Refusal::NothingToGenerate));
    for asked in [0, 9] {
        let refused = world.submit(Request { sequences: asked, ..request(0..4, 4) });
        assert_eq!(refused, Err(Refusal::Sequences { asked, limit: 8 }));
    }
    assert!(world.scheduler.remembers_nothing());
}

#[test]
fn what_exceeds_the_context_is_refused_and_what_fills_it_is_not() {
    let mut world = World::new(ContinuousConfig { max_context: 20, ..config() });
    let refused = Refusal::ContextExceeded { prompt: 15, max_tokens: 6, limit: 20 };
    assert_eq!(world.submit(request(0..15, 6)), Err(refused));
    assert!(world.submit(request(0..15, 5)).is_ok());
}

#[test]
fn what_the_pool_can_never_hold_is_refused_and_what_fills_it_runs() {
    let mut world = World::new(ContinuousConfig { blocks: 5, ..config() });
    let refused = Rejection::NeverFits { cost: 21, limit: 20 };
    assert_eq!(world.submit(request(0..15, 7)), Err(refused.into()));
    world.admit(request(0..15, 6));
    world.run();
    assert_eq!(world.ended[0].end, End::Length);
}

#[test]
fn the_most_that_may_follow_a_prompt_is_let_in_and_no_more_is() {
    for (blocks, max_context) in [(5, 400), (5, 20), (100, 20), (1, 20)] {
        for (preemption, sequences) in [(true, 1), (true, 3), (false, 1), (false, 3)] {
            let config = ContinuousConfig { blocks, max_context, preemption, ..config() };
            for prompt in [1, 4, 12, 19] {
                let most = config.most_tokens(prompt as usize, sequences);
                let asks = |max_tokens| Request { sequences, ..request(0..prompt, max_tokens) };
                let case = format!("{prompt} tokens, {config:?}");
                assert!(World::new(config.clone()).submit(asks(most + 1)).is_err(), "{case}");
                assert!(most == 0 || World::new(config.clone()).submit(asks(most)).is_ok(), "{case}");
            }
        }
    }
}

#[test]
fn sequences_that_fit_only_one_after_the_other_are_let_in_where_they_may_be_preempted() {
    let config = ContinuousConfig { blocks: 5, ..config() };
    let asks = Request { sequences: 3, ..request(0..8, 12) };
    let mut world = World::new(config.clone());
    assert!(world.submit(asks.clone()).is_ok());
    world.run();
    assert_eq!(world.ended.len(), 3);

    let mut world = World::new(ContinuousConfig { preemption: false, ..config });
    let refused = Rejection::NeverFits { cost: 19, limit: 4 };
    assert_eq!(world.submit(asks), Err(refused.into()));
}

#[test]
fn the_queue_is_bounded_in_requests_and_in_tokens_of_prompts() {
    let mut world =
        World::new(ContinuousConfig { max_queue_size: 2, max_queue_tokens: Some(20), ..config() });
    world.admit(request(0..12, 4));
    let full = Rejection::QueueCostFull { cost: 9, queued: 12, limit: 20 };
    assert_eq!(world.submit(request(0..9, 4)), Err(full.into()));
    world.admit(request(0..8, 4));
    assert_eq!(world.submit(request(0..1, 4)), Err(Rejection::QueueFull { limit: 2 }.into()));
    let never = Refusal::QueueTokens { prompt: 21, limit: 20 };
    assert!(never.to_string().contains("max_queue_tokens"));
    assert_eq!(world.submit(request(0..21, 4)), Err(never));
    world.step();
    assert!(world.submit(request(0..9, 4)).is_ok(), "those that run do not count");
}

#[test]
fn what_comes_together_is_refused_before_it_is_submitted() {
    let mut world =
        World::new(ContinuousConfig { max_queue_size: 3, max_queue_tokens: Some(20), ..config() });
    let early = |world: &mut World, requests, tokens| world.scheduler.refuse_early(requests, tokens, 1);
    assert_eq!(early(&mut world, 4, 4), Some(Refusal::QueueSize { prompts: 4, limit: 3 }));
    assert_eq!(early(&mut world, 2, 21), Some(Refusal::QueueTokens { prompt: 21, limit: 20 }));
    assert_eq!(world.scheduler.refuse_early(1, 4, 9), Some(Refusal::Sequences { asked: 9, limit: 8 }));
    assert_eq!(early(&mut world, 3, 20), None);
    world.admit(request(0..12, 4));
    assert_eq!(early(&mut world, 3, 3), Some(Rejection::QueueFull { limit: 3 }.into()));
    let full = Rejection::QueueCostFull { cost: 9, queued: 12, limit: 20 };
    assert_eq!(early(&mut world, 2, 9), Some(full.into()));
    let counters = world.scheduler.stats().counters;
    assert_eq!((counters.admitted, counters.refused.iter().sum::<u64>()), (1, 5));
    world.scheduler.drain();
    assert_eq!(early(&mut world, 4, 4), None, "a replacement may take them");
}

#[test]
fn what_the_gate_holds_back_is_refused_and_nothing_else() {
    let mut world = World::new(config());
    let open = Rejection::BreakerOpen { retry_after: Duration::from_secs(1) };
    let refused = world.scheduler.submit_past(world.now, request(0..4, 4), |_| Err(open.clone()));
    assert_eq!(refused, Err(open.into()));
    assert!(world.scheduler.remembers_nothing());
    let counters = world.scheduler.stats().counters;
    assert_eq!((counters.admitted, counters.cancelled, counters.refused.iter().sum::<u64>()), (0, 0, 1));
    let asked = |_| panic!("what is refused already is not asked about");
    assert_eq!(world.scheduler.submit_past(world.now, request([], 4), asked), Err(Refusal::EmptyPrompt));
}

#[test]
fn a_drain_refuses_the_new_and_ends_the_old() {
    let mut world = World::new(config());
    world.admit(request(0..12, 4));
    world.scheduler.drain();
    assert_eq!(world.submit(request(0..4, 4)), Err(Rejection::Draining.into()));
    world.run();
    assert_eq!(world.ended[0].end, End::Length);
}

#[test]
fn refusals_are_counted_by_reason() {
    let mut world = World::new(config());
    drop(world.submit(request([], 4)));
    drop(world.submit(request(0..250, 250)));
    let refused = world.scheduler.stats().counters.refused;
    let counted: Vec<_> = Refusal::REASONS.iter().zip(refused).filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [(&"empty_prompt", 1), (&"context_exceeded", 1)]);
    assert_eq!(Refusal::from(Rejection::Draining).reason(), "draining");
    assert_eq!(Refusal::NothingToGenerate.reason(), "nothing_to_generate");
}

#[test]
fn each_deadline_counts_for_its_own_part() {
    let mut world = World::new(ContinuousConfig { max_sequences: 2, max_step_tokens: 4, ..config() });
    let with = |own: u32, deadlines| Request { deadlines, ..request(own * 100..own * 100 + 8, 20) };
    let limit = Some(at(5));
    let running =
        world.admit(with(1, Deadlines { queue: limit, total: Some(at(9)), ..Deadlines::default() }));
    world.step();
    let slow = world.admit(Request {
        deadlines: Deadlines { first_token: limit, ..Deadlines::default() },
        ..request(200..230, 20)
    });
    let waiting = world.admit(with(3, Deadlines { queue: limit, ..Deadlines::default() }));
    assert_eq!(world.scheduler.expire(world.now), (Vec::new(), Some(at(5))));
    for _ in 0..4 {
        world.step();
    }
    world.expire().unwrap();
    let mut ends: Vec<_> = world.ended.iter().map(|ended| (ended.sequence, ended.end)).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(slow, End::ExpiredFirstToken), (waiting, End::ExpiredInQueue)]);
    assert_eq!(world.scheduler.expire(world.now), (Vec::new(), Some(at(9))));
    world.now = at(9);
    world.expire().unwrap();
    assert_eq!((world.ended[2].sequence, world.ended[2].end), (running, End::ExpiredTotal));
    assert!(world.scheduler.remembers_nothing());
}

#[test]
fn a_deadline_that_has_passed_is_refused() {
    let mut world = World::new(config());
    world.now = at(3);
    let deadlines = Deadlines { total: Some(at(3)), ..Deadlines::default() };
    let refused = world.submit(Request { deadlines, ..request(0..4, 4) });
    assert_eq!(refused, Err(Rejection::DeadlinePassed.into()));
}

#[test]
fn a_first_token_that_cannot_be_in_time_is_refused_once_steps_are_known() {
    let mut world = World::new(ContinuousConfig { max_sequences: 1, ..config() });
    let soon = |world: &World| Deadlines {
        first_token: Some(world.now + Duration::from_millis(10)),
        ..Deadlines::default()
    };
    for own in 0..20 {
        world.admit(request(own * 100..own * 100 + 8, 20));
    }
    let deadlines = soon(&world);
    assert!(world.submit(Request { deadlines, ..request(0..4, 4) }).is_ok(), "nothing is known");
    (0..30).for_each(|_| drop(world.step()));
    let deadlines = soon(&world);
    let refused = world.submit(Request { deadlines, ..request(0..4, 4) });
    assert!(matches!(refused, Err(Refusal::Rejected(Rejection::DeadlineUnmeetable { .. }))), "{refused:?}");
}
