//! Many requests in virtual time against a device of known speed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{config, request};
use crate::continuous::{ContinuousConfig, Deadlines, End, Request, Scheduler, SequenceId, StepOutcome};
use crate::entry::{ClientId, Priority};
use crate::sim::random::Random;
use crate::time::Time;

/// A device: 1 ms a step, 0.2 ms for each that decodes, 50 us for each token of a prompt.
fn busy(decodes: usize, prompt_tokens: usize) -> Duration {
    Duration::from_micros(1_000 + 200 * decodes as u64 + 50 * prompt_tokens as u64)
}

/// What came of a run.
#[derive(Default)]
struct Run {
    admitted: u64,
    refused: u64,
    ended: BTreeMap<End, u64>,
    lasts: u64,
    generated: u64,
    seconds: f64,
    steps: u64,
    preemptions: u64,
    cached: u64,
    /// The longest that a sequence waited from one token to the next, while it ran.
    longest_steps: Vec<Duration>,
    /// From submission to first token, for requests that got one.
    first_token: Vec<Duration>,
}

impl Run {
    fn tokens_per_second(&self) -> f64 {
        self.generated as f64 / self.seconds
    }
}

/// Requests that come at instants, each with the number of tokens after which its sequences stop.
type Arrivals<'a> = &'a mut dyn Iterator<Item = (Time, Request, u32)>;

fn run(config: ContinuousConfig, arrivals: Arrivals<'_>) -> Run {
    let mut scheduler = Scheduler::new(config);
    let mut run = Run::default();
    let mut arrivals = arrivals.peekable();
    let mut now = Time::ZERO;
    let mut lengths = BTreeMap::<SequenceId, (u32, u32)>::new();
    let mut since = BTreeMap::new();
    loop {
        while let Some((at, request, length)) = arrivals.next_if(|(at, ..)| *at <= now) {
            match scheduler.submit(now, request) {
                Ok(admitted) => {
                    run.admitted += 1;
                    since.insert(admitted.sequences().next().unwrap(), at);
                    lengths.extend(admitted.sequences().map(|id| (id, (0, length))));
                }
                Err(_) => run.refused += 1,
            }
        }
        let scheduled = scheduler.schedule(now);
        let mut ended = scheduled.ended;
        match scheduled.plan {
            Some(plan) => {
                let decodes = plan.work.iter().filter(|work| work.tokens.len() == 1).count();
                let all: usize = plan.work.iter().map(|work| work.tokens.len()).sum();
                let busy = busy(decodes, all - decodes);
                scheduler.plan_ahead(now);
                now = now + busy;
                if decodes > 0 {
                    run.longest_steps.push(busy);
                }
                let sampled = plan.work.iter().filter(|work| work.samples);
                let ids =
                    sampled.flat_map(|work| std::iter::once(work.sequence).chain(work.forks.iter().copied()));
                let tokens = ids.filter_map(|id| {
                    let (drawn, length) = lengths.get_mut(&id)?;
                    *drawn += 1;
                    if let Some(at) = since.remove(&id) {
                        run.first_token.push(now.since(at));
                    }
                    Some((id, *drawn, *drawn >= *length))
                });
                let outcome = StepOutcome { id: plan.id, busy, tokens: tokens.collect(), failed: Vec::new() };
                ended.extend(scheduler.commit(now, outcome));
            }
            None => match arrivals.peek() {
                Some((at, ..)) => now = *at,
                None => {
                    assert!(!scheduler.has_work(), "work, and nothing to run");
                    break;
                }
            },
        }
        for ended in ended {
            assert!(lengths.remove(&ended.sequence).is_some(), "ended twice");
            since.remove(&ended.sequence);
            *run.ended.entry(ended.end).or_default() += 1;
            run.lasts += u64::from(ended.last);
        }
    }
    assert!(lengths.is_empty() && scheduler.remembers_nothing());
    let counters = scheduler.stats().counters;
    run.generated = counters.generated_tokens;
    run.steps = counters.steps;
    run.preemptions = counters.preemptions;
    run.cached = counters.cached_prompt_tokens;
    run.seconds = now.since(Time::ZERO).as_secs_f64();
    run
}

/// So many requests at once, each with a prompt of its own and all of its tokens drawn.
fn streams(count: u32, prompt: u32, output: u32) -> impl Iterator<Item = (Time, Request, u32)> {
    (0..count)
        .map(move |stream| (Time::ZERO, request(stream * 1_000..stream * 1_000 + prompt, output), output))
}

fn percentile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * share) as usize]
}

#[test]
fn a_million_requests_all_end_once() {
    const REQUESTS: u64 = 1_000_000;
    let mut random = Random::stream(1, 0);
    let mut at = 0.0;
    let mut arrivals = (0..REQUESTS).map(|_| {
        at += random.exponential(2.7e-3);
        let family = random.below(50) as u32;
        let prompt = (0..16 * (random.below(3) as u32)).map(|index| family * 100 + index);
        let own = 1 + random.below(24) as u32;
        let prompt: Vec<u32> = prompt.chain((0..own).map(|_| random.below(50_000) as u32)).collect();
        let max_tokens = 1 + random.below(32) as u32;
        let now = Time::from_nanos((at * 1e9) as u64);
        let total = (random.below(10) == 0).then(|| now + Duration::from_millis(20 + random.below(2_000)));
        let request = Request {
            prompt,
            max_tokens,
            sequences: if random.below(50) == 0 { 2 } else { 1 },
            priority: Priority::DESCENDING[random.below(4) as usize],
            client: ClientId(random.below(20)),
            salt: (random.below(10) == 0).then_some(1),
            scores_prompt: false,
            deadlines: Deadlines { total, ..Deadlines::default() },
        };
        (now, request, 1 + random.below(u64::from(max_tokens)) as u32)
    });
    let config = ContinuousConfig {
        blocks: 150,
        block_size: 16,
        max_sequences: 64,
        max_step_tokens: 512,
        max_queue_size: 1_000,
        ageing: Some(Duration::from_secs(2)),
        inter_token_target: Some(Duration::from_millis(20)),
        ..config()
    };
    let run = run(config, &mut arrivals);
    assert_eq!(run.admitted + run.refused, REQUESTS);
    assert_eq!(run.lasts, run.admitted);
    assert!(run.admitted > REQUESTS / 2, "{} were let in", run.admitted);
    assert!(run.preemptions > 1_000, "{} preemptions", run.preemptions);
    assert!(run.cached > 1_000_000, "{} tokens found again", run.cached);
}

#[test]
fn a_pool_that_holds_a_tenth_of_the_streams_keeps_most_of_the_throughput() {
    // 20 of 200 streams fit: 128 + 64 tokens in blocks of 16.
    let with = |blocks| {
        let config =
            ContinuousConfig { blocks, block_size: 16, max_sequences: 32, max_step_tokens: 512, ..config() };
        run(config, &mut streams(200, 128, 64))
    };
    let (small, large) = (with(20 * 12), with(200 * 12));
    assert_eq!(small.ended, BTreeMap::from([(End::Stopped, 200)]));
    let ratio = small.tokens_per_second() / large.tokens_per_second();
    assert!(ratio >= 0.8, "{ratio:.2} of the throughput with {} preemptions", small.preemptions);
}

#[test]
fn streams_that_stop_early_are_not_given_room_for_all_they_might_have_said() {
    let with = |preemption| {
        let config = ContinuousConfig {
            blocks: 240,
            block_size: 16,
            max_context: 4_096,
            max_sequences: 64,
            max_step_tokens: 512,
            preemption,
            ..config()
        };
        let mut random = Random::stream(3, 0);
        let mut streams = (0..400_u32).map(|stream| {
            let length = 20 + random.below(60) as u32;
            (Time::ZERO, request(stream * 100..stream * 100 + 64, 1_024), length)
        });
        run(config, &mut streams)
    };
    let (learning, reserving) = (with(true), with(false));
    let ratio = learning.tokens_per_second() / reserving.tokens_per_second();
    assert!(ratio > 1.5, "{ratio:.2} times the throughput, {} preemptions", learning.preemptions);
    assert_eq!(reserving.preemptions, 0);
    let share = learning.preemptions as f64 / 400.0;
    assert!(share < 0.5, "{share:.2} preemptions a request");
}

#[test]
fn long_prompts_keep_within_the_target_and_still_begin_soon() {
    let arrivals = || {
        let mut random = Random::stream(5, 0);
        (0..400_u32).map(move |index| {
            let prompt = if index % 10 == 0 { 1_500 } else { 40 };
            let prompt: Vec<u32> = (0..prompt).map(|_| random.below(50_000) as u32).collect();
            (Time::from_nanos(u64::from(index) * 40_000_000), request(prompt, 100), 100)
        })
    };
    let with = |target: Option<u64>| {
        let config = ContinuousConfig {
            blocks: 4_096,
            block_size: 16,
            max_context: 4_096,
            max_sequences: 64,
            max_step_tokens: 2_048,
            inter_token_target: target.map(Duration::from_millis),
            ..config()
        };
        run(config, &mut arrivals())
    };
    let (bounded, free) = (with(Some(25)), with(None));
    let longest = |run: &Run| percentile(run.longest_steps.clone(), 0.999);
    assert!(longest(&bounded) <= Duration::from_millis(27), "{:?}", longest(&bounded));
    assert!(longest(&free) > Duration::from_millis(70), "{:?}", longest(&free));
    let begun = |run: &Run| percentile(run.first_token.clone(), 0.5);
    assert!(begun(&bounded) < Duration::from_millis(100), "{:?}", begun(&bounded));
}
