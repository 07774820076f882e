//! Bytes by batch size, learned: a curve above the peaks of recent batches.
//!
//! The peaks are kept by size class. The curve is their upper convex hull from the origin on. Beyond the
//! largest size it rises as the hull does over half of that size: so where all sizes are alike, or peaks
//! grow faster than sizes, it extrapolates bytes per element; where batches half as large or smaller show
//! a fixed part, that part is not multiplied. Whole numbers throughout: a batch that used exactly the
//! limit fits it.

/// A class has sizes that differ by at most one part in this many.
const CLASSES_PER_OCTAVE: u64 = 16;
/// Each batch of a class lowers the class's peak by one part in this many, unless it reached the peak.
const DECAY: u64 = 256;
/// A class that none of so many batches belonged to is forgotten: it says how the model was.
const STALE: u64 = 4096;
/// Larger figures are cut to these, so that products of two stay within `u128`.
const MAX_ELEMENTS: u64 = 1 << 48;
const MAX_BYTES: u64 = 1 << 60;

/// The peaks of recent batches, and the curve above them.
#[derive(Debug, Clone, Default)]
pub(super) struct Envelope {
    /// Smallest size first; fewer than 1,000, the classes below [`MAX_ELEMENTS`].
    peaks: Vec<Peak>,
    batches: u64,
    /// The curve's corners: the origin, then rising in both; empty while nothing was seen.
    hull: Vec<Point>,
    /// Which of them ends the edge that the curve goes on as.
    beyond: usize,
}

/// The peak of a class: no batch of the class was smaller than `elements` or used more than `bytes`.
#[derive(Debug, Clone, Copy)]
struct Peak {
    class: u64,
    elements: u64,
    bytes: u64,
    /// The figure of its last batch.
    latest: u64,
    /// Its batches.
    times: u64,
    /// The number of its last batch.
    last: u64,
}

/// Elements and bytes.
type Point = (u128, u128);

impl Envelope {
    /// The bytes of a batch of `elements`; 0 while nothing was seen.
    pub(super) fn bytes(&self, elements: u64) -> u64 {
        let elements = u128::from(elements);
        let end = self.hull.partition_point(|corner| corner.0 < elements);
        let Some((from, run, rise)) = self.edge(end) else { return 0 };
        let above = ((elements - from.0) * rise).div_ceil(run);
        u64::try_from(from.1 + above).unwrap_or(u64::MAX)
    }

    /// The largest size whose bytes are within `limit`.
    pub(super) fn max_elements(&self, limit: u64) -> u64 {
        let limit = u128::from(limit);
        let end = self.hull.partition_point(|corner| corner.1 <= limit);
        match self.edge(end) {
            None | Some((_, _, 0)) => u64::MAX,
            Some((from, run, rise)) => {
                u64::try_from(from.0 + (limit - from.1) * run / rise).unwrap_or(u64::MAX)
            }
        }
    }

    /// Where the edge of the curve that ends at corner `end` begins, its run and its rise. Past the last
    /// corner: from there on. `None`: there is no such edge.
    fn edge(&self, end: usize) -> Option<(Point, u128, u128)> {
        let from = *self.hull.get(end.checked_sub(1)?)?;
        let direction = if end < self.hull.len() { end } else { self.beyond };
        let (left, right) = (self.hull.get(direction.checked_sub(1)?)?, self.hull.get(direction)?);
        Some((from, right.0 - left.0, right.1 - left.1))
    }

    /// Whether batches of at most `elements` used more than `limit`: again and lately, because a first run
    /// allocates what later ones do not.
    pub(super) fn exceeded(&self, elements: u64, limit: u64) -> bool {
        let mut smaller = self.peaks.iter().take_while(|peak| peak.elements <= elements);
        smaller.any(|peak| peak.times > 1 && peak.latest > limit)
    }

    /// A batch of `elements` used `bytes` at its peak; neither is 0.
    pub(super) fn add(&mut self, elements: u64, bytes: u64) {
        let (elements, bytes) = (elements.min(MAX_ELEMENTS), bytes.min(MAX_BYTES));
        let class = class_of(elements);
        self.batches += 1;
        match self.peaks.binary_search_by_key(&class, |peak| peak.class) {
            Ok(at) => self.peaks[at].add(elements, bytes, self.batches),
            Err(at) => {
                let peak = Peak { class, elements, bytes, latest: bytes, times: 1, last: self.batches };
                self.peaks.insert(at, peak);
            }
        }
        self.peaks.retain(|peak| self.batches - peak.last < STALE);
        self.fit();
    }

    /// Draws the curve above the peaks. No batch is taken to need less than a smaller one did.
    fn fit(&mut self) {
        self.hull.clear();
        self.hull.push((0, 0));
        let mut highest = 0;
        for peak in &self.peaks {
            highest = highest.max(peak.bytes);
            let point = (u128::from(peak.elements), u128::from(highest));
            while let [.., before, last] = self.hull[..]
                && (last.0 - before.0) * (point.1 - before.1) >= (last.1 - before.1) * (point.0 - before.0)
            {
                self.hull.pop();
            }
            self.hull.push(point);
        }
        let half = self.hull.last().map_or(0, |largest| largest.0.div_ceil(2));
        self.beyond = self.hull.partition_point(|corner| corner.0 < half);
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
        (self.last, self.latest) = (now, bytes);
        // A first figure more than twice the second counted what only a first run allocates.
        if self.times == 2 && self.bytes / 2 > bytes {
            (self.elements, self.bytes) = (elements, bytes);
            return;
        }
        let old = (self.elements, self.bytes);
        let needed = covering(self.elements, (elements, bytes));
        if self.bytes >= needed {
            self.bytes = needed.max(self.bytes - self.bytes / DECAY);
        } else if bytes >= covering(elements, old) {
            (self.elements, self.bytes) = (elements, bytes);
        } else {
            (self.elements, self.bytes) = (old.0.min(elements), old.1.max(bytes));
        }
    }
}

/// The bytes at `elements` with which every curve from the origin on that is concave and does not fall is
/// also above `other`.
fn covering(elements: u64, other: (u64, u64)) -> u64 {
    if elements <= other.0 {
        return other.1;
    }
    let scaled = (u128::from(other.1) * u128::from(elements)).div_ceil(u128::from(other.0));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
