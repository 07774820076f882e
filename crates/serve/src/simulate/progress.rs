//! How far a simulation is, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Times between two looks.
const EVERY: Duration = Duration::from_millis(100);
const WIDTH: usize = 30;

/// A bar on standard error while that is a terminal; nothing elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    total: u64,
    started: Instant,
    last: Instant,
}

impl Progress {
    /// `total`: about how many requests there will be.
    pub(super) fn new(total: u64) -> Self {
        let now = Instant::now();
        Self { shown: io::stderr().is_terminal(), total: total.max(1), started: now, last: now }
    }

    pub(super) fn at(&mut self, requests: u64) {
        if self.shown && self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.write(&format!("\r{}\x1b[K", bar(requests, self.total, self.started.elapsed())));
        }
    }

    /// Removes the bar, and says how fast it went.
    pub(super) fn end(&mut self, requests: u64) {
        if self.shown {
            let seconds = self.started.elapsed().as_secs_f64();
            let rate = requests as f64 / seconds.max(1e-9);
            self.write(&format!("\r\x1b[Ksimulated {requests} requests in {seconds:.2} s, {rate:.0}/s\n"));
        }
    }

    fn write(&self, text: &str) {
        // A terminal that is gone needs no bar.
        drop(io::stderr().write_all(text.as_bytes()));
    }
}

fn bar(requests: u64, total: u64, passed: Duration) -> String {
    let part = (requests as f64 / total as f64).min(1.0);
    let full = (part * WIDTH as f64) as usize;
    let rate = requests as f64 / passed.as_secs_f64().max(1e-9);
    let left = total.saturating_sub(requests) as f64 / rate.max(1e-9);
    let (full, rest) = ("#".repeat(full), "-".repeat(WIDTH - full));
    format!("[{full}{rest}] {:3.0} %  {requests} requests, {rate:.0}/s, {left:.0} s left", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_how_fast_and_how_long() {
        let half = bar(500, 1000, Duration::from_secs(5));
        assert_eq!(half, format!("[{0:#<15}{0:-<15}]  50 %  500 requests, 100/s, 5 s left", ""));
        let over = bar(1500, 1000, Duration::from_secs(5));
        assert!(
            over.starts_with(&format!("[{}] 100 %", "#".repeat(30))) && over.ends_with("0 s left"),
            "{over}"
        );
    }
}
