//! Bytes by batch size, learned: a line above the peaks of recent batches.
//!
//! The peaks are kept by size class. The line is an edge of their upper convex hull, which begins at the
//! origin: the edge over half of the largest size. So where all sizes are alike, or peaks grow faster than
//! sizes, the line is bytes per element and nothing else; where small batches show a fixed part, that part
//! is in the line, and its slope is never below the peaks' mean growth from half to the whole of the
//! largest size. Whole numbers throughout: a batch that used exactly the limit fits it.

/// A class has sizes that differ by at most one part in this many.
const CLASSES_PER_OCTAVE: u64 = 16;
/// Each batch of a class lowers the class's peak by one part in this many, unless it reached the peak.
const DECAY: u64 = 256;
/// A class that none of so many batches belonged to is forgotten: it says how the model was.
const STALE: u64 = 4096;
/// Larger figures are cut to these, so that products of two stay within `i128`.
const MAX_ELEMENTS: u64 = 1 << 48;
const MAX_BYTES: u64 = 1 << 60;

/// The peaks of recent batches, and the lines above them.
#[derive(Debug, Clone, Default)]
pub(super) struct Envelope {
    /// Smallest size first; fewer than 1,000, the classes below [`MAX_ELEMENTS`].
    peaks: Vec<Peak>,
    batches: u64,
    /// Above every peak.
    line: Line,
    /// Above the peaks that were seen twice; with the largest size among those.
    proved: Line,
    proved_largest: Option<(u64, u64)>,
    /// Reused by each fit.
    hull: Vec<Point>,
}

/// The peak of a class: no batch of the class was smaller than `elements` or used more than `bytes`.
#[derive(Debug, Clone, Copy)]
struct Peak {
    class: u64,
    elements: u64,
    bytes: u64,
    times: u64,
    last: u64,
}

/// Elements and bytes.
type Point = (i128, i128);

/// `(fixed + slope x elements) / divisor`, none negative.
#[derive(Debug, Clone, Copy)]
struct Line {
    fixed: i128,
    slope: i128,
    divisor: i128,
}

impl Default for Line {
    fn default() -> Self {
        Line { fixed: 0, slope: 0, divisor: 1 }
    }
}

impl Envelope {
    /// The bytes of a batch of `elements`; 0 while nothing was seen.
    pub(super) fn bytes(&self, elements: u64) -> u64 {
        self.line.bytes(elements)
    }

    /// The largest size whose bytes are within `limit`.
    pub(super) fn max_elements(&self, limit: u64) -> u64 {
        self.line.max_elements(limit)
    }

    /// The bytes of a batch of `elements`, as far as batches at least as large prove them, or one smaller
    /// that needed more than `limit` itself; else 0.
    pub(super) fn proved_bytes(&self, elements: u64, limit: u64) -> u64 {
        match self.proved_largest {
            Some((largest, bytes)) if elements <= largest || bytes > limit => self.proved.bytes(elements),
            _ => 0,
        }
    }

    /// A batch of `elements` used `bytes` at its peak; neither is 0.
    pub(super) fn add(&mut self, elements: u64, bytes: u64) {
        let (elements, bytes) = (elements.min(MAX_ELEMENTS), bytes.min(MAX_BYTES));
        let class = class_of(elements);
        self.batches += 1;
        match self.peaks.binary_search_by_key(&class, |peak| peak.class) {
            Ok(at) => self.peaks[at].add(elements, bytes, self.batches),
            Err(at) => {
                self.peaks.insert(at, Peak { class, elements, bytes, times: 1, last: self.batches });
            }
        }
        self.peaks.retain(|peak| self.batches - peak.last < STALE);
        self.line = Line::above(self.peaks.iter(), &mut self.hull);
        let proved = self.peaks.iter().filter(|peak| peak.times > 1);
        self.proved_largest = proved.clone().last().map(|peak| (peak.elements, peak.bytes));
        self.proved = Line::above(proved, &mut self.hull);
    }
}

/// Classes are ordered as sizes are.
fn class_of(elements: u64) -> u64 {
    let octave = u64::from(elements.max(1).ilog2());
    let shift = octave.saturating_sub(u64::from(CLASSES_PER_OCTAVE.ilog2()));
    shift * CLASSES_PER_OCTAVE + (elements >> shift)
}

impl Peak {
    fn add(&mut self, elements: u64, bytes: u64, now: u64) {
        self.times += 1;
        self.last = now;
        // A first figure more than twice the second counted what only a first run allocates.
        if self.times == 2 && self.bytes / 2 > bytes {
            (self.elements, self.bytes) = (elements, bytes);
            return;
        }
        self.bytes -= self.bytes / DECAY;
        if self.covers(elements, bytes) {
            return;
        }
        let new = Peak { elements, bytes, ..*self };
        if !new.covers(self.elements, self.bytes) {
            (self.elements, self.bytes) = (self.elements.min(elements), self.bytes.max(bytes));
        } else {
            *self = new;
        }
    }

    /// Whether every line above this point, neither falling nor negative at 0, is above the other.
    fn covers(&self, elements: u64, bytes: u64) -> bool {
        let flat = self.elements <= elements && bytes <= self.bytes;
        let scaled =
            u128::from(bytes) * u128::from(self.elements) <= u128::from(self.bytes) * u128::from(elements);
        flat || (elements <= self.elements && scaled)
    }
}

impl Line {
    /// The lowest line at half of the largest size among those that are above every peak, do not fall and
    /// are not negative at 0.
    fn above<'a>(peaks: impl Iterator<Item = &'a Peak>, hull: &mut Vec<Point>) -> Line {
        hull.clear();
        hull.push((0, 0));
        for peak in peaks {
            let point = (i128::from(peak.elements), i128::from(peak.bytes));
            while let [.., before, last] = hull[..]
                && (last.0 - before.0) * (point.1 - before.1) >= (last.1 - before.1) * (point.0 - before.0)
            {
                hull.pop();
            }
            hull.push(point);
        }
        let half = hull.last().map_or(0, |largest| largest.0.div_euclid(2));
        let edge = hull.windows(2).find(|edge| edge[1].0 >= half.max(1));
        let Some(&[left, right]) = edge else { return Line::default() };
        if right.1 <= left.1 {
            let highest = hull.iter().map(|point| point.1).max().unwrap_or(0);
            return Line { fixed: highest, slope: 0, divisor: 1 };
        }
        let (run, rise) = (right.0 - left.0, right.1 - left.1);
        Line { fixed: left.1 * run - rise * left.0, slope: rise, divisor: run }
    }

    fn bytes(&self, elements: u64) -> u64 {
        let scaled = self.fixed + self.slope * i128::from(elements);
        u64::try_from((scaled + self.divisor - 1) / self.divisor).unwrap_or(u64::MAX)
    }

    fn max_elements(&self, limit: u64) -> u64 {
        let room = i128::from(limit) * self.divisor - self.fixed;
        match (room < 0, self.slope) {
            (true, _) => 0,
            (false, 0) => u64::MAX,
            (false, slope) => u64::try_from(room / slope).unwrap_or(u64::MAX),
        }
    }
}
