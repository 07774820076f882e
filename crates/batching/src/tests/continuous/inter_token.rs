//! Chunks of prompts as large as the time between tokens allows.

use std::time::Duration;

use super::world::{World, config, request};
use crate::continuous::{ContinuousConfig, StepPlan};

/// A device: 2 ms a step, 1 ms for each that decodes, 100 us for each token of a prompt.
fn busy(plan: &StepPlan) -> Duration {
    let decodes = plan.work.iter().filter(|work| work.tokens.len() == 1).count() as u64;
    let all = plan.work.iter().map(|work| work.tokens.len() as u64).sum::<u64>();
    Duration::from_micros(2_000 + 1_000 * decodes + 100 * (all - decodes))
}

fn timed_step(world: &mut World) -> StepPlan {
    world.schedule().unwrap();
    let plan = world.plan.clone().expect("a step");
    world.commit(busy(&plan), |_, _| Some((7, false))).unwrap();
    plan
}

/// A scheduler that has seen prompts of many lengths beside decodes, with three that go on decoding.
fn trained(target: Option<Duration>) -> World {
    let mut world = World::new(ContinuousConfig {
        blocks: 4_096,
        max_context: 4_096,
        max_step_tokens: 512,
        inter_token_target: target,
        prefix_caching: false,
        ..config()
    });
    for round in 0..60_u32 {
        world.admit(request(0..5 + round * 37 % 90, 1 + round % 3));
        timed_step(&mut world);
    }
    while world.scheduler.has_work() {
        timed_step(&mut world);
    }
    for _ in 0..3 {
        world.admit(request(0..4, 3_000));
    }
    timed_step(&mut world);
    timed_step(&mut world);
    world
}

#[test]
fn a_step_with_a_chunk_takes_as_long_as_the_target_and_no_longer() {
    let target = Duration::from_millis(10);
    let mut world = trained(Some(target));
    world.admit(request(0..1_000, 4));
    for _ in 0..15 {
        let plan = timed_step(&mut world);
        let (chunk, took) = (plan.work[3].tokens.len(), busy(&plan));
        assert!(took <= target.mul_f64(1.02), "{chunk} tokens took {took:?}");
        assert!(took >= target.mul_f64(0.85), "{chunk} tokens took {took:?}");
    }
}

#[test]
fn a_prompt_goes_on_by_a_block_though_decodes_alone_take_too_long() {
    let mut world = trained(Some(Duration::from_millis(3)));
    world.admit(request(0..1_000, 4));
    assert_eq!(timed_step(&mut world).work[3].tokens.len(), 4);
}

#[test]
fn without_a_target_prompts_take_the_budget() {
    let mut world = trained(None);
    world.admit(request(0..1_000, 4));
    assert_eq!(timed_step(&mut world).work[3].tokens.len(), 512 - 3);
}

#[test]
fn with_nobody_decoding_no_time_is_kept() {
    let mut world = trained(Some(Duration::from_millis(10)));
    let requests: Vec<_> = world.live.values().map(|known| known.request).collect();
    requests.into_iter().for_each(|request| assert!(world.cancel(request)));
    world.admit(request(0..1_000, 4));
    assert_eq!(timed_step(&mut world).work[0].tokens.len(), 512);
}

#[test]
fn a_plan_says_how_long_it_will_take() {
    let mut world = trained(None);
    world.admit(request(0..200, 4));
    let plan = timed_step(&mut world);
    let (predicted, took) = (plan.predicted.unwrap().as_secs_f64(), busy(&plan).as_secs_f64());
    assert!((predicted / took - 1.0).abs() < 0.05, "{predicted} for {took}");
}

#[test]
fn the_drain_of_what_waits_is_predicted_from_steps() {
    let mut world = trained(None);
    let requests: Vec<_> = world.live.values().map(|known| known.request).collect();
    requests.into_iter().for_each(|request| assert!(world.cancel(request)));
    assert_eq!(world.scheduler.predicted_drain(), Some(Duration::ZERO));
    for own in 0..40_u32 {
        world.admit(request(own * 1_000..own * 1_000 + 100, 100));
    }
    let predicted = world.scheduler.predicted_drain().unwrap().as_secs_f64();
    let from = world.now;
    while world.scheduler.has_work() {
        timed_step(&mut world);
    }
    let took = world.now.since(from).as_secs_f64();
    assert!((predicted / took - 1.0).abs() < 0.3, "{predicted} for {took}");
}

#[test]
fn nothing_is_predicted_before_steps_are_known() {
    let world = World::new(config());
    assert_eq!(world.scheduler.predicted_drain(), None);
    assert_eq!(world.scheduler.predicted_first_token(crate::Priority::Normal, 10), None);
}
