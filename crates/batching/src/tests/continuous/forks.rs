//! Several sequences of one prompt: they begin with the same logits and share what they do not write.

use std::time::Duration;

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, End, Request, SequenceId};

fn asks(sequences: u32, prompt: u32, max_tokens: u32) -> Request {
    Request { sequences, ..request(0..prompt, max_tokens) }
}

/// Draws a token of its own for each.
fn step_apart(world: &mut World) {
    world.schedule().unwrap();
    world.commit(Duration::from_millis(1), |id, _| Some((id.0 as u32, false))).unwrap();
}

#[test]
fn the_prompt_is_fed_once_and_all_begin_where_it_ends() {
    let mut world = World::new(config());
    let admitted = world.submit(asks(3, 6, 2)).unwrap();
    let ids: Vec<_> = admitted.sequences().collect();
    assert_eq!(ids, [SequenceId(0), SequenceId(1), SequenceId(2)]);
    let plan = world.step();
    assert_eq!((plan.work.len(), &plan.work[0].forks[..]), (1, &ids[1..]));
    assert_eq!(world.step().work.len(), 3);
    let lasts: Vec<_> = world.ended.iter().map(|ended| ended.last).collect();
    assert_eq!(lasts, [false, false, true]);
}

#[test]
fn all_but_the_last_to_write_copy_the_shared_last_block() {
    let mut world = World::new(config());
    world.submit(asks(3, 6, 4)).unwrap();
    step_apart(&mut world);
    world.schedule().unwrap();
    let plan = world.plan.clone().unwrap();
    assert_eq!(plan.copies.len(), 2);
    assert_eq!(plan.copies[0].0, plan.copies[1].0);
    let firsts: Vec<_> = plan.work.iter().map(|work| work.blocks[0]).collect();
    assert!(firsts.iter().all(|&block| block == firsts[0]), "the full block is shared");
    assert_eq!(world.scheduler.stats().blocks.used, 4);
    assert_eq!(world.scheduler.stats().counters.copies, 2);
}

#[test]
fn a_prompt_of_full_blocks_needs_no_copy() {
    let mut world = World::new(config());
    world.submit(asks(3, 8, 4)).unwrap();
    step_apart(&mut world);
    assert_eq!(world.step().copies, []);
    assert_eq!(world.scheduler.stats().blocks.used, 2 + 3);
}

#[test]
fn one_that_fails_or_stops_with_its_first_token_leaves_its_siblings() {
    let mut world = World::new(config());
    world.submit(asks(3, 6, 3)).unwrap();
    world.schedule().unwrap();
    world
        .commit(Duration::from_millis(1), |id, _| match id.0 {
            0 => None,
            1 => Some((9, true)),
            _ => Some((9, false)),
        })
        .unwrap();
    let mut ends: Vec<_> = world.ended.iter().map(|ended| (ended.sequence.0, ended.end)).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(0, End::Failed), (1, End::Stopped)]);
    world.run();
    assert_eq!((world.ended[2].end, world.ended[2].last), (End::Length, true));
}

#[test]
fn places_are_kept_for_those_to_begin() {
    let mut world = World::new(ContinuousConfig { max_sequences: 4, max_step_tokens: 8, ..config() });
    world.submit(asks(3, 20, 4)).unwrap();
    let second = world.submit(Request { sequences: 2, ..request(100..102, 4) }).unwrap();
    assert_eq!(world.step().work.len(), 1);
    assert_eq!(world.step().work.len(), 1);
    let plan = world.step();
    assert!(plan.work.iter().all(|work| work.sequence.0 < 3), "three have places, and two do not fit beside");
    assert_eq!(world.scheduler.stats().sequences_waiting, 2);
    world.run();
    assert_eq!(world.ended.iter().filter(|ended| ended.request == second.request).count(), 2);
}

#[test]
fn a_caller_that_leaves_takes_all_of_its_sequences_along() {
    let mut world = World::new(config());
    let admitted = world.submit(asks(4, 6, 9)).unwrap();
    step_apart(&mut world);
    step_apart(&mut world);
    world.cancel(admitted.request);
    assert!(world.scheduler.remembers_nothing());
    assert_eq!(world.scheduler.stats().counters.cancelled, 4);
}

#[test]
fn where_all_fail_with_their_first_token_the_prompt_is_not_handed_on() {
    let mut world = World::new(config());
    world.submit(asks(2, 9, 3)).unwrap();
    world.schedule().unwrap();
    world.commit(Duration::from_millis(1), |_, _| None).unwrap();
    assert!(world.scheduler.remembers_nothing());
    world.submit(asks(1, 9, 3)).unwrap();
    assert_eq!(world.step().work[0].start, 0);
}
