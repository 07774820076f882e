//! Planning while a step runs: the same as planning after it, but for what the step's end brings.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::world::{Checked, World, config, request};
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
fn sequences_that_begin_alike_wait_for_what_the_step_that_runs_computes() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 12, ..config() });
    let first = world.admit(request(0..12, 5));
    let second = world.admit(request((0..12).chain([99]), 5));
    begin(&mut world);
    end(&mut world);
    assert_eq!(fed(&mut world), [(first, 1), (second, 1)], "all but the last is shared");
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

/// Prompts of so many tokens, of a priority each.
fn crowd() -> impl Strategy<Value = Vec<(u32, usize)>> {
    prop::collection::vec((1_u32..30, 0_usize..4), 1..7)
}

/// Who feeds how much in each step, until the first sequence is at its end.
fn steps(
    config: ContinuousConfig,
    crowd: &[(u32, usize)],
    ahead: bool,
) -> Result<Vec<Vec<(SequenceId, usize)>>, TestCaseError> {
    let mut world = World::new(config);
    for (own, &(tokens, priority)) in (0..).step_by(100).zip(crowd) {
        let priority = Priority::DESCENDING[priority];
        world.admit(Request { priority, ..request(own..own + tokens, 12) });
    }
    let mut steps = Vec::new();
    while world.ended.is_empty() {
        world.schedule()?;
        steps.extend(world.plan.as_ref().map(who));
        if ahead {
            world.scheduler.plan_ahead(world.now);
        }
        world.commit(Duration::from_millis(1), |_, _| Some((7, false)))?;
    }
    Ok(steps)
}

fn same(config: ContinuousConfig, crowd: &[(u32, usize)]) -> Checked {
    prop_assert_eq!(steps(config.clone(), crowd, true)?, steps(config, crowd, false)?);
    Ok(())
}

proptest! {
    #[test]
    fn as_long_as_nobody_comes_or_ends_it_changes_nothing(
        crowd in crowd(), max_step_tokens in 2_u32..40, max_sequences in 1_u32..8,
        chunk in prop::option::of(1_u32..10),
    ) {
        let config = ContinuousConfig { max_step_tokens, max_sequences, prefill_chunk: chunk, ..config() };
        same(config, &crowd)?;
    }
}
