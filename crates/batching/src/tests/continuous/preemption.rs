//! What happens when blocks run out: the least urgent, and of those who loses least, is computed again later.

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, Request};
use crate::entry::Priority;

/// Six blocks of four tokens.
fn tight() -> ContinuousConfig {
    ContinuousConfig { blocks: 6, prefix_caching: false, ..config() }
}

/// A prompt of its own, of so many tokens.
fn own(number: u32, prompt: u32, max_tokens: u32) -> Request {
    request(number * 100..number * 100 + prompt, max_tokens)
}

#[test]
fn the_one_with_less_work_gives_way_and_feeds_all_it_had_again() {
    let mut world = World::new(tight());
    let long = world.admit(own(1, 11, 12));
    let short = world.admit(own(2, 8, 4));
    let plan = std::iter::repeat_with(|| world.step()).take(9).find(|plan| !plan.preempted.is_empty());
    let plan = plan.expect("blocks ran out");
    assert_eq!(plan.preempted, [short]);
    assert!(plan.work.iter().all(|work| work.sequence == long));
    let back = std::iter::repeat_with(|| world.step()).take(20);
    let mut back = back.filter_map(|plan| plan.work.into_iter().find(|work| work.sequence == short));
    let again = back.next().expect("it comes back");
    assert_eq!(again.start, 0);
    assert!(again.tokens.len() > 8, "prompt and generated tokens");
    drop(back);
    world.run();
    assert_eq!(world.ended.len(), 2);
}

#[test]
fn the_less_urgent_gives_way_whatever_it_loses() {
    let mut world = World::new(tight());
    let low = world.admit(Request { priority: Priority::Low, ..own(1, 11, 8) });
    world.step();
    let high = world.admit(Request { priority: Priority::High, ..own(2, 7, 12) });
    let mut preempted = Vec::new();
    while world.scheduler.has_work() {
        preempted.extend(world.step().preempted);
    }
    assert_eq!(preempted, [low]);
    assert_eq!(world.ended[0].sequence, high);
}

#[test]
fn with_the_cache_a_preempted_sequence_finds_what_nobody_needed() {
    let mut world = World::new(ContinuousConfig { prefix_caching: true, max_sequences: 1, ..tight() });
    let low = world.admit(Request { priority: Priority::Low, ..own(1, 9, 9) });
    world.step();
    world.admit(Request { priority: Priority::High, ..own(2, 4, 1) });
    world.step();
    let plan = world.step();
    assert_eq!((plan.work[0].sequence, plan.work[0].start, plan.work[0].tokens.len()), (low, 8, 2));
    assert_eq!(world.scheduler.stats().counters.cached_prompt_tokens, 0, "they were its own");
}

#[test]
fn without_preemption_each_is_let_in_only_with_all_it_may_need() {
    let mut world = World::new(ContinuousConfig { preemption: false, ..tight() });
    // 11 + 10 - 1 tokens: five blocks; then 4 + 5 - 1: two.
    world.admit(own(1, 11, 10));
    world.admit(own(2, 4, 5));
    assert_eq!(world.step().work.len(), 1);
    world.run();
    assert_eq!(world.preemptions, 0);
}

#[test]
fn room_is_kept_for_what_those_that_run_are_expected_to_say() {
    // All of their allowance, as the first that ends shows.
    let mut world = World::new(ContinuousConfig { blocks: 40, ..tight() });
    for number in 0..60 {
        world.admit(own(number, 4, 29));
    }
    world.run();
    assert_eq!(world.ended.len(), 60);
    assert!(world.preemptions < 30, "{} preemptions of 60", world.preemptions);
}

#[test]
fn a_cancelled_sequence_makes_room_for_the_preempted() {
    let mut world = World::new(tight());
    let long = world.admit(own(1, 11, 12));
    let short = world.admit(own(2, 8, 4));
    while world.step().preempted.is_empty() {}
    let request = world.live[&long].request;
    world.cancel(request);
    assert_eq!(world.step().work[0].sequence, short);
    world.run();
}

#[test]
fn a_preempted_sequence_can_be_cancelled() {
    let mut world = World::new(tight());
    world.admit(own(1, 11, 12));
    let short = world.admit(own(2, 8, 4));
    while world.step().preempted.is_empty() {}
    assert_eq!(world.scheduler.stats().sequences_preempted, 1);
    let request = world.live[&short].request;
    assert!(world.cancel(request));
    assert_eq!(world.scheduler.stats().sequences_preempted, 0);
    world.run();
}
