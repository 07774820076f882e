//! What is learned: how long steps take, how much sequences say, and so how many blocks they will need.

use std::time::Duration;

use crate::continuous::outlook::{Need, Outlook, peak_blocks};
use crate::continuous::step_time::{StepLoad, StepTime};
use crate::sim::random::Random;

fn need(own_tokens: u64, growth: u64) -> Need {
    Need { own_tokens, growth }
}

#[test]
fn one_sequence_needs_its_blocks_at_its_end() {
    assert_eq!(peak_blocks(0, &mut [need(10, 0)], 4), 3);
    assert_eq!(peak_blocks(0, &mut [need(10, 3)], 4), 4);
    assert_eq!(peak_blocks(5, &mut [need(10, 3)], 4), 9);
}

#[test]
fn the_peak_is_at_the_end_of_one_of_them() {
    // Blocks of one token leave nothing to round. At the first end 8 + 2 and 1 + 2, at the second 1 + 9.
    assert_eq!(peak_blocks(0, &mut [need(8, 2), need(1, 9)], 1), 13);
    // The short one has long ended when the long one is longest: 2 + 1 and 1 + 1, then 1 + 20.
    assert_eq!(peak_blocks(0, &mut [need(2, 1), need(1, 20)], 1), 21);
}

#[test]
fn what_sequences_use_of_their_allowance_is_learned_from_ends_and_raised_by_preemptions() {
    let mut outlook = Outlook::default();
    assert_eq!(outlook.expected(100), 50);
    (0..200).for_each(|_| outlook.ended(20, 100));
    assert!((20..=22).contains(&outlook.expected(100)), "{}", outlook.expected(100));
    (0..100).for_each(|_| outlook.preempted());
    assert_eq!(outlook.expected(100), 100);
}

/// A device: 3 ms a step, 0.4 ms a decode, 30 us a token of a prompt, 1 us a key, 20 ns a pair.
fn busy(decodes: f64, context: f64, start: f64, chunk: f64) -> Duration {
    let pairs = chunk * (start + (chunk + 1.0) / 2.0);
    Duration::from_secs_f64(3e-3 + 4e-4 * decodes + 3e-5 * chunk + 1e-6 * context + 2e-8 * pairs)
}

fn load(decodes: usize, context: usize, start: usize, chunk: usize) -> StepLoad {
    let each = context / decodes.max(1);
    (0..decodes).fold(StepLoad::default(), |load, _| load.with_decode(each)).with_chunk(start, chunk)
}

fn trained() -> StepTime {
    let mut times = StepTime::default();
    let mut random = Random::stream(2, 0);
    for _ in 0..500 {
        let decodes = random.below(30) as usize;
        let context = decodes * random.below(1_000) as usize;
        let start = random.below(2_000) as usize;
        let chunk = if random.below(3) == 0 { 0 } else { random.below(500) as usize };
        let noise = 0.98 + 0.04 * random.unit();
        let took = busy(decodes as f64, context as f64, start as f64, chunk as f64).mul_f64(noise);
        times.observe(load(decodes, context, start, chunk), took);
    }
    times
}

#[test]
fn the_time_of_a_step_is_learned_from_decodes_prompts_and_what_they_attend_to() {
    let times = trained();
    for (decodes, context, start, chunk) in
        [(1, 100, 0, 0), (30, 20_000, 0, 0), (8, 800, 0, 256), (0, 0, 1_500, 400)]
    {
        let predicted = times.predict(load(decodes, context, start, chunk)).unwrap().as_secs_f64();
        let took = busy(decodes as f64, context as f64, start as f64, chunk as f64).as_secs_f64();
        assert!((predicted / took - 1.0).abs() < 0.05, "{predicted} for {took}");
    }
}

#[test]
fn long_runs_of_decodes_alone_do_not_forget_what_prompts_cost() {
    let mut times = trained();
    for step in 0..5_000_u32 {
        let context = 100 * 16 + 16 * (step as usize % 400);
        times.observe(load(16, context, 0, 0), busy(16.0, context as f64, 0.0, 0.0));
    }
    let predicted = times.predict(load(16, 1_600, 0, 400)).unwrap().as_secs_f64();
    let took = busy(16.0, 1_600.0, 0.0, 400.0).as_secs_f64();
    assert!((predicted / took - 1.0).abs() < 0.1, "{predicted} for {took}");
}

#[test]
fn the_largest_chunk_fits_and_one_token_more_does_not() {
    let times = trained();
    let beside = load(10, 1_000, 0, 0);
    let target = Duration::from_millis(15);
    let chunk = times.largest_chunk(beside, 100, 2_000, target);
    assert!((100..400).contains(&chunk), "{chunk}");
    assert!(times.at_most(beside.with_chunk(100, chunk)) <= target);
    assert!(times.at_most(beside.with_chunk(100, chunk + 1)) > target);
    assert_eq!(times.largest_chunk(beside, 100, 50, target), 50);
    assert_eq!(times.largest_chunk(beside, 100, 50, Duration::from_millis(5)), 0);
}

#[test]
fn steps_are_decided_by_only_after_some_were_seen() {
    let mut times = StepTime::default();
    assert!(times.predict(load(1, 1, 0, 0)).is_none());
    for seen in 1..=8 {
        assert!(times.known().is_none());
        times.observe(load(seen, 10, 0, 0), Duration::from_millis(5));
    }
    assert!(times.known().is_some());
}
