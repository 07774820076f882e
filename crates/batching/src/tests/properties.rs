//! Random runs of the scheduler, each judged call by call, then replayed.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use super::model::{Checked, World};
use crate::replay::{Divergence, Event, Replayed, replay};
use crate::{
    BreakerConfig, BucketConfig, Dispatch, InstanceId, Isolation, Mode, Outcome, PaddingStrategy, Priority,
    SchedulerConfig, Ticket, Time, Verdict,
};

const INSTANCES: u32 = 3;

/// One thing that happens; small numbers, so that a failure reads well. Times are in ticks.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Advance(u64),
    Submit(Asked),
    Cancel(Index),
    Plan { instance: u32, free: u64 },
    Complete { instance: u32, outcome: Outcome, busy: u64 },
    Expire,
    Flush,
    Drain,
}

/// A request as it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) client: u64,
    pub(super) cost: u32,
    /// Of shapes other than 0.
    pub(super) length: u32,
    pub(super) bytes: u64,
    pub(super) shape: u64,
    pub(super) priority: Priority,
    pub(super) timeout: Option<u64>,
}

fn priorities() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![Priority::Normal, Priority::Low, Priority::High, Priority::Critical])
}

fn asked() -> impl Strategy<Value = Asked> {
    let size = (0_u32..6, 1_u32..10, 0_u64..4);
    (size, 0_u64..3, 0_u64..3, priorities(), prop::option::of(0_u64..30)).prop_map(
        |((cost, length, bytes), client, shape, priority, timeout)| Asked {
            client,
            cost,
            length,
            bytes,
            shape,
            priority,
            timeout,
        },
    )
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => Just(Outcome::Completed),
        5 => Just(Outcome::Failed),
        1 => Just(Outcome::OutOfMemory),
        1 => Just(Outcome::WrongLength),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let complete = (0..INSTANCES, outcomes(), 1_u64..6).prop_map(|(instance, outcome, busy)| Op::Complete {
        instance,
        outcome,
        busy,
    });
    let free = prop_oneof![9 => Just(u64::MAX), 1 => 0_u64..40];
    let op = prop_oneof![
        20 => (1_u64..8).prop_map(Op::Advance),
        50 => asked().prop_map(Op::Submit),
        8 => any::<Index>().prop_map(Op::Cancel),
        25 => (0..INSTANCES, free).prop_map(|(instance, free)| Op::Plan { instance, free }),
        20 => complete,
        5 => Just(Op::Expire),
        2 => Just(Op::Flush),
        1 => Just(Op::Drain),
    ];
    prop::collection::vec(op, 0..160)
}

fn buckets() -> impl Strategy<Value = BucketConfig> {
    let strategies =
        [PaddingStrategy::Minimal, PaddingStrategy::Maximum, PaddingStrategy::None, PaddingStrategy::Dynamic];
    (any::<bool>(), prop::sample::select(strategies.to_vec())).prop_map(|(enabled, strategy)| BucketConfig {
        enabled,
        boundaries: vec![3, 6],
        strategy,
    })
}

/// What can fail, and what bounds it; each absent in half of the runs.
fn protections() -> impl Strategy<Value = SchedulerConfig> {
    let breaker = (1_u32..4, 1_u64..20, 1_u64..20).prop_map(|(failures, window, open)| BreakerConfig {
        failures,
        window: Duration::from_nanos(window),
        open: Duration::from_nanos(open),
    });
    (
        prop::sample::select(vec![Isolation::Bisect, Isolation::None]),
        prop::option::of(breaker),
        prop::option::of(4_u64..60),
        prop::option::of(1_u64..4),
        prop::option::of(0_u64..20),
        prop::option::of(0_u64..12),
    )
        .prop_map(|(isolation, breaker, memory_limit, bytes, slo, queue_bytes)| SchedulerConfig {
            isolation,
            breaker,
            memory_limit,
            bytes_per_element: bytes,
            latency_slo: slo.map(Duration::from_nanos),
            max_queue_bytes: queue_bytes,
            ..SchedulerConfig::default()
        })
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    let batch = (1_u32..6, 0_u32..4, prop::option::of(0_u64..30), 0_u64..20);
    let queue = (0_u32..24, prop::option::of(0_u64..40));
    let order = (prop::bool::weighted(0.9), prop::option::of(0_u64..30));
    (
        prop::sample::select(vec![Mode::Dynamic, Mode::Fixed, Mode::Adaptive]),
        prop::sample::select(vec![Dispatch::Eager, Dispatch::Window]),
        batch,
        queue,
        order,
        buckets(),
        protections(),
    )
        .prop_map(|(mode, dispatch, batch, queue, order, buckets, protections)| SchedulerConfig {
            mode,
            dispatch,
            instances: INSTANCES,
            max_batch_size: batch.0,
            min_batch_size: batch.1,
            max_batch_cost: batch.2,
            max_wait: Duration::from_nanos(batch.3),
            max_queue_size: queue.0,
            max_queue_cost: queue.1,
            priorities: order.0,
            ageing: order.1.map(Duration::from_nanos),
            buckets,
            ..protections
        })
}

/// Plays `ops`; a failure tells the story so far, one call a line.
fn play(config: SchedulerConfig, ops: &[Op], check: impl Fn(&mut World) -> Checked) -> Checked {
    let mut world = World::new(config);
    let played = ops.iter().try_for_each(|op| world.step(op)).and_then(|()| check(&mut world));
    played.map_err(|error| {
        let story: Vec<_> = world.log.iter().map(line).collect();
        TestCaseError::fail(format!("{error}\nafter these calls:\n  {}", story.join("\n  ")))
    })
}

fn line(event: &Event) -> String {
    let list = |tickets: &mut dyn Iterator<Item = String>| tickets.collect::<Vec<_>>().join(" ");
    let judged = |verdicts: &[(Ticket, Verdict)]| {
        list(&mut verdicts.iter().map(|(ticket, verdict)| format!("#{} {verdict:?}", ticket.0)))
    };
    match event {
        Event::Start { config } => format!("{config:?}"),
        Event::Submit { now, entry, rejection } => format!(
            "{:3} submit #{} of {} {:?} shape {} cost {} length {} bytes {} deadline {:?}{}",
            now.as_nanos(),
            entry.ticket.0,
            entry.client.0,
            entry.priority,
            entry.shape.0,
            entry.cost,
            entry.seq_len,
            entry.bytes,
            entry.deadline.map(Time::as_nanos),
            rejection.as_ref().map_or(String::new(), |why| format!(": refused, {why}")),
        ),
        Event::Cancel { now, ticket } => format!("{:3} cancel #{}", now.as_nanos(), ticket.0),
        Event::Plan { now, instance, batch, free, verdicts } => {
            let made = match batch {
                None => format!("no batch with {free} free"),
                Some((batch, tickets)) => {
                    let tickets = list(&mut tickets.iter().map(|ticket| format!("#{}", ticket.0)));
                    format!("batch {} of {tickets}", batch.0)
                }
            };
            format!("{:3} plan {}: {made}; {}", now.as_nanos(), instance.0, judged(verdicts))
        }
        Event::Complete { now, batch, verdicts, report } => {
            let (now, busy) = (now.as_nanos(), report.busy.as_nanos());
            format!("{now:3} batch {} {:?} after {busy}: {}", batch.0, report.outcome, judged(verdicts))
        }
        Event::Expire { now, verdicts } => format!("{:3} expire: {}", now.as_nanos(), judged(verdicts)),
        Event::Flush { now } => format!("{:3} flush", now.as_nanos()),
        Event::Drain => "    drain".to_owned(),
        Event::ResetBreaker => "    reset the breaker".to_owned(),
    }
}

/// The event with another answer than the scheduler gave; `None` where it has no answer to change.
fn tampered(event: &Event) -> Option<Event> {
    let mut event = event.clone();
    match &mut event {
        Event::Submit { rejection, .. } => {
            *rejection = match rejection.take() {
                Some(_) => None,
                None => Some(crate::Rejection::Draining),
            };
        }
        Event::Plan { batch: Some((_, tickets)), .. } => drop(tickets.pop()),
        Event::Plan { batch, .. } => *batch = Some((crate::BatchId(0), vec![Ticket(0)])),
        Event::Complete { verdicts, .. } | Event::Expire { verdicts, .. } => {
            if verdicts.pop().is_none() {
                verdicts.push((Ticket(0), Verdict::Completed));
            }
        }
        Event::Start { .. }
        | Event::Cancel { .. }
        | Event::Flush { .. }
        | Event::Drain
        | Event::ResetBreaker => return None,
    }
    Some(event)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn every_call_is_answered_as_the_lists_say_and_everything_ends_once(config in configs(), ops in ops()) {
        play(config, &ops, World::finish)?;
    }

    #[test]
    fn draining_ends_everything_without_waiting(config in configs(), ops in ops()) {
        play(config, &ops, |world| {
            world.step(&Op::Drain)?;
            let before = world.now;
            world.finish()?;
            prop_assert_eq!(world.now, before, "a drain waited");
            Ok(())
        })?;
    }

    #[test]
    fn what_is_flushed_ends_without_waiting(config in configs(), ops in ops()) {
        play(config, &ops, |world| {
            world.step(&Op::Flush)?;
            let before = world.now;
            world.finish()?;
            prop_assert_eq!(world.now, before, "a flush waited");
            Ok(())
        })?;
    }

    #[test]
    fn a_free_instance_is_told_to_wait_for_no_entry_past_max_wait(config in configs(), ops in ops()) {
        play(config.clone(), &ops, |world| {
            // The invariant in words, and not in those of the policies.
            let Some(free) = (0..INSTANCES).map(InstanceId).find(|id| !world.running.contains_key(id)) else {
                return Ok(());
            };
            let planned = world.plan(free, u64::MAX)?;
            let oldest = world.reference.waiting.iter().map(|entry| entry.arrived).min();
            if let (Some(at), Some(oldest)) = (planned, oldest) {
                prop_assert!(world.now.since(oldest) < config.max_wait, "waits past max_wait");
                prop_assert!(at <= oldest + config.max_wait, "told to wait past max_wait");
            }
            Ok(())
        })?;
    }

    #[test]
    fn of_two_of_one_client_and_shape_the_more_urgent_that_came_first_leaves_first(
        config in configs(), ops in ops()
    ) {
        // Without what may bring a later one forward: a bucket of its own, its length, its age.
        let config = SchedulerConfig { buckets: BucketConfig::default(), ageing: None, ..config };
        play(config.clone(), &ops, |world| {
            world.finish()?;
            let mut entries = Vec::new();
            let mut left = std::collections::BTreeMap::<_, (usize, usize)>::new();
            for (index, event) in world.log.iter().enumerate() {
                match event {
                    Event::Submit { entry, rejection: None, .. } => entries.push(entry),
                    Event::Plan { batch: Some((_, tickets)), .. } => {
                        for (place, &ticket) in tickets.iter().enumerate() {
                            left.entry(ticket).or_insert((index, place));
                        }
                    }
                    _ => {}
                }
            }
            for (index, second) in entries.iter().enumerate() {
                let alike = |first: &&&crate::Entry| (first.shape, first.client) == (second.shape, second.client);
                for first in entries.iter().take(index).filter(alike) {
                    let sooner = first.deadline.unwrap_or(Time::MAX) <= second.deadline.unwrap_or(Time::MAX);
                    let rank = |entry: &crate::Entry| if config.priorities { entry.priority } else { Priority::Normal };
                    let urgent = rank(first) > rank(second) || rank(first) == rank(second) && sooner;
                    if let (Some(before), Some(after)) = (left.get(&first.ticket), left.get(&second.ticket)) {
                        prop_assert!(!urgent || before < after, "#{} overtook #{}", second.ticket.0, first.ticket.0);
                    }
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_log_replays_to_the_same_batches_and_a_changed_one_diverges(
        config in configs(), ops in ops(), which in any::<Index>()
    ) {
        play(config, &ops, |world| {
            world.finish()?;
            let batches = world.log.iter().filter(|event| matches!(event, Event::Plan { batch: Some(_), .. }));
            let replayed = Replayed { events: world.log.len(), batches: batches.count() };
            prop_assert_eq!(replay(world.log.clone()), Ok(replayed));

            let index = which.index(world.log.len());
            if let Some(changed) = tampered(&world.log[index]) {
                let mut log = world.log.clone();
                log[index] = changed;
                let answer = replay(log);
                let differs = matches!(answer, Err(Divergence::Differs { index: at, .. }) if at == index);
                prop_assert!(differs, "changed event {}, replayed to {:?}", index, answer);
            }
            Ok(())
        })?;
    }
}
