//! How busy an instance was of late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back it looks.
const WINDOW: Duration = Duration::from_secs(10);

/// Batches that together take no longer are remembered as one slice, which bounds the slices.
const SLICE: Duration = Duration::from_secs(1);

/// When one instance ran a batch, over the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct BusyWindow {
    /// Batches that ended, oldest first.
    slices: VecDeque<Slice>,
    /// Starts of batches that run: one, or two while a reloaded model finishes its queue beside the new one.
    running: Vec<Instant>,
    /// When the first batch began: before it there is nothing to be a share of.
    first: Option<Instant>,
}

/// From the start of its first batch to the end of its last.
#[derive(Debug)]
struct Slice {
    start: Instant,
    end: Instant,
    busy: Duration,
}

impl BusyWindow {
    /// A batch begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.running.push(now);
    }

    /// A batch ends that ran for `busy`.
    pub(super) fn end(&mut self, now: Instant, busy: Duration) {
        let start = now.checked_sub(busy).unwrap_or(now);
        self.first.get_or_insert(start);
        // Of two that run, the one that began about then.
        let apart = |at: &Instant| start.max(*at).duration_since(start.min(*at));
        if let Some(index) = (0..self.running.len()).min_by_key(|&index| apart(&self.running[index])) {
            self.running.swap_remove(index);
        }
        self.forget(now);
        match self.slices.back_mut() {
            Some(slice) if now.saturating_duration_since(slice.start) < SLICE => {
                slice.end = now;
                slice.busy += busy;
            }
            _ => self.slices.push_back(Slice { start, end: now, busy }),
        }
    }

    /// The share of the last [`WINDOW`], or of the time since the first batch, in which a batch ran.
    pub(super) fn ratio(&mut self, now: Instant) -> f64 {
        self.forget(now);
        let Some(first) = self.first else { return 0.0 };
        let from = now.checked_sub(WINDOW).map_or(first, |start| start.max(first));
        let ended: f64 = self.slices.iter().map(|slice| slice.busy_since(from)).sum();
        let running: f64 = self
            .running
            .iter()
            .map(|start| now.saturating_duration_since(from.max(*start)).as_secs_f64())
            .sum();
        let span = now.saturating_duration_since(from).max(Duration::from_millis(1));
        ((ended + running) / span.as_secs_f64()).min(1.0)
    }

    fn forget(&mut self, now: Instant) {
        while self.slices.front().is_some_and(|slice| now.saturating_duration_since(slice.end) > WINDOW) {
            self.slices.pop_front();
        }
    }
}

impl Slice {
    /// Its busy seconds after `from`, as if they were spread evenly: exact for one of a single batch.
    fn busy_since(&self, from: Instant) -> f64 {
        let whole = self.end.saturating_duration_since(self.start).as_secs_f64();
        let part = self.end.saturating_duration_since(self.start.max(from)).as_secs_f64();
        if whole > 0.0 { self.busy.as_secs_f64() * part / whole } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn near(ratio: f64, expected: f64) {
        assert!((ratio - expected).abs() < 0.01, "{ratio}, not {expected}");
    }

    #[test]
    fn a_batch_counts_while_it_runs() {
        let (mut window, start) = (BusyWindow::default(), Instant::now());
        near(window.ratio(start), 0.0);
        window.begin(start);
        near(window.ratio(start + SECOND), 1.0);
        near(window.ratio(start + 60 * SECOND), 1.0);
    }

    #[test]
    fn a_batch_longer_than_the_window_leaves_it_as_time_passes() {
        let (mut window, start) = (BusyWindow::default(), Instant::now());
        window.begin(start);
        window.end(start + 20 * SECOND, 20 * SECOND);
        near(window.ratio(start + 20 * SECOND), 1.0);
        near(window.ratio(start + 25 * SECOND), 0.5);
        near(window.ratio(start + 30 * SECOND), 0.0);
    }

    #[test]
    fn short_batches_add_up_to_their_share() {
        let (mut window, start) = (BusyWindow::default(), Instant::now());
        let (step, busy) = (SECOND / 100, SECOND / 400);
        for number in 0..2000 {
            window.begin(start + step * number);
            window.end(start + step * number + busy, busy);
        }
        near(window.ratio(start + 20 * SECOND), 0.25);
        near(window.ratio(start + 25 * SECOND), 0.125);
        assert!(window.slices.len() <= 12, "{}", window.slices.len());
        near(window.ratio(start + 31 * SECOND), 0.0);
        assert_eq!(window.slices.len(), 0);
    }

    #[test]
    fn the_old_and_the_new_of_a_reloaded_model_are_told_apart() {
        let (mut window, start) = (BusyWindow::default(), Instant::now());
        window.begin(start);
        window.begin(start + 4 * SECOND);
        window.end(start + 5 * SECOND, 5 * SECOND);
        assert_eq!(window.running, [start + 4 * SECOND]);
    }
}
