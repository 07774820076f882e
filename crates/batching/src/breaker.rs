//! The circuit breaker of one model version: a model that fails again and again is left alone for a while.
//!
//! Only failures in a row count, so that a caller whose inputs always fail, among others whose inputs do
//! not, is no outage. After a pause one request probes the model, and its outcome decides for all.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entry::Ticket;
use crate::time::Time;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerConfig {
    /// Failures in a row that open it; 0: it never opens. Also bounds what the breaker remembers.
    pub failures: u32,
    /// The time within which they must lie: older ones are no sign of how the model is now.
    pub window: Duration,
    /// How long it stays open before a request may probe, and how long a probe holds back the next one.
    pub open: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 5, window: Duration::from_secs(10), open: Duration::from_secs(10) }
    }
}

/// What callers and operators see of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Requests are refused.
    Open {
        /// When a request may probe.
        until: Time,
    },
    /// One request probes, or the next one will; the others are refused.
    HalfOpen,
}

impl BreakerState {
    /// How long it stays open; `None` where it is not.
    pub fn pause(self, now: Time) -> Option<Duration> {
        match self {
            BreakerState::Open { until } => Some(until.since(now)),
            BreakerState::Closed | BreakerState::HalfOpen => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Half-open from `until` on: reading the state must change nothing.
    Open {
        until: Time,
    },
    /// `until`: when the next may probe although this one has not ended. Without it a probe that is stuck
    /// in a stalled instance would keep the breaker half-open for ever.
    Probing {
        probe: Ticket,
        until: Time,
    },
}

/// Counts the failures of a model version, and says whether a request may pass.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    phase: Phase,
    /// The failures since the last success, oldest first, none older than the window.
    recent: VecDeque<Time>,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, phase: Phase::Closed, recent: VecDeque::new() }
    }

    /// Its state at `now`.
    pub fn state(&self, now: Time) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open { until },
            Phase::Open { .. } | Phase::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether `ticket` may pass; it becomes the probe when the breaker is half-open and has none.
    ///
    /// # Errors
    /// How long until the next probe may be tried.
    pub fn admit(&mut self, now: Time, ticket: Ticket) -> Result<(), Duration> {
        match self.phase {
            Phase::Closed => Ok(()),
            Phase::Open { until } | Phase::Probing { until, .. } if now < until => Err(until.since(now)),
            Phase::Open { .. } | Phase::Probing { .. } => {
                self.phase = Phase::Probing { probe: ticket, until: now + self.config.open };
                Ok(())
            }
        }
    }

    /// The model failed. While open this tells nothing new: the batch left before the breaker opened.
    pub fn failed(&mut self, now: Time) {
        match self.state(now) {
            BreakerState::Closed if self.config.failures == 0 => {}
            BreakerState::Closed => {
                let window = self.config.window;
                self.recent.retain(|failure| now.since(*failure) <= window);
                self.recent.push_back(now);
                if self.recent.len() >= self.config.failures as usize {
                    self.trip(now);
                }
            }
            BreakerState::Open { .. } => {}
            BreakerState::HalfOpen => self.trip(now),
        }
    }

    /// The model gave results. While open this is ignored, like a late failure.
    pub fn succeeded(&mut self, now: Time) {
        if !matches!(self.state(now), BreakerState::Open { .. }) {
            self.reset();
        }
    }

    /// `ticket` ended without running (cancelled, expired): where it was the probe, the next may probe.
    pub fn ended(&mut self, ticket: Ticket) {
        if matches!(self.phase, Phase::Probing { probe, .. } if probe == ticket) {
            self.phase = Phase::Open { until: Time::ZERO };
        }
    }

    /// Closes it and forgets every failure: an operator's word, or a success.
    pub fn reset(&mut self) {
        self.phase = Phase::Closed;
        self.recent.clear();
    }

    fn trip(&mut self, now: Time) {
        self.phase = Phase::Open { until: now + self.config.open };
        self.recent.clear();
    }
}
