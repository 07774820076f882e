//! Who is first: priority, clients' turns, arrival; and nobody starves.

use std::time::Duration;

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, End, Request, SequenceId};
use crate::entry::{ClientId, Priority};

/// A place for one, and a prompt of its own for each.
fn narrow() -> World {
    World::new(ContinuousConfig { max_sequences: 1, preemption: false, ..config() })
}

fn of(priority: Priority, client: u64, own: u32) -> Request {
    Request { priority, client: ClientId(client), ..request(own * 100..own * 100 + 3, 1) }
}

/// The order in which sequences end.
fn ends(world: &World) -> Vec<SequenceId> {
    world.ended.iter().map(|ended| ended.sequence).collect()
}

#[test]
fn the_more_urgent_goes_first_then_who_came_first() {
    let mut world = narrow();
    let normal = world.admit(of(Priority::Normal, 0, 1));
    let low = world.admit(of(Priority::Low, 0, 2));
    let high = [3, 4].map(|own| world.admit(of(Priority::High, 0, own)));
    world.run();
    assert_eq!(ends(&world), [high[0], high[1], normal, low]);
}

#[test]
fn without_priorities_all_are_normal() {
    let config = ContinuousConfig { priorities: false, max_sequences: 1, ..config() };
    let mut world = World::new(config);
    let low = world.admit(of(Priority::Low, 0, 1));
    let high = world.admit(of(Priority::High, 0, 2));
    world.run();
    assert_eq!(ends(&world), [low, high]);
}

#[test]
fn clients_take_turns() {
    let mut world = narrow();
    let greedy = [1, 2, 3].map(|own| world.admit(of(Priority::Normal, 1, own)));
    let modest = world.admit(of(Priority::Normal, 2, 4));
    world.run();
    assert_eq!(ends(&world), [greedy[0], modest, greedy[1], greedy[2]]);
}

#[test]
fn a_more_urgent_one_takes_the_place_of_a_less_urgent_one() {
    let mut world = World::new(ContinuousConfig { max_sequences: 1, ..config() });
    let low = world.admit(Request { max_tokens: 9, ..of(Priority::Low, 0, 1) });
    world.step();
    world.step();
    let high = world.admit(of(Priority::High, 0, 2));
    let plan = world.step();
    assert_eq!((plan.preempted, plan.work[0].sequence), (vec![low], high));
    let plan = world.step();
    assert_eq!(
        (plan.work[0].sequence, plan.work[0].tokens.len()),
        (low, 5 - 4),
        "the full block was found again"
    );
    world.run();
    assert_eq!(ends(&world), [high, low]);
}

#[test]
fn an_equal_one_waits_for_its_place() {
    let mut world = World::new(ContinuousConfig { max_sequences: 1, ..config() });
    let first = world.admit(Request { max_tokens: 3, ..of(Priority::High, 0, 1) });
    world.step();
    let second = world.admit(of(Priority::High, 0, 2));
    world.run();
    assert_eq!((ends(&world), world.preemptions), (vec![first, second], 0));
}

#[test]
fn whoever_waited_for_long_gets_a_place_and_keeps_it() {
    let ageing = Some(Duration::from_millis(20));
    let mut world = World::new(ContinuousConfig { max_sequences: 1, ageing, ..config() });
    let low = world.admit(Request { max_tokens: 5, ..of(Priority::Low, 0, 0) });
    for own in 1..200 {
        world.admit(of(Priority::High, 0, own));
        world.step();
        if world.ended.iter().any(|ended| ended.sequence == low) {
            break;
        }
    }
    assert!(world.ended.iter().any(|ended| (ended.sequence, ended.end) == (low, End::Length)));
    world.run();
}
