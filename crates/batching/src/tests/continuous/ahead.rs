//! Planning while a step runs: the same as planning after it, but for what the step's end brings.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::world::{Known, World, config, request};
use crate::continuous::{ContinuousConfig, Request, SequenceId, StepPlan};
use crate::entry::Priority;

/// Begins a step, plans the one after it, and lets it end: nobody stops.
fn begin(world: &mut World) {
    world.schedule().unwrap();
    assert!(world.plan.is_some());
    world.scheduler.plan_ahead(world.now);
    world.check_blocks().unwrap();
}

fn end(world: &mut World) {
    world.commit(Duration::from_millis(1), |_, _| Some((7, false))).unwrap();
}

/// Who feeds how much in the next step.
fn fed(world: &mut World) -> Vec<(SequenceId, usize)> {
    world.schedule().unwrap();
    who(world.plan.as_ref().unwrap())
}

fn who(plan: &StepPlan) -> Vec<(SequenceId, usize)> {
    plan.work.iter().map(|work| (work.sequence, work.tokens.len())).collect()
}

#[test]
fn with_no_step_that_runs_there_is_nothing_to_plan_ahead_of() {
    let mut world = World::new(config());
    world.admit(request(0..9, 5));
    assert_eq!(world.scheduler.plan_ahead(world.now), 0);
    world.schedule().unwrap();
    assert_eq!(world.scheduler.plan_ahead(world.now), 1);
    assert_eq!(world.scheduler.plan_ahead(world.now), 0, "it is planned");
}

#[test]
fn a_token_that_is_being_drawn_is_fed_once_it_is_known() {
    let mut world = World::new(config());
    let only = world.admit(request(0..9, 5));
    begin(&mut world);
    end(&mut world);
    assert_eq!(fed(&mut world), [(only, 1)]);
    assert_eq!(world.plan.as_ref().unwrap().work[0].tokens, [7]);
}

#[test]
fn one_that_comes_to_its_length_is_not_planned() {
    let mut world = World::new(config());
    world.admit(request(0..9, 1));
    world.schedule().unwrap();
    assert_eq!(world.scheduler.plan_ahead(world.now), 0);
}

#[test]
fn one_that_stops_or_leaves_is_not_in_the_next_step_and_its_blocks_are_free() {
    let mut world = World::new(config());
    let stops = world.admit(request(0..4, 9));
    let leaves = world.admit(request(10..14, 9));
    let stays = world.admit(request(20..24, 9));
    begin(&mut world);
    let request = world.live[&leaves].request;
    assert!(world.cancel(request));
    world.commit(Duration::from_millis(1), |id, _| Some((7, id == stops))).unwrap();
    assert_eq!(fed(&mut world), [(stays, 1)]);
    assert_eq!(world.scheduler.pool().counts().used, 2);
}

#[test]
fn what_comes_after_and_is_more_urgent_goes_before_prompts_that_were_planned() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 8, ..config() });
    let first = world.admit(request(0..20, 5));
    begin(&mut world);
    let urgent = world.admit(Request { priority: Priority::Critical, ..request(100..108, 5) });
    end(&mut world);
    assert_eq!(fed(&mut world), [(urgent, 8)]);
    end(&mut world);
    assert_eq!(fed(&mut world), [(urgent, 1), (first, 7)]);
}

#[test]
fn what_comes_after_gets_what_the_planned_leave() {
    let mut world = World::new(config());
    let first = world.admit(request(0..8, 5));
    begin(&mut world);
    let second = world.admit(request(100..108, 5));
    end(&mut world);
    assert_eq!(fed(&mut world), [(first, 1), (second, 8)]);
}

#[test]
fn sequences_that_begin_alike_wait_for_what_steps_that_run_compute() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 8, ..config() });
    let first = world.admit(request(0..16, 5));
    let second = world.admit(request((0..16).chain([99]), 5));
    for step in [vec![(first, 8)], vec![(first, 8)], vec![(first, 1), (second, 1)]] {
        assert_eq!(fed(&mut world), step);
        world.scheduler.plan_ahead(world.now);
        end(&mut world);
    }
}

#[test]
fn what_waits_while_a_prompt_is_computed_is_told_how_long_that_takes() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 64, ..config() });
    for own in 0..20 {
        world.admit(request(own * 100..own * 100 + 40, 2));
        world.run();
    }
    world.admit(request(5_000..5_060, 2));
    let waiting = world.scheduler.predicted_drain().unwrap();
    world.schedule().unwrap();
    let running = world.scheduler.predicted_drain().unwrap();
    assert!(
        running.abs_diff(waiting) < waiting / 20,
        "{waiting:?} while it waits, {running:?} while it runs"
    );
}

#[test]
fn the_others_of_a_request_begin_with_copies_of_their_own() {
    let mut world = World::new(config());
    world.admit(Request { sequences: 3, ..request(0..6, 5) });
    begin(&mut world);
    end(&mut world);
    assert_eq!(fed(&mut world).len(), 3);
    assert_eq!(world.plan.as_ref().unwrap().copies.len(), 2);
}

/// What sequences draw: the same whoever is beside them.
fn draw(id: SequenceId, known: &Known) -> (u32, bool) {
    let mixed = (id.0 << 20 ^ known.tokens.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (mixed as u32 % 2, mixed.is_multiple_of(11))
}

/// Prompts that come before a step each: how many tokens that all have in common and how many of its own, how many
/// sequences, and how urgent.
fn crowd() -> impl Strategy<Value = Vec<(u32, u32, u32, usize)>> {
    prop::collection::vec(
        (0_u32..9, 1_u32..12, prop_oneof![4 => Just(1_u32), 1 => 2_u32..4], 0_usize..4),
        1..20,
    )
}

/// Who feeds how much in each step, and who gives way before it.
type Story = Vec<(BTreeMap<SequenceId, usize>, Vec<SequenceId>)>;

fn story(
    config: ContinuousConfig,
    crowd: &[(u32, u32, u32, usize)],
    ahead: bool,
) -> Result<Story, TestCaseError> {
    let mut world = World::new(config);
    let mut crowd = (0..).step_by(100).zip(crowd);
    let mut story = Vec::new();
    loop {
        if ahead {
            world.scheduler.plan_ahead(world.now);
        }
        // While the step runs.
        let next = crowd.next();
        if let Some((number, &(common, own, sequences, priority))) = next {
            let prompt = (0..common).chain(1_000 + number..1_000 + number + own);
            let priority = Priority::DESCENDING[priority];
            // The smallest pools cannot hold all.
            drop(world.submit(Request { priority, sequences, ..request(prompt, 12) }));
        }
        world.commit(Duration::from_millis(1), |id, known| Some(draw(id, known)))?;
        world.schedule()?;
        // Those who decode may be in another order.
        let by_name = |plan: &StepPlan| BTreeMap::from_iter(who(plan));
        story.extend(world.plan.as_ref().map(|plan| (by_name(plan), plan.preempted.clone())));
        if next.is_none() && world.plan.is_none() {
            prop_assert!(world.scheduler.remembers_nothing());
            return Ok(story);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn it_changes_nothing_of_what_is_run_and_of_who_gives_way(
        crowd in crowd(), blocks in 6_u32..40, max_step_tokens in 2_u32..40, max_sequences in 1_u32..8,
        prefill_chunk in prop::option::of(1_u32..10), preemption in any::<bool>(),
    ) {
        // With a cache, blocks that are taken early may be others than those taken late.
        let config = ContinuousConfig {
            blocks, max_step_tokens, max_sequences, prefill_chunk, preemption, prefix_caching: false, ..config()
        };
        prop_assert_eq!(story(config.clone(), &crowd, true)?, story(config, &crowd, false)?);
    }

    #[test]
    fn with_room_for_all_it_shares_the_same(crowd in crowd(), max_step_tokens in 2_u32..40) {
        // Without preemption: a block taken early may make another the one that gives way.
        let config = ContinuousConfig { blocks: 2_000, max_step_tokens, preemption: false, ..config() };
        prop_assert_eq!(story(config.clone(), &crowd, true)?, story(config, &crowd, false)?);
    }
}
