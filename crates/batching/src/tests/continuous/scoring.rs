//! Prompts whose tokens are scored: the logits of each are computed, whatever others have computed before.

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, Request, StepPlan};
use crate::entry::Priority;

fn scored(prompt: impl IntoIterator<Item = u32>, max_tokens: u32) -> Request {
    Request { scores_prompt: true, ..request(prompt, max_tokens) }
}

/// What each work of the plan feeds: from where, how much, and whether it scores that and samples.
fn works(plan: &StepPlan) -> Vec<(u32, usize, bool, bool)> {
    let works = plan.work.iter();
    works.map(|work| (work.start, work.tokens.len(), work.scores, work.samples)).collect()
}

#[test]
fn a_scored_prompt_shares_nothing_that_was_computed_before() {
    let mut world = World::new(config());
    world.admit(request(0..10, 1));
    world.run();
    world.admit(scored(0..10, 2));
    assert_eq!(works(&world.step()), [(0, 10, true, true)]);
    assert_eq!(works(&world.step()), [(10, 1, false, true)], "generated tokens are not scored");
    world.run();
    assert_eq!(world.ended[1].cached_tokens, 0);
}

#[test]
fn others_share_what_a_scored_prompt_computed() {
    let mut world = World::new(config());
    world.admit(scored(0..10, 1));
    world.run();
    world.admit(request(0..10, 1));
    assert_eq!(works(&world.step()), [(8, 2, false, true)]);
}

#[test]
fn a_scored_prompt_does_not_wait_for_another_that_begins_alike() {
    let mut world = World::new(config());
    world.admit(request(0..10, 1));
    world.admit(scored(0..10, 1));
    assert_eq!(works(&world.step()), [(0, 10, false, true), (0, 10, true, true)]);
}

#[test]
fn every_chunk_of_a_scored_prompt_is_scored() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 4, ..config() });
    world.admit(scored(0..9, 1));
    assert_eq!(works(&world.step()), [(0, 4, true, false)]);
    assert_eq!(works(&world.step()), [(4, 4, true, false)]);
    assert_eq!(works(&world.step()), [(8, 1, true, true)]);
}

#[test]
fn a_step_scores_a_bounded_number_of_tokens_and_feeds_others_beside_them() {
    let large = ContinuousConfig { max_step_tokens: 2_000, max_context: 2_000, blocks: 1_000, ..config() };
    let mut world = World::new(large);
    world.admit(scored(0..300, 1));
    world.admit(scored(1_000..1_020, 1));
    world.admit(request(2_000..2_500, 1));
    assert_eq!(works(&world.step()), [(0, 256, true, false), (0, 500, false, true)]);
    assert_eq!(works(&world.step()), [(256, 44, true, true), (0, 20, true, true)]);
}

#[test]
fn forks_begin_where_the_scored_prompt_ends_and_score_nothing() {
    let mut world = World::new(config());
    world.admit(Request { sequences: 2, ..scored(0..6, 2) });
    let plan = world.step();
    assert_eq!(works(&plan), [(0, 6, true, true)]);
    assert_eq!(plan.work[0].forks.len(), 1);
    assert_eq!(works(&world.step()), [(6, 1, false, true), (6, 1, false, true)]);
}

#[test]
fn what_was_scored_before_a_preemption_is_shared_and_not_scored_again() {
    let mut world = World::new(ContinuousConfig { blocks: 5, max_step_tokens: 8, ..config() });
    let low = world.admit(Request { priority: Priority::Low, ..scored(0..14, 2) });
    assert_eq!(works(&world.step()), [(0, 8, true, false)]);
    world.admit(Request { priority: Priority::High, ..request(100..107, 1) });
    let plan = world.step();
    assert_eq!((plan.preempted.as_slice(), works(&plan)), ([low].as_slice(), vec![(0, 7, false, true)]));
    assert_eq!(works(&world.step()), [(8, 6, true, true)]);
    assert_eq!(works(&world.step()), [(14, 1, false, true)]);
}
