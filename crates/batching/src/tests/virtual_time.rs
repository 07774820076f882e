//! A model of known speed behind a scheduler, in virtual time.

use std::time::Duration;

use crate::scheduler::{Batch, BatchReport, Next, Outcome, Scheduler, SchedulerConfig};
use crate::time::Time;
use crate::{BatchId, Entry, InstanceId, Snapshot, Suggestion, Ticket};

/// A request that comes at an instant, in nanoseconds, with a length of 0 for none.
pub(super) type Arrival = (u64, u32);

/// A model, and who asks it.
pub(super) struct World {
    /// Seconds of a batch before its first item, for each item, and for each padded token.
    pub(super) seconds: [f64; 3],
    /// Bytes for each padded token (item, where nothing is padded).
    pub(super) bytes: u64,
    pub(super) arrivals: Vec<Arrival>,
}

/// What came of it.
pub(super) struct Run {
    pub(super) stats: Snapshot,
    pub(super) advice: Vec<Suggestion>,
    pub(super) device_seconds: f64,
    pub(super) items: f64,
}

/// Numbers that look random and are the same each time (Knuth's MMIX generator).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// From 0 to 1, neither included.
    pub(super) fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }
}

/// Poisson arrivals of `rate` a second for `seconds`, each with a length.
pub(super) fn poisson(rate: f64, seconds: f64, mut length: impl FnMut(f64) -> u32) -> Vec<Arrival> {
    let mut dice = Dice(7);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at += -dice.roll().ln() / rate;
        (at < seconds).then(|| ((at * 1e9) as u64, length(dice.roll())))
    })
    .collect()
}

impl World {
    /// Runs until the last arrival.
    pub(super) fn run(&self, config: &SchedulerConfig) -> Run {
        let mut scheduler = Scheduler::new(config.clone());
        let mut instances: Vec<Option<(u64, BatchId, BatchReport)>> = vec![None; config.instances as usize];
        let (mut device_seconds, mut items) = (0.0, 0.0);
        let mut arrivals = self.arrivals.iter().enumerate().peekable();
        let mut wake = u64::MAX;
        let mut now = 0;
        while let Some(&(number, &(at, seq_len))) = arrivals.peek() {
            let ends = instances.iter().flatten().map(|(end, ..)| *end).min().unwrap_or(u64::MAX);
            now = at.min(ends).min(wake).max(now);
            let time = Time::from_nanos(now);
            if at == now {
                let entry = Entry {
                    ticket: Ticket(number as u64),
                    cost: seq_len.max(1),
                    seq_len,
                    arrived: time,
                    ..Entry::default()
                };
                drop(scheduler.submit(time, entry));
                arrivals.next();
            }
            for slot in &mut instances {
                if let Some((_, id, report)) = slot.take_if(|(end, ..)| *end <= now) {
                    scheduler.complete(time, id, report);
                }
            }
            wake = u64::MAX;
            for (number, slot) in instances.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
                match scheduler.plan(time, InstanceId(number as u32), u64::MAX).next {
                    Next::Idle => {}
                    Next::WaitUntil(at) => wake = wake.min(at.as_nanos()),
                    Next::Run(batch) => {
                        let report = self.runs(&batch);
                        device_seconds += report.busy.as_secs_f64();
                        items += batch.entries.len() as f64;
                        *slot = Some((now + report.busy.as_nanos() as u64, batch.id, report));
                    }
                }
            }
        }
        let now = Time::from_nanos(now);
        Run { stats: scheduler.stats(now), advice: scheduler.advice(now), device_seconds, items }
    }

    fn runs(&self, batch: &Batch) -> BatchReport {
        let [a, b, c] = self.seconds;
        let seconds = a + b * batch.entries.len() as f64 + c * batch.elements as f64;
        BatchReport {
            outcome: Outcome::Completed,
            busy: Duration::from_secs_f64(seconds),
            peak_bytes: (self.bytes > 0).then_some(self.bytes * batch.elements),
        }
    }
}
