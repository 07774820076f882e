//! The simulator: exact where the times can be worked out by hand or by theory, and never losing a request.

use std::time::Duration;

use proptest::prelude::*;

use crate::replay::Event;
use crate::sim::{
    Arrival, BatchTime, Lengths, Noise, Process, Recording, Report, Service, Trace, Traffic, simulate,
};
use crate::stats::Histogram;
use crate::{
    BatchId, BatchReport, BreakerConfig, BucketConfig, Dispatch, Entry, InstanceId, Isolation, Mode,
    OptimizationTarget, PaddingStrategy, Priority, Rejection, Scheduler, SchedulerConfig, Ticket, Time,
    Verdict,
};

const MS: Duration = Duration::from_millis(1);

fn at(ms: u64) -> Time {
    Time::ZERO + MS * ms as u32
}

fn arrival(ms: u64) -> Arrival {
    Arrival { at: at(ms), cost: 1, ..Arrival::default() }
}

fn arrivals(times: &[u64]) -> Vec<Arrival> {
    times.iter().map(|&ms| arrival(ms)).collect()
}

fn run(config: SchedulerConfig, workload: Vec<Arrival>, service: Service) -> Report {
    let report = simulate(config, workload, service, |_| {});
    assert_conserved(&report);
    report
}

fn assert_conserved(report: &Report) {
    let refused: u64 = report.refused.values().sum();
    let ended = report.completed + refused + report.expired + report.failed + report.cancelled;
    assert_eq!(ended, report.requests, "{report:?}");
}

/// Batches of at most `size` that leave when they are full, or after 10 ms.
fn windowed(size: u32) -> SchedulerConfig {
    SchedulerConfig {
        dispatch: Dispatch::Window,
        max_batch_size: size,
        max_wait: 10 * MS,
        ..SchedulerConfig::default()
    }
}

fn close(seconds: f64, ms: f64) -> bool {
    (seconds * 1e3 - ms).abs() <= 0.01 * ms
}

#[test]
fn a_window_and_a_full_batch_take_the_time_that_they_should() {
    // 0 and 4 wait for the window of 0 to end at 10 and run until 15; 5, 6 and 7 are full at 7 and run after.
    let config = windowed(3);
    let report = run(config, arrivals(&[0, 4, 20, 21, 22]), Service::linear(5e-3, 0.0, 0.0));
    assert_eq!((report.completed, report.batches), (5, 2));
    assert_eq!(report.batch_sizes.into_iter().collect::<Vec<_>>(), [(2, 1), (3, 1)]);
    assert!(close(report.latency.max, 15.0) && close(report.wait.max, 10.0), "{:?}", report.latency);
    let mean = (15.0 + 11.0 + 7.0 + 6.0 + 5.0) / 5.0;
    assert!(close(report.latency.mean, mean), "{:?}", report.latency);
    assert!(close(report.seconds, 27.0) && (report.throughput - 5.0 / 27e-3).abs() < 1e-6);
    assert!((report.utilization - 10.0 / 27.0).abs() < 1e-9, "{}", report.utilization);
    assert!(close(report.device_seconds_per_item, 2.0));
}

#[test]
fn several_instances_run_side_by_side() {
    let config = SchedulerConfig { instances: 2, ..windowed(1) };
    let report = run(config, arrivals(&[0, 0, 0, 0]), Service::linear(10e-3, 0.0, 0.0));
    assert!(close(report.seconds, 20.0) && (report.utilization - 1.0).abs() < 1e-9, "{report:?}");
}

#[test]
fn a_queue_of_constant_service_waits_as_theory_says() {
    // Pollaczek and Khinchine: the mean wait of M/D/1 is load * service / (2 * (1 - load)).
    let config = SchedulerConfig { max_batch_size: 1, ..SchedulerConfig::default() };
    let traffic = Traffic::new(Process::Poisson { rate: 700.0 });
    let report = run(config, traffic.arrivals().take(300_000).collect(), Service::linear(1e-3, 0.0, 0.0));
    let expected = 0.7 * 1e-3 / (2.0 * 0.3);
    assert!((report.wait.mean / expected - 1.0).abs() < 0.05, "{} for {expected}", report.wait.mean);
    assert!((report.utilization - 0.7).abs() < 0.01, "{}", report.utilization);
}

#[test]
fn what_expires_is_counted_when_it_does_and_its_place_is_free_again() {
    let late = |ms| Arrival { timeout: Some(5 * MS), ..arrival(ms) };
    let config = SchedulerConfig { max_queue_size: 1, ..windowed(1) };
    // The first runs until 100; the second expires at 6, so the third (at 7) is let in, the fourth not.
    let workload = vec![arrival(0), late(1), arrival(7), arrival(8)];
    let report = run(config, workload, Service::linear(0.1, 0.0, 0.0));
    assert_eq!((report.completed, report.expired), (2, 1));
    assert_eq!(report.refused.into_iter().collect::<Vec<_>>(), [("queue_full", 1)]);
}

#[test]
fn who_loses_patience_is_cancelled_unless_answered_before() {
    let impatient = |ms| Arrival { patience: Some(20 * MS), ..arrival(ms) };
    let report =
        run(windowed(1), vec![impatient(0), impatient(1), impatient(2)], Service::linear(0.015, 0.0, 0.0));
    // The first ends at 15, the second would at 30 and the third at 36, having waited until 30.
    assert_eq!((report.completed, report.cancelled, report.batches), (1, 2, 2));
}

#[test]
fn bisecting_answers_more_than_failing_whole_batches() {
    let traffic = Traffic { seed: 1, ..Traffic::new(Process::Poisson { rate: 1000.0 }) };
    let report = |isolation| {
        let config = SchedulerConfig { isolation, ..windowed(8) };
        let service = Service { failures: 0.1, ..Service::linear(1e-3, 0.0, 0.0) };
        run(config, traffic.arrivals().take(10_000).collect(), service)
    };
    let (none, bisect) = (report(Isolation::None), report(Isolation::Bisect));
    let lost = none.failed as f64 / 10_000.0;
    assert!((lost - 0.1).abs() < 0.02, "{none:?}");
    assert!(bisect.failed * 4 < none.failed && bisect.batches > none.batches, "{bisect:?}");
}

#[test]
fn padding_is_what_is_computed_beyond_the_lengths() {
    let sized = |length| Arrival { cost: length, seq_len: length, ..arrival(0) };
    let report = run(windowed(3), vec![sized(10), sized(20), sized(30)], Service::linear(0.0, 0.0, 1e-3));
    assert!((report.padding_ratio - 30.0 / 90.0).abs() < 1e-9 && close(report.seconds, 90.0), "{report:?}");
}

#[test]
fn every_process_comes_at_its_mean_rate() {
    let period = Duration::from_secs(2);
    for process in [
        Process::Poisson { rate: 100.0 },
        Process::Bursty { rate: 100.0, factor: 8.0, period },
        Process::Diurnal { rate: 100.0, swing: 1.0, period },
    ] {
        let end = Time::ZERO + Duration::from_secs(4_000);
        let arrivals = Traffic::new(process).arrivals().take_while(|arrival| arrival.at < end);
        let rate = arrivals.count() as f64 / 4_000.0;
        assert!((rate / 100.0 - 1.0).abs() < 0.05, "{process:?}: {rate}");
    }
}

/// Variance over mean of the arrivals in each tenth of a second: 1 for a Poisson process.
fn dispersion(process: Process) -> f64 {
    let mut counts = vec![0.0_f64; 10_000];
    for arrival in Traffic::new(process).arrivals() {
        let Some(count) = counts.get_mut((arrival.at.as_nanos() / 100_000_000) as usize) else { break };
        *count += 1.0;
    }
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64 / mean
}

#[test]
fn bursts_are_bursts_and_independent_arrivals_are_not() {
    let period = Duration::from_secs(2);
    let poisson = dispersion(Process::Poisson { rate: 100.0 });
    assert!((poisson - 1.0).abs() < 0.1, "{poisson}");
    let none = dispersion(Process::Bursty { rate: 100.0, factor: 1.0, period });
    assert!((none - 1.0).abs() < 0.1, "{none}");
    let bursty = dispersion(Process::Bursty { rate: 100.0, factor: 8.0, period });
    assert!(bursty > 5.0, "{bursty}");
}

#[test]
fn a_day_has_its_rush_in_its_first_half() {
    let process = Process::Diurnal { rate: 1000.0, swing: 0.8, period: Duration::from_secs(10) };
    let arrivals = Traffic::new(process).arrivals().take_while(|arrival| arrival.at < at(10_000));
    let (rush, rest): (Vec<_>, Vec<_>) = arrivals.partition(|arrival| arrival.at < at(5_000));
    // The mean of a sine over its positive half.
    let more = 0.8 * std::f64::consts::FRAC_2_PI;
    let expected = (1.0 + more) / (1.0 - more);
    let ratio = rush.len() as f64 / rest.len() as f64;
    assert!((ratio / expected - 1.0).abs() < 0.1, "{ratio} for {expected}");
}

#[test]
fn requests_are_as_mixed_as_they_should_be() {
    let traffic = Traffic {
        lengths: Lengths::Skewed(16, 256),
        padded: true,
        priorities: [1.0, 7.0, 0.0, 2.0],
        clients: 4,
        timeout: Some(MS),
        ..Traffic::new(Process::Poisson { rate: 1.0 })
    };
    let drawn: Vec<_> = traffic.arrivals().take(20_000).collect();
    let share = |holds: &dyn Fn(&Arrival) -> bool| {
        drawn.iter().filter(|arrival| holds(arrival)).count() as f64 / drawn.len() as f64
    };
    let near = |share: f64, expected: f64| (share - expected).abs() < 0.02;
    assert!(drawn.iter().all(|one| (16..=256).contains(&one.cost) && one.seq_len == one.cost));
    // Four doublings, each as likely.
    assert!(near(share(&|one| one.cost < 32), 0.25) && near(share(&|one| one.cost < 64), 0.5));
    assert!(share(&|one| one.cost == 256) > 0.0 && share(&|one| one.cost == 16) > 0.0);
    for (priority, expected) in
        [(Priority::Low, 0.1), (Priority::Normal, 0.7), (Priority::High, 0.0), (Priority::Critical, 0.2)]
    {
        assert!(near(share(&|one| one.priority == priority), expected), "{priority:?}");
    }
    assert!((0..4).all(|client| near(share(&|one| one.client.0 == client), 0.25)));
    assert!(drawn.iter().all(|one| one.timeout == Some(MS)));
}

/// A server by hand: its scheduler's log, with batches of 10 ms and 1 ms an item.
fn recorded(config: SchedulerConfig, workload: &[Arrival]) -> Vec<Event> {
    let mut scheduler = Scheduler::new(config.clone());
    let mut log = vec![Event::Start { config }];
    let mut busy: Option<(Time, BatchId, Duration)> = None;
    let mut next = workload.iter().zip(0..).peekable();
    let mut now = Time::ZERO;
    loop {
        if let Some((end, batch, took)) = busy.filter(|(end, ..)| *end <= now) {
            now = end;
            let report = BatchReport { outcome: crate::Outcome::Completed, busy: took, peak_bytes: None };
            let verdicts = scheduler.complete(now, batch, report);
            log.push(Event::Complete { now, batch, report, verdicts });
            busy = None;
        }
        while let Some((arrival, ticket)) = next.next_if(|(arrival, _)| arrival.at <= now) {
            let deadline = arrival.timeout.map(|timeout| now + timeout);
            let (ticket, cost) = (Ticket(ticket), arrival.cost);
            let entry = Entry { ticket, cost, deadline, arrived: now, ..Entry::default() };
            let rejection: Option<Rejection> = scheduler.submit(now, entry.clone()).err();
            log.push(Event::Submit { now, entry, rejection });
        }
        let (verdicts, deadline) = scheduler.expire(now);
        if !verdicts.is_empty() {
            log.push(Event::Expire { now, verdicts });
        }
        let mut wake = None;
        if busy.is_none() {
            let planned = scheduler.plan(now, InstanceId(0), u64::MAX);
            log.push(Event::plan(now, InstanceId(0), u64::MAX, &planned));
            match planned.next {
                crate::Next::Run(batch) => {
                    let took = MS * (10 + batch.entries.len() as u32);
                    busy = Some((now + took, batch.id, took));
                }
                crate::Next::WaitUntil(at) => wake = Some(at),
                crate::Next::Idle => {}
            }
        }
        let soonest = next.peek().map(|(arrival, _)| arrival.at);
        match [soonest, wake, deadline, busy.map(|(end, ..)| end)].into_iter().flatten().min() {
            Some(time) => now = time,
            None => return log,
        }
    }
}

fn read(log: Vec<Event>) -> Option<Trace> {
    let mut recording = Recording::new();
    log.into_iter().for_each(|event| recording.read(event));
    recording.finish()
}

#[test]
fn a_recorded_run_simulated_again_comes_to_the_same() {
    let config = SchedulerConfig { max_batch_size: 4, max_queue_size: 9, ..SchedulerConfig::default() };
    let traffic = Traffic {
        timeout: Some(50 * MS),
        ..Traffic::new(Process::Bursty { rate: 250.0, factor: 3.0, period: 300 * MS })
    };
    let workload: Vec<_> = traffic.arrivals().take(2_000).collect();
    let trace = read(recorded(config.clone(), &workload)).expect("requests");
    assert_eq!(trace.config, config);
    let gaps = |arrivals: &[Arrival]| -> Vec<_> {
        arrivals.windows(2).map(|pair| pair[1].at.since(pair[0].at)).collect()
    };
    assert_eq!(gaps(&trace.arrivals), gaps(&workload));
    assert_conserved(&trace.report);
    let (a, b, c) = trace.fit();
    let time = |items: f64| a + (b + c) * items;
    assert!(close(time(1.0), 11.0) && close(time(4.0), 14.0), "{a} {b} {c}");

    let again = run(config, trace.arrivals.clone(), trace.service(0).expect("batches"));
    assert!(trace.report.refused["queue_full"] > 0, "{:?}", trace.report);
    let near = |this: f64, that: f64| (this / that - 1.0).abs() < 0.02;
    assert!(near(again.mean_batch_size, trace.report.mean_batch_size), "{again:?} {:?}", trace.report);
    assert!(near(again.latency.p95, trace.report.latency.p95), "{again:?} {:?}", trace.report);
    assert!(near(again.completed as f64, trace.report.completed as f64), "{again:?}");
}

#[test]
fn a_log_that_starts_again_is_what_comes_after() {
    let first = recorded(windowed(1), &arrivals(&[0, 1]));
    let second = recorded(windowed(2), &arrivals(&[7, 8, 9]));
    let trace = read([first, second].concat()).expect("requests");
    assert_eq!((trace.config.max_batch_size, trace.arrivals.len(), trace.arrivals[0].at), (2, 3, Time::ZERO));
    assert!(read(vec![Event::Drain]).is_none());
}

#[test]
fn a_caller_that_left_leaves_again_after_as_long() {
    let entry = |ticket| Entry { ticket: Ticket(ticket), cost: 1, arrived: at(5), ..Entry::default() };
    let log = vec![
        Event::Start { config: windowed(2) },
        Event::Submit { now: at(5), entry: entry(0), rejection: None },
        Event::Submit { now: at(5), entry: entry(1), rejection: Some(Rejection::Draining) },
        Event::Cancel { now: at(9), ticket: Ticket(0) },
        Event::Expire { now: at(10), verdicts: vec![(Ticket(0), Verdict::ExpiredInQueue)] },
    ];
    let trace = read(log).expect("requests");
    assert_eq!(trace.arrivals[0].patience, Some(4 * MS));
    assert_eq!(trace.arrivals[1].patience, None);
    assert_eq!((trace.report.cancelled, trace.report.expired, trace.report.refused["draining"]), (1, 0, 1));
    assert!(trace.service(0).is_none());
}

fn modes() -> impl Strategy<Value = SchedulerConfig> {
    let mode = prop_oneof![Just(Mode::Fixed), Just(Mode::Dynamic), Just(Mode::Adaptive)];
    let strategy = prop_oneof![
        Just(PaddingStrategy::Minimal),
        Just(PaddingStrategy::Maximum),
        Just(PaddingStrategy::None),
        Just(PaddingStrategy::Dynamic)
    ];
    let target = prop_oneof![
        Just(OptimizationTarget::Throughput),
        Just(OptimizationTarget::Latency),
        Just(OptimizationTarget::Balanced),
        Just(OptimizationTarget::Cost)
    ];
    let limits = (1..3_u32, 1..12_u32, 0..4_u32, 0..30_u64, 4..200_u32, proptest::option::of(20..400_u64));
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (mode, strategy, target, limits, switches).prop_map(|(mode, strategy, target, limits, switches)| {
        let (instances, size, least, wait, queue, cost) = limits;
        let (window, bisect, breaker, slo, buckets) = switches;
        SchedulerConfig {
            mode,
            dispatch: if window { Dispatch::Window } else { Dispatch::Eager },
            isolation: if bisect { Isolation::Bisect } else { Isolation::None },
            instances,
            max_batch_size: size,
            min_batch_size: least,
            max_batch_cost: cost,
            max_wait: MS * wait as u32,
            max_queue_size: queue,
            optimization_target: target,
            latency_slo: slo.then_some(20 * MS),
            ageing: Some(50 * MS),
            buckets: BucketConfig { enabled: buckets, strategy, ..BucketConfig::default() },
            breaker: breaker.then(|| BreakerConfig { open: 50 * MS, ..BreakerConfig::default() }),
            ..SchedulerConfig::default()
        }
    })
}

fn workloads() -> impl Strategy<Value = Vec<Arrival>> {
    let process = (50.0..3_000.0_f64, 0..3_u8).prop_map(|(rate, kind)| match kind {
        0 => Process::Poisson { rate },
        1 => Process::Bursty { rate, factor: 5.0, period: 100 * MS },
        _ => Process::Diurnal { rate, swing: 0.9, period: 200 * MS },
    });
    let timeout = proptest::option::of((1..60_u32).prop_map(|ms| MS * ms));
    let patience = proptest::option::of(1..60_u32);
    (process, any::<u64>(), any::<bool>(), timeout, patience, 0..400_usize).prop_map(
        |(process, seed, padded, timeout, patience, count)| {
            let priorities = [1.0, 2.0, 1.0, 1.0];
            let lengths = Lengths::Skewed(1, 64);
            let traffic = Traffic { process, lengths, padded, priorities, clients: 3, timeout, seed };
            let every = |(arrival, index): (Arrival, u32)| Arrival {
                patience: patience.filter(|_| index % 3 == 0).map(|ms| MS * ms),
                ..arrival
            };
            traffic.arrivals().zip(0..).take(count).map(every).collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_once_and_the_same_seed_gives_the_same_report(
        config in modes(), workload in workloads(), failures in prop_oneof![Just(0.0), 0.0..0.5], sigma in 0.0..1.0_f64, seed in any::<u64>(),
    ) {
        let time = BatchTime::Linear { a: 2e-3, b: 1e-4, c: 1e-5 };
        let service = Service { time, noise: Noise::LogNormal(sigma), failures, seed };
        let report = run(config.clone(), workload.clone(), service.clone());
        prop_assert_eq!(report.requests, workload.len() as u64);
        let items: u64 = report.batch_sizes.iter().map(|(size, batches)| u64::from(*size) * batches).sum();
        prop_assert!(items >= report.completed && report.wait.count == items);
        prop_assert!(report.batch_sizes.keys().all(|&size| size >= 1 && size <= config.max_batch_size));
        prop_assert!((0.0..=1.0).contains(&report.padding_ratio));
        prop_assert!((0.0..=1.0 + 1e-9).contains(&report.utilization), "{}", report.utilization);
        prop_assert_eq!(run(config, workload, service), report);
    }

    #[test]
    fn percentiles_are_within_one_percent(mut nanos in proptest::collection::vec(0..u64::MAX, 1..300), shift in 0..60_u32) {
        nanos.iter_mut().for_each(|nanos| *nanos >>= shift);
        let mut histogram = Histogram::default();
        nanos.iter().for_each(|&nanos| histogram.record(nanos));
        nanos.sort_unstable();
        let found = histogram.distribution(1e-9);
        for (part, seconds) in [(0.5, found.p50), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99), (1.0, found.max)] {
            let rank = (part * nanos.len() as f64).ceil() as usize;
            let exact = nanos[rank - 1] as f64 / 1e9;
            prop_assert!((seconds - exact).abs() <= 0.01 * exact, "{part}: {seconds} for {exact}");
        }
    }
}
