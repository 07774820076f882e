//! What each optimization target is for: on one trace, each is best by its own measure.

use std::fmt::{Debug, Formatter, Result as Formatted};
use std::time::Duration;

use crate::{
    BatchReport, Entry, InstanceId, Next, OptimizationTarget, Outcome, Scheduler, SchedulerConfig, Ticket,
    Time,
};

const TARGETS: [OptimizationTarget; 4] = [
    OptimizationTarget::Throughput,
    OptimizationTarget::Latency,
    OptimizationTarget::Balanced,
    OptimizationTarget::Cost,
];

/// A launch, and each item: 32 in 20 ms, so 1,600 a second at most.
const LAUNCH: f64 = 4e-3;
const ITEM: f64 = 0.5e-3;
const CAPACITY: f64 = 1_600.0;
const SLO: Duration = Duration::from_millis(150);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn config(target: OptimizationTarget) -> SchedulerConfig {
    SchedulerConfig {
        max_batch_size: 32,
        max_wait: millis(50),
        optimization_target: target,
        latency_slo: Some(SLO),
        ..SchedulerConfig::default()
    }
}

/// Arrivals as a Poisson process whose rate changes: each phase is a share of the capacity, and seconds.
fn trace(seed: u64, phases: &[(f64, f64)]) -> Vec<Time> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    };
    let (mut arrivals, mut now, mut end) = (Vec::new(), 0.0, 0.0);
    for &(load, seconds) in phases {
        end += seconds;
        loop {
            let gap = -uniform().ln() / (load * CAPACITY);
            if now + gap > end {
                now = end;
                break;
            }
            now += gap;
            arrivals.push(Time::from_nanos((now * 1e9) as u64));
        }
    }
    arrivals
}

/// What a run came to, in seconds.
#[derive(Clone, Copy)]
struct Measures {
    mean: f64,
    p95: f64,
    longest: f64,
    /// Items a second of the time in which anything waited or ran: an idle second is no one's fault.
    throughput: f64,
    /// Device time an item.
    device: f64,
}

impl Debug for Measures {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        let Self { mean, p95, longest, throughput, device } = *self;
        write!(
            out,
            "mean {:6.2} ms, p95 {:6.2} ms, longest {:6.2} ms, {throughput:8.2} items/s, {:5.3} ms an item",
            mean * 1e3,
            p95 * 1e3,
            longest * 1e3,
            device * 1e3
        )
    }
}

/// Plays `arrivals` on one instance, in virtual time.
fn play(config: SchedulerConfig, arrivals: &[Time]) -> Measures {
    let mut scheduler = Scheduler::new(config);
    let mut latencies = Vec::new();
    let (mut now, mut next, mut device) = (Time::ZERO, 0, 0.0);
    let (mut occupied, mut since) = (0.0, arrivals[0]);
    let submit = |scheduler: &mut Scheduler, next: &mut usize, until: Time| {
        while let Some(&arrived) = arrivals.get(*next).filter(|&&at| at <= until) {
            let entry = Entry { ticket: Ticket(*next as u64), cost: 1, arrived, ..Entry::default() };
            scheduler.submit(arrived, entry).unwrap();
            *next += 1;
        }
    };
    loop {
        submit(&mut scheduler, &mut next, now);
        let arrival = arrivals.get(next).copied();
        now = match scheduler.plan(now, InstanceId(0), u64::MAX).next {
            Next::Run(batch) => {
                let seconds = LAUNCH + ITEM * batch.entries.len() as f64;
                let busy = Duration::from_secs_f64(seconds);
                device += seconds;
                submit(&mut scheduler, &mut next, now + busy);
                let report = BatchReport { outcome: Outcome::Completed, busy, peak_bytes: None };
                scheduler.complete(now + busy, batch.id, report);
                latencies.extend(batch.entries.iter().map(|it| (now + busy).since(it.arrived).as_secs_f64()));
                now + busy
            }
            Next::WaitUntil(at) => arrival.map_or(at, |arrival| arrival.min(at)),
            Next::Idle => {
                occupied += now.since(since).as_secs_f64();
                let Some(arrival) = arrival else { break };
                since = arrival;
                arrival
            }
        };
    }
    assert_eq!(latencies.len(), arrivals.len(), "everyone is answered");
    latencies.sort_unstable_by(f64::total_cmp);
    let count = latencies.len() as f64;
    Measures {
        mean: latencies.iter().sum::<f64>() / count,
        p95: latencies[(count * 0.95) as usize],
        longest: latencies[latencies.len() - 1],
        throughput: count / occupied,
        device: device / count,
    }
}

/// Bursts, each of about twelve items in a millisecond, then a steady load near the capacity; four times.
/// The bursts show what a batch that waits for all of it gains, the steady load what waiting costs.
fn bursty(seed: u64) -> Vec<Time> {
    let bursts = [(7.5, 1e-3), (0.0, 60e-3)].repeat(40);
    let steady = [(0.8, 1.6), (0.0, 50e-3)];
    trace(seed, &[&bursts[..], &steady].concat().repeat(4))
}

/// The target whose run has the least of something.
fn best(runs: &[(OptimizationTarget, Measures)], measure: impl Fn(&Measures) -> f64) -> OptimizationTarget {
    let least = runs.iter().min_by(|(_, a), (_, b)| measure(a).total_cmp(&measure(b)));
    least.expect("there are targets").0
}

#[test]
fn each_target_is_best_by_its_own_measure() {
    for seed in 1..=3 {
        let arrivals = bursty(seed);
        let runs: Vec<_> = TARGETS.map(|target| (target, play(config(target), &arrivals))).to_vec();
        let least = |measure: fn(&Measures) -> f64| {
            runs.iter().map(|(_, run)| measure(run)).fold(f64::INFINITY, f64::min)
        };
        let (mean, device) = (least(|run| run.mean), least(|run| run.device));
        let of = |measure: &dyn Fn(&Measures) -> f64| best(&runs, measure);
        assert_eq!(of(&|run| -run.throughput), OptimizationTarget::Throughput, "{runs:#?}");
        assert_eq!(of(&|run| run.mean), OptimizationTarget::Latency, "by the mean: {runs:#?}");
        assert_eq!(of(&|run| run.p95), OptimizationTarget::Latency, "by the p95: {runs:#?}");
        assert_eq!(of(&|run| run.device), OptimizationTarget::Cost, "{runs:#?}");
        let both = |run: &Measures| run.mean / mean + run.device / device;
        assert_eq!(of(&both), OptimizationTarget::Balanced, "{runs:#?}");
        for (target, run) in &runs {
            assert!(run.longest <= SLO.as_secs_f64(), "{target:?} breaks the objective: {run:?}");
        }
    }
}

#[test]
fn a_lone_request_at_a_low_rate_leaves_at_once_whatever_the_target() {
    let arrivals: Vec<_> = (0..100).map(|tenths| Time::from_nanos(tenths * 100_000_000)).collect();
    for target in TARGETS {
        let run = play(config(target), &arrivals);
        assert!((run.longest - LAUNCH - ITEM).abs() < 1e-6, "{target:?}: {run:?}");
    }
}

#[test]
fn a_smallest_batch_strands_nobody() {
    let alone = LAUNCH + ITEM;
    for target in TARGETS {
        let least = SchedulerConfig { min_batch_size: 8, ..config(target) };
        let arrivals: Vec<_> = (0..100).map(|tenths| Time::from_nanos(tenths * 100_000_000)).collect();
        let run = play(least.clone(), &arrivals);
        assert!((run.longest - alone - least.max_wait.as_secs_f64()).abs() < 1e-6, "{target:?}: {run:?}");
        // Where enough come, nobody waits for the end of the window; the last few of all may.
        let run = play(least, &trace(1, &[(0.9, 5.0)]));
        assert!(run.p95 < 0.05, "{target:?}: {run:?}");
    }
}
