//! How fast requests arrive: the next one, and the next interval.

use std::time::Duration;

use crate::time::Time;

/// Arrivals that the expected gap is an average of.
const GAP_ARRIVALS: u32 = 16;
/// A gap counts as at most this many expected ones: the pause between two bursts is not their pace.
const GAP_CLIP: f64 = 8.0;
/// Gaps up to this many seconds always count in full, so that an estimate of zero can grow again.
const GAP_FLOOR: f64 = 1e-3;
/// The shortest expected gap as a rate: keeps the rate finite.
const RATE_MAX: f64 = 1e9;

/// Short-term estimate of the time until the next arrival.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ArrivalGap {
    last: Option<Time>,
    /// Running mean of the recent gaps, in seconds.
    mean: f64,
    /// Gaps seen, up to the number that the mean reaches back.
    seen: u32,
}

impl ArrivalGap {
    /// Counts `count` arrivals at `now`; the time since the last ones is shared between them.
    pub fn arrived(&mut self, now: Time, count: u32) {
        if count == 0 {
            return;
        }
        let Some(last) = self.last.replace(self.last.map_or(now, |last| last.max(now))) else {
            return;
        };
        let gap = now.since(last).as_secs_f64() / f64::from(count);
        if self.seen == 0 {
            self.mean = gap;
        } else {
            let gap = gap.min((GAP_CLIP * self.mean).max(GAP_FLOOR));
            // A plain mean of the first gaps, then an exponential one of about the last sixteen.
            let one = 1.0 / f64::from((self.seen + 1).min(GAP_ARRIVALS));
            let kept = match count {
                1 => 1.0 - one,
                _ => (1.0 - one).powi(i32::try_from(count).unwrap_or(i32::MAX)),
            };
            self.mean = kept * self.mean + (1.0 - kept) * gap;
        }
        self.seen = self.seen.saturating_add(count).min(GAP_ARRIVALS);
    }

    /// Expected time until the next arrival: the mean of the recent gaps, but never less than the
    /// silence so far, so that nobody waits for long once a burst is over. `None` before the first gap.
    pub fn expected(&self, now: Time) -> Option<Duration> {
        let last = self.last.filter(|_| self.seen > 0)?;
        Some(Duration::from_secs_f64(self.mean).max(now.since(last)))
    }

    /// Arrivals a second at that pace; 0 before the first gap.
    pub fn per_second(&self, now: Time) -> f64 {
        self.expected(now).map_or(0.0, |gap| (1.0 / gap.as_secs_f64()).min(RATE_MAX))
    }
}

/// Weights of the newest interval in the level, and of the newest change in the trend.
const LEVEL_RATE: f64 = 0.5;
const TREND_RATE: f64 = 0.2;
/// Empty intervals after which the past weighs nothing: 0.5^64.
const FORGOTTEN_INTERVALS: u64 = 64;

/// One-step prediction of the arrival rate over fixed intervals, by Holt's linear exponential
/// smoothing (Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", section 8.2).
#[derive(Debug, Clone, PartialEq)]
pub struct LoadForecast {
    interval: Duration,
    /// Where the interval under way began.
    start: Option<Time>,
    count: u64,
    /// Requests a second, and their change from one interval to the next; `None` before the first
    /// interval has ended.
    smoothed: Option<(f64, f64)>,
}

impl LoadForecast {
    /// A forecast over intervals of `interval` (at least a microsecond), the first of which begins
    /// at the first call.
    pub fn new(interval: Duration) -> Self {
        let interval = interval.max(Duration::from_micros(1));
        Self { interval, start: None, count: 0, smoothed: None }
    }

    /// Counts `count` arrivals at `now`.
    pub fn arrived(&mut self, now: Time, count: u32) {
        self.close_until(now);
        self.count = self.count.saturating_add(u64::from(count));
    }

    /// Requests a second expected in the next interval, never negative. Before the first interval has
    /// ended: the rate that it has at the least.
    pub fn forecast(&mut self, now: Time) -> f64 {
        self.close_until(now);
        self.smoothed.map_or_else(|| self.rate(), |(level, trend)| (level + trend).max(0.0))
    }

    /// Whether an interval has ended, so that the forecast rests on more than its beginning.
    pub fn is_ready(&self) -> bool {
        self.smoothed.is_some()
    }

    fn rate(&self) -> f64 {
        self.count as f64 / self.interval.as_secs_f64()
    }

    /// Ends every interval that lies before `now`.
    fn close_until(&mut self, now: Time) {
        let start = *self.start.get_or_insert(now);
        let nanos = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX);
        let ended = now.as_nanos().saturating_sub(start.as_nanos()) / nanos;
        if ended == 0 {
            return;
        }
        self.start = Some(Time::from_nanos(start.as_nanos() + ended * nanos));
        self.smooth(self.rate());
        self.count = 0;
        if ended > FORGOTTEN_INTERVALS {
            self.smoothed = Some((0.0, 0.0));
        } else {
            (1..ended).for_each(|_| self.smooth(0.0));
        }
    }

    fn smooth(&mut self, rate: f64) {
        self.smoothed = Some(match self.smoothed {
            None => (rate, 0.0),
            Some((level, trend)) => {
                // A falling trend must not push the level below zero: it would take as long to come back.
                let next = (LEVEL_RATE * rate + (1.0 - LEVEL_RATE) * (level + trend)).max(0.0);
                (next, TREND_RATE * (next - level) + (1.0 - TREND_RATE) * trend)
            }
        });
    }
}
