//! Random runs of the scheduler, each judged call by call, then replayed.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use super::model::{Checked, World};
use crate::replay::{Divergence, Event, Replayed, replay};
use crate::{Dispatch, InstanceId, Mode, Priority, SchedulerConfig, Ticket, Time, Verdict};

const INSTANCES: u32 = 3;

/// One thing that happens; small numbers, so that a failure reads well. Times are in ticks.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Advance(u64),
    Submit { cost: u32, shape: u64, priority: Priority, timeout: Option<u64> },
    Cancel(Index),
    Plan(u32),
    Complete { instance: u32, completed: bool },
    Expire,
    Drain,
}

fn priorities() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![Priority::Normal, Priority::Low, Priority::High, Priority::Critical])
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let submit = (0_u32..6, 0_u64..3, priorities(), prop::option::of(0_u64..30))
        .prop_map(|(cost, shape, priority, timeout)| Op::Submit { cost, shape, priority, timeout });
    let complete =
        (0..INSTANCES, any::<bool>()).prop_map(|(instance, completed)| Op::Complete { instance, completed });
    let op = prop_oneof![
        20 => (1_u64..8).prop_map(Op::Advance),
        50 => submit,
        8 => any::<Index>().prop_map(Op::Cancel),
        25 => (0..INSTANCES).prop_map(Op::Plan),
        15 => complete,
        5 => Just(Op::Expire),
        1 => Just(Op::Drain),
    ];
    prop::collection::vec(op, 0..120)
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    (
        prop::sample::select(vec![Mode::Dynamic, Mode::Fixed]),
        prop::sample::select(vec![Dispatch::Eager, Dispatch::Window]),
        1_u32..6,
        prop::option::of(0_u64..12),
        0_u64..20,
        0_u32..16,
        prop::option::of(0_u64..24),
    )
        .prop_map(|(mode, dispatch, size, cost, wait, queue, queue_cost)| SchedulerConfig {
            mode,
            dispatch,
            max_batch_size: size,
            max_batch_cost: cost,
            max_wait: Duration::from_nanos(wait),
            max_queue_size: queue,
            max_queue_cost: queue_cost,
            ..SchedulerConfig::default()
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
            "{:3} submit #{} {:?} shape {} cost {} deadline {:?}{}",
            now.as_nanos(),
            entry.ticket.0,
            entry.priority,
            entry.shape.0,
            entry.cost,
            entry.deadline.map(Time::as_nanos),
            rejection.as_ref().map_or(String::new(), |why| format!(": refused, {why}")),
        ),
        Event::Cancel { now, ticket } => format!("{:3} cancel #{}", now.as_nanos(), ticket.0),
        Event::Plan { now, instance, batch, .. } => match batch {
            None => format!("{:3} plan {}: no batch", now.as_nanos(), instance.0),
            Some((batch, tickets)) => {
                let tickets = list(&mut tickets.iter().map(|ticket| format!("#{}", ticket.0)));
                format!("{:3} plan {}: batch {} of {tickets}", now.as_nanos(), instance.0, batch.0)
            }
        },
        Event::Complete { now, batch, verdicts, .. } => {
            format!("{:3} complete batch {}: {}", now.as_nanos(), batch.0, judged(verdicts))
        }
        Event::Expire { now, verdicts } => format!("{:3} expire: {}", now.as_nanos(), judged(verdicts)),
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
        Event::Start { .. } | Event::Cancel { .. } | Event::Drain | Event::ResetBreaker => return None,
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
    fn a_free_instance_is_told_to_wait_for_no_entry_past_max_wait(config in configs(), ops in ops()) {
        play(config.clone(), &ops, |world| {
            // The invariant in words, and not in those of the policies.
            let Some(free) = (0..INSTANCES).map(InstanceId).find(|id| !world.running.contains_key(id)) else {
                return Ok(());
            };
            let planned = world.plan(free)?;
            let oldest = world.waiting.iter().map(|entry| entry.arrived).min();
            if let (Some(at), Some(oldest)) = (planned, oldest) {
                prop_assert!(world.now.since(oldest) < config.max_wait, "waits past max_wait");
                prop_assert!(at <= oldest + config.max_wait, "told to wait past max_wait");
            }
            Ok(())
        })?;
    }

    #[test]
    fn of_two_of_one_shape_the_more_urgent_that_came_first_leaves_first(config in configs(), ops in ops()) {
        play(config, &ops, |world| {
            world.finish()?;
            let mut entries = Vec::new();
            let mut left = std::collections::BTreeMap::new();
            for (index, event) in world.log.iter().enumerate() {
                match event {
                    Event::Submit { entry, rejection: None, .. } => entries.push(entry),
                    Event::Plan { batch: Some((_, tickets)), .. } => {
                        left.extend(tickets.iter().enumerate().map(|(place, &ticket)| (ticket, (index, place))));
                    }
                    _ => {}
                }
            }
            for (index, second) in entries.iter().enumerate() {
                for first in entries.iter().take(index).filter(|first| first.shape == second.shape) {
                    let sooner = first.deadline.unwrap_or(Time::MAX) <= second.deadline.unwrap_or(Time::MAX);
                    let urgent = first.priority > second.priority || first.priority == second.priority && sooner;
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
