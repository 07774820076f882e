//! Deadlines at more than the capacity: as many are answered in time as at the capacity.

use std::time::Duration;

use proptest::prelude::*;

use crate::scheduler::triage::to_give_up;
use crate::sim::{Lengths, Noise, Process, Service, Traffic, simulate};
use crate::{
    BatchReport, BucketConfig, Dispatch, Entry, InstanceId, Next, Outcome, PaddingStrategy, Priority,
    Scheduler, SchedulerConfig, Ticket, Time, Verdict,
};

const MS: Duration = Duration::from_millis(1);
const INSTANCE: InstanceId = InstanceId(0);

fn at(ms: u64) -> Time {
    Time::ZERO + MS * ms as u32
}

fn times(ms: &[u64]) -> Vec<Time> {
    ms.iter().copied().map(at).collect()
}

/// A batch of 10 ms, and 1 ms for each item.
fn run(items: usize) -> Duration {
    MS * (10 + items as u32)
}

fn due(ticket: u64, deadline: u64) -> Entry {
    let deadline = Some(at(deadline) + MS / 4);
    Entry { ticket: Ticket(ticket), cost: 1, deadline, ..Entry::default() }
}

/// Who is given up and who runs at 0, once batches are known to take as long as [`run`] says; nothing was
/// known when they were let in.
fn plan(entries: impl IntoIterator<Item = Entry>) -> (Vec<u64>, Vec<u64>) {
    // Nobody waits for company, though all came at once and more might come at any moment.
    let mut scheduler = Scheduler::new(SchedulerConfig {
        dispatch: Dispatch::Window,
        max_wait: Duration::ZERO,
        ..SchedulerConfig::default()
    });
    let mut tickets = (1_000..).map(Ticket);
    let mut running = Vec::new();
    for items in (1..=32).chain(1..=32) {
        for ticket in tickets.by_ref().take(items) {
            scheduler.submit(Time::ZERO, Entry { ticket, cost: 1, ..Entry::default() }).unwrap();
        }
        let Next::Run(batch) = scheduler.plan(Time::ZERO, INSTANCE, u64::MAX).next else { panic!("idle") };
        running.push((batch.id, run(items)));
    }
    for entry in entries {
        scheduler.submit(Time::ZERO, entry).unwrap();
    }
    for (id, busy) in running {
        let report = BatchReport { outcome: Outcome::Completed, busy, peak_bytes: None };
        scheduler.complete(Time::ZERO, id, report);
    }
    let planned = scheduler.plan(Time::ZERO, INSTANCE, u64::MAX);
    assert!(planned.resolved.iter().all(|(_, verdict)| *verdict == Verdict::GivenUp), "{planned:?}");
    let mut given_up: Vec<u64> = planned.resolved.iter().map(|(ticket, _)| ticket.0).collect();
    given_up.sort_unstable();
    let Next::Run(batch) = planned.next else { panic!("{planned:?}") };
    (given_up, batch.entries.iter().map(|entry| entry.ticket.0).collect())
}

#[test]
fn a_batch_does_not_grow_past_what_its_first_has_time_for() {
    let (given_up, ran) = plan((0..8).map(|ticket| due(ticket, if ticket == 0 { 15 } else { 100 })));
    assert_eq!((given_up, ran), (vec![], vec![0, 1, 2, 3, 4]));
}

#[test]
fn one_who_cannot_be_answered_in_time_takes_no_place_of_others() {
    let hopeless = Entry { priority: Priority::Low, ..due(2, 10) };
    assert_eq!(plan([due(0, 10), due(1, 100), hopeless]), (vec![0, 2], vec![1]));
}

#[test]
fn the_least_late_is_tried_where_all_are_too_late() {
    assert_eq!(plan([due(0, 8), due(1, 10), due(2, 9)]), (vec![0, 2], vec![1]));
}

#[test]
fn one_is_given_up_for_several_others_and_not_for_as_many() {
    // After the batch of the first alone nobody else is in time; without it all the others are.
    assert_eq!(plan([due(0, 11), due(1, 15), due(2, 15), due(3, 15)]), (vec![0], vec![1, 2, 3]));
    assert_eq!(plan([due(0, 11), due(1, 15)]), (vec![], vec![0]));
    // Nor for others who can be answered after it.
    assert_eq!(plan([due(0, 11), due(1, 40), due(2, 40), due(3, 40)]), (vec![], vec![0]));
}

#[test]
fn nobody_more_urgent_is_given_up_for_others() {
    let critical = Entry { priority: Priority::Critical, ..due(0, 11) };
    assert_eq!(plan([critical, due(1, 15), due(2, 15), due(3, 15)]), (vec![], vec![0]));
}

#[test]
fn others_ride_along_with_a_critical_one_only_while_they_at_most_double_its_batch() {
    let all = |priority| {
        let first = Entry { priority, ..due(0, 1_000) };
        plan(std::iter::once(first).chain((1..20).map(|ticket| due(ticket, 1_000)))).1
    };
    // Alone it takes 11 ms, and 12 take 22.
    assert_eq!(all(Priority::Critical), (0..12).collect::<Vec<_>>());
    assert_eq!(all(Priority::High), (0..20).collect::<Vec<_>>());
    let critical = (0..20).map(|ticket| Entry { priority: Priority::Critical, ..due(ticket, 1_000) });
    assert_eq!(plan(critical).1.len(), 20, "those that are critical all go");
}

#[test]
fn another_instance_that_is_free_is_counted_on() {
    let dues = times(&[11, 15, 15, 15]);
    assert_eq!(to_give_up(&dues, &times(&[0]), 32, run), 1);
    assert_eq!(to_give_up(&dues, &times(&[0, 0]), 32, run), 0);
    assert_eq!(to_give_up(&dues, &times(&[0, 14]), 32, run), 1);
}

/// The most that can be answered in time by one instance if each batch takes some who follow one another.
fn most_answered(dues: &[Time], now: Time, limit: usize) -> usize {
    let Some((_, later)) = dues.split_first() else { return 0 };
    let batches = (1..=limit.min(dues.len())).filter(|&items| now + run(items) <= dues[0]);
    let with_first = batches.map(|items| items + most_answered(&dues[items..], now + run(items), limit));
    with_first.max().unwrap_or(0).max(most_answered(later, now, limit))
}

proptest! {
    #[test]
    fn giving_up_never_answers_fewer_and_never_more_than_possible(
        mut dues in prop::collection::vec(5_u64..80, 1..9),
        limit in 1_usize..6,
    ) {
        dues.sort_unstable();
        let dues = times(&dues);
        let first = to_give_up(&dues, &[Time::ZERO], limit, run);
        let greedy = |dues: &[Time]| {
            let (mut now, mut answered, mut dues) = (Time::ZERO, 0, dues);
            while !dues.is_empty() {
                let fitting = (1..=limit.min(dues.len())).rev().find(|&items| now + run(items) <= dues[0]);
                answered += fitting.unwrap_or(0);
                now = fitting.map_or(now, |items| now + run(items));
                dues = &dues[fitting.unwrap_or(1)..];
            }
            answered
        };
        prop_assert!(greedy(&dues[first..]) > greedy(&dues) || first == 0);
        prop_assert!(greedy(&dues[first..]) <= most_answered(&dues, Time::ZERO, limit));
    }
}

/// A device, and what it is asked.
struct Case {
    service: Service,
    traffic: Traffic,
    config: SchedulerConfig,
    /// Requests a second in full batches.
    capacity: f64,
}

/// Batches of at most 32 of `a` seconds and `b` for each item, with deadlines after `timeout` seconds.
fn items(a: f64, b: f64, timeout: f64) -> Case {
    Case {
        service: Service { noise: Noise::LogNormal(0.1), ..Service::linear(a, b, 0.0) },
        traffic: Traffic {
            timeout: Some(Duration::from_secs_f64(timeout)),
            ..Traffic::new(Process::Poisson { rate: 1.0 })
        },
        config: SchedulerConfig { max_wait: 10 * MS, ..SchedulerConfig::default() },
        capacity: 32.0 / (a + 32.0 * b),
    }
}

/// Texts of 16 to 256 tokens, most short, of 0.1 ms a token; deadlines at 5 times the longest alone.
fn texts(padded: bool) -> Case {
    let mean = 240.0 / 16_f64.ln();
    let case = items(2e-3, 1e-4 * mean, 5.0 * (2e-3 + 256e-4));
    let buckets = BucketConfig { strategy: PaddingStrategy::Dynamic, ..BucketConfig::default() };
    Case {
        service: Service { noise: Noise::LogNormal(0.1), ..Service::linear(2e-3, 0.0, 1e-4) },
        traffic: Traffic { lengths: Lengths::Skewed(16, 256), padded, ..case.traffic },
        config: if padded { SchedulerConfig { buckets, ..case.config } } else { case.config },
        ..case
    }
}

/// Requests answered before their deadlines, a second.
fn goodput(case: &Case, process: Process) -> f64 {
    let traffic = Traffic { process, seed: 7, ..case.traffic.clone() };
    let requests = traffic.arrivals().take(20_000);
    let report = simulate(case.config.clone(), requests, case.service.clone(), |_| {});
    report.completed as f64 / report.seconds
}

#[test]
fn more_load_than_can_be_served_does_not_lower_what_is_answered_in_time() {
    let cases = [
        ("hardly any gain from batches", items(2e-3, 15e-3, 0.085)),
        ("a full batch takes as long as there is", items(2e-3, 6e-3, 0.2)),
        ("some gain from batches", items(10e-3, 2e-3, 0.06)),
        ("most of a batch is its start", items(10e-3, 1e-4, 0.05)),
        ("the same, and hardly time for two", items(10e-3, 1e-4, 0.025)),
        ("texts", texts(false)),
        ("padded texts", texts(true)),
    ];
    for (name, case) in cases {
        let poisson = |load: f64| Process::Poisson { rate: load * case.capacity };
        let bursty =
            |load: f64| Process::Bursty { rate: load * case.capacity, factor: 3.0, period: 1500 * MS };
        let laws: [&dyn Fn(f64) -> Process; 2] = [&poisson, &bursty];
        for law in laws {
            let [full, over, twice] = [1.0, 1.5, 2.0].map(|load| goodput(&case, law(load)));
            assert!(over >= 0.95 * full && twice >= 0.95 * full, "{name}: {full}, {over}, {twice}");
            assert!(full >= 0.5 * case.capacity, "{name}: {full} of {}", case.capacity);
        }
    }
}
