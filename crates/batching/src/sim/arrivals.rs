//! When requests come, and what they are like: laws of chance with a seed.

use std::f64::consts::TAU;
use std::time::Duration;

use super::random::Random;
use crate::entry::{ClientId, Priority, ShapeKey};
use crate::time::Time;

/// One request before it is submitted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrival {
    /// When it is submitted; one that lies before the last is submitted with it.
    pub at: Time,
    /// See [`crate::Entry::client`].
    pub client: ClientId,
    /// See [`crate::Entry::cost`].
    pub cost: u32,
    /// See [`crate::Entry::seq_len`].
    pub seq_len: u32,
    /// See [`crate::Entry::bytes`].
    pub bytes: u64,
    /// See [`crate::Entry::shape`].
    pub shape: ShapeKey,
    /// See [`crate::Entry::priority`].
    pub priority: Priority,
    /// From its arrival to its deadline; `None`: it has none.
    pub timeout: Option<Duration>,
    /// From its arrival until its caller leaves, if there is no answer by then; `None`: never.
    pub patience: Option<Duration>,
}

/// A law by which requests come. Rates are means in requests a second; they and periods are above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Process {
    /// Each independent of the others.
    Poisson {
        /// The rate.
        rate: f64,
    },
    /// A Poisson process of two rates, between which chance switches (Markov-modulated): half of all
    /// requests come in bursts.
    Bursty {
        /// The mean rate, over bursts and pauses.
        rate: f64,
        /// The rate in a burst, as a multiple of the mean; at least 1.
        factor: f64,
        /// The mean time from the beginning of a burst to that of the next.
        period: Duration,
    },
    /// A Poisson process whose rate follows a sine.
    Diurnal {
        /// The mean rate, over a whole period.
        rate: f64,
        /// How far the rate swings, as a part of the mean: 0 to 1.
        swing: f64,
        /// From one peak to the next; the rate begins at the mean and rises.
        period: Duration,
    },
}

/// The share of requests that come in bursts.
const IN_BURSTS: f64 = 0.5;

/// The times at which a [`Process`] lets requests come, in seconds.
#[derive(Debug, Clone)]
struct Times {
    process: Process,
    random: Random,
    now: f64,
    burst: bool,
    /// When the burst, or the pause between two, ends.
    switch: f64,
}

impl Times {
    fn new(process: Process, random: Random) -> Self {
        Self { process, random, now: 0.0, burst: true, switch: 0.0 }
    }

    fn next(&mut self) -> f64 {
        match self.process {
            Process::Poisson { rate } => self.now += self.random.exponential(1.0 / rate),
            Process::Bursty { rate, factor, period } => self.bursty(rate, factor.max(1.0), period),
            Process::Diurnal { rate, swing, period } => self.diurnal(rate, swing.clamp(0.0, 1.0), period),
        }
        self.now
    }

    fn bursty(&mut self, rate: f64, factor: f64, period: Duration) {
        let share = IN_BURSTS / factor;
        let quiet = rate * (1.0 - IN_BURSTS) / (1.0 - share);
        loop {
            if self.now >= self.switch {
                self.burst = !self.burst;
                let part = if self.burst { share } else { 1.0 - share };
                self.switch = self.now + self.random.exponential(period.as_secs_f64() * part);
            }
            let rate = if self.burst { factor * rate } else { quiet };
            let next = self.now + self.random.exponential(1.0 / rate);
            // What was drawn past the switch is drawn again: an exponential law has no memory.
            self.now = next.min(self.switch);
            if next < self.switch {
                return;
            }
        }
    }

    /// By thinning (Lewis and Shedler, 1979).
    fn diurnal(&mut self, rate: f64, swing: f64, period: Duration) {
        let peak = rate * (1.0 + swing);
        loop {
            self.now += self.random.exponential(1.0 / peak);
            let here = rate * (1.0 + swing * (TAU * self.now / period.as_secs_f64()).sin());
            if self.random.unit() * peak < here {
                return;
            }
        }
    }
}

/// How long requests are, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// Every request is one item without a length.
    Items,
    /// Each length from the first to the last is as likely.
    Uniform(u32, u32),
    /// Most are short: every doubling of the length is as likely, from the first to the last.
    Skewed(u32, u32),
}

impl Lengths {
    fn draw(self, random: &mut Random) -> u32 {
        match self {
            Lengths::Items => 1,
            Lengths::Uniform(least, most) => {
                let span = u64::from(most.saturating_sub(least)) + 1;
                least.saturating_add(random.below(span) as u32)
            }
            Lengths::Skewed(least, most) => {
                let (from, to) = (f64::from(least.max(1)), f64::from(most) + 1.0);
                ((from * (to / from).powf(random.unit())) as u32).clamp(least, most.max(least))
            }
        }
    }
}

/// Requests by chance.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// When they come.
    pub process: Process,
    /// How long they are.
    pub lengths: Lengths,
    /// Whether the model pads a batch to its longest; where not, a length is only a cost.
    pub padded: bool,
    /// How often each priority occurs, lowest first, in proportion; all 0: all are normal.
    pub priorities: [f64; Priority::COUNT],
    /// Callers, each as active as the others; at least 1.
    pub clients: u64,
    /// See [`Arrival::timeout`].
    pub timeout: Option<Duration>,
    /// The same seed gives the same requests.
    pub seed: u64,
}

impl Traffic {
    /// Normal requests of one item each, without deadlines.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            lengths: Lengths::Items,
            padded: false,
            priorities: [0.0; Priority::COUNT],
            clients: 1,
            timeout: None,
            seed: 0,
        }
    }

    /// All requests that ever come, in order; endless.
    pub fn arrivals(&self) -> impl Iterator<Item = Arrival> + use<> {
        let mut times = Times::new(self.process, Random::stream(self.seed, 1));
        let mut random = Random::stream(self.seed, 2);
        let traffic = self.clone();
        std::iter::repeat_with(move || {
            let at = Time::ZERO + Duration::try_from_secs_f64(times.next()).unwrap_or(Duration::MAX);
            let length = traffic.lengths.draw(&mut random);
            let has_length = traffic.padded && traffic.lengths != Lengths::Items;
            Arrival {
                at,
                client: ClientId(random.below(traffic.clients.max(1))),
                cost: length,
                seq_len: if has_length { length } else { 0 },
                priority: traffic.priority(&mut random),
                timeout: traffic.timeout,
                ..Arrival::default()
            }
        })
    }

    fn priority(&self, random: &mut Random) -> Priority {
        let sum: f64 = self.priorities.iter().sum();
        let mut left = random.unit() * sum;
        let lowest_first = Priority::DESCENDING.into_iter().rev().zip(self.priorities);
        for (priority, weight) in lowest_first {
            if left < weight {
                return priority;
            }
            left -= weight;
        }
        Priority::Normal
    }
}
