//! Steps: what they feed, in which order, and what ends with them.

use std::time::Duration;

use super::world::{World, config, request};
use crate::continuous::{BlockId, ContinuousConfig, End, StepId, StepOutcome};

#[test]
fn a_prompt_that_fits_is_fed_whole_and_its_first_token_drawn() {
    let mut world = World::new(config());
    let id = world.admit(request(0..6, 3));
    let plan = world.step();
    let [work] = &plan.work[..] else { panic!("one work") };
    assert_eq!((work.sequence, work.start, work.samples), (id, 0, true));
    assert_eq!(work.tokens, [0, 1, 2, 3, 4, 5]);
    assert_eq!(work.blocks, [BlockId(0), BlockId(1)]);
    assert_eq!(plan.copies, []);
}

#[test]
fn what_was_drawn_is_fed_next_until_max_tokens_which_is_never_fed() {
    let mut world = World::new(config());
    world.admit(request(0..6, 3));
    let fed: Vec<_> = (0..3).map(|_| world.step().work[0].tokens.clone()).collect();
    assert_eq!(fed, [vec![0, 1, 2, 3, 4, 5], vec![7], vec![7]]);
    assert_eq!(world.ended[0].end, End::Length);
    assert_eq!(world.run(), 0);
}

#[test]
fn a_prompt_above_the_budget_is_fed_in_chunks_and_only_the_last_draws() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 8, ..config() });
    world.admit(request(0..20, 2));
    let chunks: Vec<_> = (0..3)
        .map(|_| {
            let work = world.step().work.remove(0);
            (work.start, work.tokens.len(), work.samples)
        })
        .collect();
    assert_eq!(chunks, [(0, 8, false), (8, 8, false), (16, 4, true)]);
}

#[test]
fn decodes_come_first_and_prompts_take_what_is_left_of_the_budget() {
    let mut world = World::new(ContinuousConfig { max_step_tokens: 8, max_sequences: 4, ..config() });
    let first = world.admit(request(0..4, 9));
    world.step();
    let second = world.admit(request(100..120, 9));
    let plan = world.step();
    let fed: Vec<_> = plan.work.iter().map(|work| (work.sequence, work.tokens.len())).collect();
    assert_eq!(fed, [(first, 1), (second, 7)]);
}

#[test]
fn prefill_chunk_bounds_prompts_only_beside_decodes() {
    let mut world = World::new(ContinuousConfig { prefill_chunk: Some(5), ..config() });
    world.admit(request(0..12, 9));
    assert_eq!(world.step().work[0].tokens.len(), 12, "nobody decodes");
    world.admit(request(100..112, 9));
    assert_eq!(world.step().work[1].tokens.len(), 5);
}

#[test]
fn a_sequence_that_stops_frees_its_place_and_its_blocks() {
    let mut world = World::new(config());
    let id = world.admit(request(0..6, 30));
    world.schedule().unwrap();
    world.commit(Duration::from_millis(1), |_, _| Some((9, true))).unwrap();
    assert_eq!((world.ended[0].sequence, world.ended[0].end, world.ended[0].last), (id, End::Stopped, true));
    assert!(world.scheduler.remembers_nothing());
}

#[test]
fn a_sequence_that_fails_alone_leaves_the_others_unharmed_and_nothing_to_share() {
    let mut world = World::new(config());
    let broken = world.admit(request(0..8, 5));
    world.admit(request(50..58, 5));
    world.schedule().unwrap();
    world.commit(Duration::from_millis(1), |id, _| (id != broken).then_some((7, false))).unwrap();
    assert_eq!((world.ended[0].sequence, world.ended[0].end), (broken, End::Failed));
    world.run();
    assert_eq!(world.ended[1].end, End::Length);

    world.admit(request(0..8, 5));
    assert_eq!(world.step().work[0].start, 0, "a broken sequence's keys are not handed on");
}

#[test]
fn a_sequence_that_the_engine_says_nothing_of_failed() {
    let mut world = World::new(config());
    world.admit(request(0..8, 5));
    let plan = world.scheduler.schedule(world.now).plan.unwrap();
    let busy = Duration::from_millis(1);
    let outcome = StepOutcome { id: plan.id, busy, tokens: Vec::new(), failed: Vec::new() };
    let ended = world.scheduler.commit(world.now, outcome);
    assert_eq!(ended[0].end, End::Failed);
    assert!(world.scheduler.remembers_nothing());
}

#[test]
fn nothing_is_planned_while_a_step_runs_and_only_its_own_outcome_ends_it() {
    let mut world = World::new(config());
    world.admit(request(0..8, 5));
    let plan = world.scheduler.schedule(world.now).plan.unwrap();
    assert_eq!(world.scheduler.schedule(world.now).plan, None);
    let outcome = |id| StepOutcome {
        id,
        busy: Duration::from_millis(1),
        tokens: vec![(plan.work[0].sequence, 7, false)],
        failed: Vec::new(),
    };
    world.scheduler.commit(world.now, outcome(StepId(99)));
    assert!(world.scheduler.steps(), "another step's outcome");
    world.scheduler.commit(world.now, outcome(plan.id));
    assert!(!world.scheduler.steps());
    assert_eq!(world.scheduler.schedule(world.now).plan.unwrap().work[0].tokens, [7]);
}

#[test]
fn a_caller_that_leaves_frees_its_blocks_at_once_also_while_it_runs() {
    let mut world = World::new(config());
    let id = world.admit(request(0..8, 5));
    world.schedule().unwrap();
    let request = world.live[&id].request;
    assert!(world.cancel(request));
    assert!(!world.cancel(request), "it is gone");
    assert!(world.scheduler.remembers_nothing());
    world.commit(Duration::from_millis(1), |_, _| Some((7, false))).unwrap();
    assert_eq!(world.ended, [], "its caller is told nothing");
    assert_eq!(world.scheduler.stats().counters.cancelled, 1);
}

#[test]
fn one_sequence_can_be_stopped_once_it_has_drawn() {
    let mut world = World::new(config());
    let id = world.admit(request(0..8, 5));
    assert_eq!(world.scheduler.stop_sequence(world.now, id), None);
    world.step();
    let ended = world.scheduler.stop_sequence(world.now, id).unwrap();
    assert_eq!((ended.sequence, ended.end, ended.last), (id, End::Stopped, true));
    assert_eq!(world.scheduler.stop_sequence(world.now, id), None);
    assert!(world.scheduler.remembers_nothing());
    let stats = world.scheduler.stats();
    assert_eq!((stats.counters.ended[End::Stopped as usize], stats.counters.cancelled), (1, 0));
    // One of five: half as much as was believed, and learned from like any other end.
    assert!(stats.output_share < 0.5, "{}", stats.output_share);
}

#[test]
fn figures_count_what_happened() {
    let mut world = World::new(ContinuousConfig { max_sequences: 1, ..config() });
    world.admit(request(0..8, 2));
    world.admit(request(100..105, 2));
    world.step();
    let stats = world.scheduler.stats();
    assert_eq!((stats.sequences_running, stats.sequences_waiting), (1, 1));
    assert_eq!((stats.queued_requests, stats.queued_prompt_tokens), (1, 5));
    assert_eq!((stats.blocks.used, stats.blocks.cached, stats.blocks.free), (2, 0, 62));
    world.run();
    let stats = world.scheduler.stats();
    let counters = stats.counters;
    assert_eq!((counters.admitted, counters.ended[End::Length as usize]), (2, 2));
    assert_eq!((counters.prompt_tokens, counters.generated_tokens, counters.fed_tokens), (13, 4, 15));
    assert_eq!((counters.steps, counters.busy_nanos), (4, 4_000_000));
    assert_eq!((stats.blocks.used, stats.blocks.cached), (0, 3));
}
