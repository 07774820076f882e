//! A histogram of fixed size with a bounded relative error.
//!
//! Buckets are linear inside each power of two (Gil Tene's HdrHistogram): 64 to an octave, so a value is
//! off by at most half of 1/64 of itself, and recording one is a shift and an increment.

use serde::Serialize;

/// Buckets in an octave, and its logarithm.
const PER_OCTAVE: u64 = 64;
const PER_OCTAVE_BITS: u32 = 6;

/// Counts of whole numbers.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    /// Wide, because nanoseconds of many requests overflow 64 bits within days.
    sum: u128,
    max: u64,
    /// Larger values are counted as this one.
    most: u64,
}

impl Default for Histogram {
    /// For any value.
    fn default() -> Self {
        Self::new(u64::BITS)
    }
}

/// What a histogram says of its values, each in the values' unit; all zero without any.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Distribution {
    /// Values.
    pub count: u64,
    /// Exact.
    pub mean: f64,
    /// The median; this and the other percentiles by nearest rank, within 0.8 %.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Exact.
    pub max: f64,
}

/// How many values lie in a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bar {
    /// The largest value of the range, which begins after the bar before.
    pub up_to: f64,
    /// Values.
    pub count: u64,
}

impl Histogram {
    /// For values below two to the power of `bits`, from 7 to 64.
    pub fn new(bits: u32) -> Self {
        let buckets = (bits.saturating_sub(PER_OCTAVE_BITS) + 1) as usize * PER_OCTAVE as usize;
        let most = u64::MAX >> (u64::BITS - bits);
        Self { buckets: vec![0; buckets].into_boxed_slice(), count: 0, sum: 0, max: 0, most }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Counts the values of `other`, which has as many bits, as well.
    pub fn merge(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(sum, part)| *sum += part);
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(index(value.min(self.most))) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// The value that a share `q` of all does not exceed, by nearest rank; 0 without any.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        let mut below = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                let (low, high) = range(index);
                return ((low as f64 + high as f64) / 2.0).min(self.max as f64);
            }
        }
        0.0
    }

    /// Mean and percentiles, times `unit`.
    pub fn distribution(&self, unit: f64) -> Distribution {
        let at = |q| self.quantile(q) * unit;
        Distribution {
            count: self.count,
            mean: if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 * unit },
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: self.max as f64 * unit,
        }
    }

    /// Every bucket that is not empty.
    pub fn bars(&self) -> Vec<Bar> {
        let filled = self.buckets.iter().enumerate().filter(|&(_, &count)| count > 0);
        filled.map(|(index, &count)| Bar { up_to: range(index).1 as f64, count }).collect()
    }

    /// The counts by powers of two, the first and last range being those that are not empty; times `unit`.
    pub fn octaves(&self, unit: f64) -> Vec<Bar> {
        let mut bars: Vec<Bar> = Vec::new();
        for (index, &count) in self.buckets.iter().enumerate() {
            let (low, _) = range(index);
            if index == 0 || low.is_power_of_two() {
                bars.push(Bar { up_to: (2 * low).max(1) as f64 * unit, count: 0 });
            }
            bars.iter_mut().next_back().into_iter().for_each(|bar| bar.count += count);
        }
        let filled = |bar: &Bar| bar.count > 0;
        let first = bars.iter().position(filled).unwrap_or(bars.len());
        let last = bars.iter().rposition(filled).map_or(first, |last| last + 1);
        bars[first..last].to_vec()
    }
}

/// The bucket of a value: its highest seven bits and their place.
fn index(value: u64) -> usize {
    let shift = (value | PER_OCTAVE).ilog2() - PER_OCTAVE_BITS;
    (u64::from(shift) * PER_OCTAVE + (value >> shift)) as usize
}

/// The least and the largest value of a bucket.
fn range(index: usize) -> (u64, u64) {
    let index = index as u64;
    let shift = (index / PER_OCTAVE).saturating_sub(1);
    let low = (index - shift * PER_OCTAVE) << shift;
    (low, low + ((1 << shift) - 1))
}
