//! Finding culprits: who fails, and how many runs it takes.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use crate::{
    BatchReport, Entry, InstanceId, Isolation, Next, Outcome, Scheduler, SchedulerConfig, Ticket, Time,
    Verdict,
};

/// Runs `count` entries as one batch, in which those of `culprits` make any batch fail as `failure`.
/// The verdicts by ticket, and the runs.
fn run(count: u32, culprits: &BTreeSet<u64>, failure: Outcome) -> (Vec<Verdict>, u32) {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        isolation: Isolation::Bisect,
        max_batch_size: count,
        ..SchedulerConfig::default()
    });
    for ticket in 0..u64::from(count) {
        scheduler.submit(Time::ZERO, Entry { ticket: Ticket(ticket), cost: 1, ..Entry::default() }).unwrap();
    }
    let (mut verdicts, mut runs) = (Vec::new(), 0);
    while let Next::Run(batch) = scheduler.plan(Time::ZERO, InstanceId(0), u64::MAX).next {
        runs += 1;
        let failed = batch.entries.iter().any(|entry| culprits.contains(&entry.ticket.0));
        let outcome = if failed { failure } else { Outcome::Completed };
        let report = BatchReport { outcome, busy: Duration::from_millis(1), peak_bytes: None };
        verdicts.extend(scheduler.complete(Time::ZERO, batch.id, report));
    }
    assert!(scheduler.remembers_nothing());
    verdicts.sort_by_key(|&(ticket, _)| ticket);
    let tickets: Vec<_> = verdicts.iter().map(|(ticket, _)| ticket.0).collect();
    assert_eq!(tickets, (0..u64::from(count)).collect::<Vec<_>>(), "each once");
    (verdicts.into_iter().map(|(_, verdict)| verdict).collect(), runs)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_culprits_fail_in_few_extra_runs(
        count in 1_u32..130, some in prop::collection::btree_set(0_u64..130, 0..6), memory in any::<bool>()
    ) {
        let culprits: BTreeSet<u64> = some.into_iter().filter(|&culprit| culprit < count.into()).collect();
        let failure = if memory { Outcome::OutOfMemory } else { Outcome::Failed };
        let (verdicts, runs) = run(count, &culprits, failure);
        for (ticket, verdict) in verdicts.into_iter().enumerate() {
            let guilty = culprits.contains(&(ticket as u64));
            prop_assert_eq!(verdict == Verdict::Failed, guilty, "#{} has {:?}", ticket, verdict);
        }
        // log2 is exact only for powers of two: an uneven half has one more level.
        let levels = count.next_power_of_two().ilog2();
        prop_assert!(runs - 1 <= 2 * culprits.len() as u32 * levels, "{} extra runs", runs - 1);
    }
}

#[test]
fn one_culprit_of_thirty_two_takes_ten_extra_runs() {
    let (verdicts, runs) = run(32, &BTreeSet::from([13]), Outcome::Failed);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Failed).count(), 1);
    assert_eq!(runs - 1, 10);
}

#[test]
fn everyone_a_culprit_takes_less_than_two_runs_each() {
    let (verdicts, runs) = run(32, &(0..32).collect(), Outcome::Failed);
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Failed));
    assert_eq!(runs, 63);
}
