//! Durations in log-linear bins: percentiles within 1 %, in little memory, however long the run.

use std::time::Duration;

use super::report::Distribution;

/// Bins to each doubling, as a power of two: a bin is 1/64 as wide as where it lies.
const BITS: u32 = 6;
const BINS: u64 = 1 << BITS;

#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// As long as the longest duration needs: 3,776 at most.
    bins: Vec<u64>,
    count: u64,
    /// In nanoseconds.
    sum: u128,
    max: u64,
}

impl Histogram {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bin = bin_of(nanos);
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.count += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    pub(crate) fn with(mut self, other: &Histogram) -> Histogram {
        if self.bins.len() < other.bins.len() {
            self.bins.resize(other.bins.len(), 0);
        }
        self.bins.iter_mut().zip(&other.bins).for_each(|(sum, part)| *sum += part);
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
        self
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let seconds = |nanos: f64| nanos / 1e9;
        let mean = if self.count > 0 { self.sum as f64 / self.count as f64 } else { 0.0 };
        let percentile = |part: f64| seconds(self.percentile(part));
        Distribution {
            count: self.count,
            mean: seconds(mean),
            p50: percentile(0.5),
            p90: percentile(0.9),
            p95: percentile(0.95),
            p99: percentile(0.99),
            max: seconds(self.max as f64),
        }
    }

    /// The least duration, in nanoseconds, that `part` of all do not exceed: the middle of its bin.
    fn percentile(&self, part: f64) -> f64 {
        let rank = ((part * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bin, count) in self.bins.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(bin).min(self.max as f64);
            }
        }
        self.max as f64
    }
}

fn bin_of(nanos: u64) -> usize {
    if nanos < BINS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - BITS;
    let bin = (u64::from(shift) + 1) * BINS + ((nanos >> shift) - BINS);
    bin as usize
}

fn middle(bin: usize) -> f64 {
    let bin = bin as u64;
    if bin < BINS {
        return bin as f64;
    }
    let (shift, place) = (bin / BINS - 1, bin % BINS);
    let width = (1_u64 << shift) as f64;
    (BINS + place) as f64 * width + (width - 1.0) / 2.0
}
