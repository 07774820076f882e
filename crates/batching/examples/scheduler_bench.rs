//! What one request costs the scheduler: submit, its part of a plan and of a complete, while many others wait.
//!
//! `cargo run --release -p trustformers-batching --example scheduler_bench [queued ...]`
//!
//! `steady`: as many come as leave, the queue stays as long as it is. `through`: the queue is filled from
//! empty, then run empty. Figures are nanoseconds of processor time a request, so that others who use the
//! machine count for little; the least of the repeats is what it can do when nobody does.

use std::time::{Duration, Instant};

use trustformers_batching::{
    BatchReport, ClientId, Entry, InstanceId, Next, Outcome, Priority, Scheduler, SchedulerConfig, Ticket,
    Time,
};

const BATCH: u64 = 32;
const REPEATS: usize = 15;

#[derive(Clone, Copy)]
enum Mix {
    /// One client, nearly all normal, every deadline 30 s after the arrival.
    Plain,
    /// 100 clients, four priorities, deadlines anywhere in a minute.
    Varied,
}

/// The source of requests, and the scheduler that they go to.
struct Bench {
    scheduler: Scheduler,
    mix: Mix,
    random: u64,
    ticket: u64,
    now: Time,
}

impl Bench {
    fn new(mix: Mix) -> Self {
        let scheduler = Scheduler::new(SchedulerConfig {
            max_batch_size: BATCH as u32,
            max_queue_size: u32::MAX,
            ageing: Some(Duration::from_secs(3600)),
            ..SchedulerConfig::default()
        });
        Self { scheduler, mix, random: 1, ticket: 0, now: Time::ZERO }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn submit(&mut self) {
        self.now = self.now + Duration::from_nanos(100);
        let (client, priority, timeout) = match self.mix {
            Mix::Plain => {
                let high = self.draw(100) == 0;
                (0, if high { Priority::High } else { Priority::Normal }, 30_000)
            }
            Mix::Varied => {
                let priority = Priority::DESCENDING[self.draw(4) as usize];
                (self.draw(100), priority, 10_000 + self.draw(60_000))
            }
        };
        let entry = Entry {
            ticket: Ticket(self.ticket),
            client: ClientId(client.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            cost: 1,
            priority,
            deadline: Some(self.now + Duration::from_millis(timeout)),
            arrived: self.now,
            ..Entry::default()
        };
        self.ticket += 1;
        assert!(self.scheduler.submit(self.now, entry).is_ok(), "nothing is refused");
    }

    fn fill(&mut self, queued: u64) {
        (0..queued).for_each(|_| self.submit());
    }

    /// Runs one batch; how many were in it.
    fn run(&mut self) -> u64 {
        let Next::Run(batch) = self.scheduler.plan(self.now, InstanceId(0), u64::MAX).next else { return 0 };
        let busy = Duration::from_nanos(1_000 * batch.elements + 10_000);
        let report = BatchReport { outcome: Outcome::Completed, busy, peak_bytes: None };
        self.scheduler.complete(self.now, batch.id, report).len() as u64
    }
}

/// Measures processor time where the system tells it (Linux), else time.
struct Stopwatch {
    began: Instant,
    processor: Option<u64>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { began: Instant::now(), processor: processor_nanos() }
    }

    /// Nanoseconds so far.
    fn read(&self) -> f64 {
        match (self.processor, processor_nanos()) {
            (Some(before), Some(after)) => (after - before) as f64,
            _ => self.began.elapsed().as_secs_f64() * 1e9,
        }
    }
}

fn processor_nanos() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
}

/// Nanoseconds a request, with `queued` waiting all the time.
fn steady(bench: &mut Bench, queued: u64) -> f64 {
    let batches = (queued / BATCH / 2).clamp(1_000, 10_000);
    let watch = Stopwatch::start();
    let mut requests = 0;
    for _ in 0..batches {
        // As many as leave: a batch with critical ones is not filled up with others.
        let left = bench.run();
        assert!(left > 0, "something waits");
        bench.fill(left);
        requests += left;
    }
    watch.read() / requests as f64
}

/// Nanoseconds a request, from the first submit to the last completion.
fn through(mix: Mix, queued: u64) -> f64 {
    let mut bench = Bench::new(mix);
    let watch = Stopwatch::start();
    bench.fill(queued);
    while bench.run() > 0 {}
    watch.read() / queued as f64
}

fn report(name: &str, queued: u64, mut figures: Vec<f64>) {
    figures.sort_unstable_by(f64::total_cmp);
    println!(
        "{name:16} {queued:>9} queued: median {:6.0} ns, least {:6.0} ns",
        figures[figures.len() / 2],
        figures[0]
    );
}

fn main() {
    let asked: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![1_000, 100_000, 1_000_000] } else { asked };
    for queued in sizes {
        for (mix, name) in [(Mix::Plain, "plain"), (Mix::Varied, "varied")] {
            let mut bench = Bench::new(mix);
            bench.fill(queued);
            let figures = (0..REPEATS).map(|_| steady(&mut bench, queued)).collect();
            report(&format!("{name} steady"), queued, figures);
            let figures = (0..REPEATS.min(5)).map(|_| through(mix, queued)).collect();
            report(&format!("{name} through"), queued, figures);
        }
    }
}
