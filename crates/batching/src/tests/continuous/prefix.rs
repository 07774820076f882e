//! Sequences that begin alike: what one has computed the others share.

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, Request};

/// The first work of the next step: where it starts and what it feeds.
fn first(world: &mut World) -> (u32, usize) {
    let plan = world.step();
    (plan.work[0].start, plan.work[0].tokens.len())
}

#[test]
fn full_blocks_of_the_same_beginning_are_not_fed_again() {
    let mut world = World::new(config());
    world.admit(request(0..10, 1));
    world.run();
    world.admit(request((0..9).chain([50, 51]), 1));
    assert_eq!(first(&mut world), (8, 3));
    assert_eq!(world.ended[1].cached_tokens, 8);
    assert_eq!(world.scheduler.stats().counters.cached_prompt_tokens, 8);
}

#[test]
fn what_was_generated_is_shared_too() {
    let mut world = World::new(config());
    world.admit(request(0..4, 6));
    world.run();
    // The answer, and what the caller says next: of the answer all but the last token was fed.
    world.admit(request((0..4).chain([7; 6]).chain([80, 81]), 1));
    assert_eq!(first(&mut world), (8, 4));
}

#[test]
fn of_a_prompt_that_is_there_completely_one_token_is_fed_to_a_copy() {
    let mut world = World::new(config());
    world.admit(request(0..8, 1));
    world.run();
    world.admit(request(0..8, 1));
    let plan = world.step();
    assert_eq!((plan.work[0].start, plan.work[0].tokens.len()), (7, 1));
    assert_eq!(plan.copies.len(), 1);
    assert_eq!(plan.copies[0].1, plan.work[0].blocks[1]);
    assert_eq!(world.scheduler.stats().counters.cached_prompt_tokens, 7);
    assert_eq!(world.scheduler.stats().blocks.cached, 2, "the copy turned out to be what is there");
}

#[test]
fn salts_keep_tenants_apart() {
    let mut world = World::new(config());
    let of = |salt| Request { salt, ..request(0..9, 1) };
    world.admit(of(Some(1)));
    world.run();
    for (salt, start) in [(None, 0), (Some(2), 0), (Some(1), 8)] {
        world.admit(of(salt));
        assert_eq!(first(&mut world).0, start, "salt {salt:?}");
    }
}

#[test]
fn without_caching_everything_is_fed() {
    let mut world = World::new(ContinuousConfig { prefix_caching: false, ..config() });
    for _ in 0..2 {
        world.admit(request(0..9, 1));
        assert_eq!(first(&mut world), (0, 9));
    }
}

#[test]
fn those_that_come_together_wait_for_the_one_that_feeds_their_common_beginning() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 64, ..config() });
    let leader = world.admit(request((0..16).chain([100]), 2));
    world.admit(request((0..16).chain([101]), 2));
    world.admit(request((0..16).chain([102]), 2));
    let other = world.admit(request(200..210, 2));
    let plan = world.step();
    let fed: Vec<_> = plan.work.iter().map(|work| (work.sequence, work.tokens.len())).collect();
    assert_eq!(fed, [(leader, 17), (other, 10)], "who begins otherwise does not wait");
    let plan = world.step();
    let fed: Vec<_> = plan.work.iter().map(|work| (work.start, work.tokens.len())).collect();
    assert_eq!(fed, [(17, 1), (10, 1), (16, 1), (16, 1)]);
}

#[test]
fn who_waits_for_a_beginning_goes_on_alone_when_its_leader_leaves() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 10, ..config() });
    let leader = world.admit(request((0..16).chain([100]), 2));
    let second = world.admit(request((0..16).chain([101]), 2));
    world.step();
    let request = world.live[&leader].request;
    world.cancel(request);
    let plan = world.step();
    assert_eq!((plan.work[0].sequence, plan.work[0].start), (second, 8), "with what was fed by then");
}

#[test]
fn the_oldest_unused_is_forgotten_first_and_from_its_end() {
    let mut world = World::new(ContinuousConfig { blocks: 6, ..config() });
    world.admit(request(0..12, 1));
    world.run();
    world.admit(request(100..116, 1));
    world.run();
    assert_eq!(world.scheduler.stats().counters.evictions, 1);
    world.admit(request(0..12, 1));
    assert_eq!(first(&mut world), (8, 4), "only the end of the first is gone");
}
