//! Groups sequences by length, so that a short one is not padded to a long one.
//!
//! The bounds of the groups are configured, or learned from recent lengths: the few that pad least, found
//! exactly by dynamic programming over the histogram.

use serde::{Deserialize, Serialize};

/// The lengths that learned boundaries look back on.
const RECENT: usize = 1024;
/// How many lengths come between two looks.
const RELEARN: u64 = 256;
/// The most boundaries that are learned: more groups would make the batches of each smaller.
const MAX_LEARNED: usize = 6;
/// Lengths are rounded up to a multiple of this: kernels gain nothing from finer ones.
const STEP: u32 = 8;
/// Boundaries stay while new ones would save less than this part of all tokens: each change begins new
/// groups, and what is known of the costs of the old ones no longer helps.
const WORTH_MOVING: u64 = 64;

/// What a batch of sequences is padded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingStrategy {
    /// Its longest sequence.
    #[default]
    Minimal,
    /// The bound of its bucket, so that few shapes ever occur.
    Maximum,
    /// Nothing: only equal lengths share a batch.
    None,
    /// The longest of each sub-batch, after the split that costs least ([`crate::padding`]).
    Dynamic,
}

/// How sequences are grouped by length.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BucketConfig {
    /// Whether lengths are grouped at all; where not, any lengths share a batch.
    pub enabled: bool,
    /// The longest sequence of each bucket, in tokens; empty: learned from recent lengths.
    pub boundaries: Vec<u32>,
    /// Strategies `none` and `dynamic` need no buckets and have none.
    pub strategy: PaddingStrategy,
}

/// The buckets of one model.
#[derive(Debug, Clone)]
pub struct Buckets {
    enabled: bool,
    strategy: PaddingStrategy,
    boundaries: Vec<u32>,
    /// `None` where the boundaries are configured or unused.
    learned: Option<Recent>,
}

impl Buckets {
    /// Boundaries may come in any order; 0 and repetitions mean nothing and are dropped.
    pub fn new(config: BucketConfig) -> Self {
        let BucketConfig { enabled, mut boundaries, strategy } = config;
        boundaries.retain(|boundary| *boundary > 0);
        boundaries.sort_unstable();
        boundaries.dedup();
        let used = enabled && matches!(strategy, PaddingStrategy::Minimal | PaddingStrategy::Maximum);
        let learned = (used && boundaries.is_empty()).then(Recent::default);
        Self { enabled, strategy, boundaries, learned }
    }

    /// The bound of the group that a sequence of `seq_len` tokens joins: only equal bounds share a batch.
    /// 0: any lengths together. A length above the last boundary gets a bound of its own size class.
    pub fn bound(&self, seq_len: u32) -> u32 {
        match self.strategy {
            PaddingStrategy::None => seq_len,
            PaddingStrategy::Dynamic => 0,
            PaddingStrategy::Minimal | PaddingStrategy::Maximum if !self.enabled => 0,
            PaddingStrategy::Minimal | PaddingStrategy::Maximum => {
                bound_among(&self.boundaries, self.learned.is_some(), seq_len)
            }
        }
    }

    /// The boundaries in use, least first; empty until some are learned.
    pub fn boundaries(&self) -> &[u32] {
        &self.boundaries
    }

    /// Learns from a request's length, in tokens; does nothing where the boundaries are not learned.
    pub fn observe(&mut self, len: u32) {
        let Some(recent) = &mut self.learned else { return };
        recent.push(len);
        if !recent.seen.is_multiple_of(RELEARN) {
            return;
        }
        let histogram = Histogram::of(&recent.lengths);
        let found = histogram.least_padding(MAX_LEARNED);
        let saved = histogram.padding(&self.boundaries).saturating_sub(histogram.padding(&found));
        if self.boundaries.is_empty() || saved > histogram.tokens() / WORTH_MOVING {
            self.boundaries = found;
        }
    }
}

/// The length that a batch is padded to: `bound` is its group's, `longest` that of its longest sequence.
pub fn padded(strategy: PaddingStrategy, bound: u32, longest: u32) -> u32 {
    match strategy {
        PaddingStrategy::Maximum => bound.max(longest),
        PaddingStrategy::Minimal | PaddingStrategy::None | PaddingStrategy::Dynamic => longest,
    }
}

/// The least boundary that holds `len`. Above the last: the next multiple of it where boundaries are
/// configured (they show the step that is wanted), else the next power of two.
fn bound_among(boundaries: &[u32], learned: bool, len: u32) -> u32 {
    let above = boundaries.partition_point(|boundary| *boundary < len);
    let bound = match (boundaries.get(above), boundaries.last()) {
        (Some(boundary), _) => Some(*boundary),
        (None, Some(last)) if !learned => len.checked_next_multiple_of(*last),
        (None, _) => len.checked_next_power_of_two(),
    };
    bound.unwrap_or(u32::MAX)
}

/// The last [`RECENT`] lengths, in no order.
#[derive(Debug, Clone, Default)]
struct Recent {
    lengths: Vec<u32>,
    seen: u64,
}

impl Recent {
    fn push(&mut self, len: u32) {
        let oldest = (self.seen % RECENT as u64) as usize;
        match self.lengths.get_mut(oldest) {
            Some(place) => *place = len,
            None => self.lengths.push(len),
        }
        self.seen += 1;
    }
}

/// How often each length occurs, lengths rounded up to multiples of [`STEP`].
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    /// Distinct lengths, least first.
    lengths: Vec<u32>,
    /// `counts[i]`: how many lie below `lengths[i]`; one longer than `lengths`.
    counts: Vec<u64>,
    /// `tokens[i]`: the sum of those lengths.
    tokens: Vec<u64>,
}

impl Histogram {
    pub(crate) fn of(lengths: &[u32]) -> Self {
        let round = |len: &u32| len.max(&1).checked_next_multiple_of(STEP).unwrap_or(u32::MAX);
        let mut sorted: Vec<u32> = lengths.iter().map(round).collect();
        sorted.sort_unstable();
        let mut histogram = Self { lengths: Vec::new(), counts: vec![0], tokens: vec![0] };
        let (mut count, mut tokens) = (0, 0);
        for equal in sorted.chunk_by(|a, b| a == b) {
            count += equal.len() as u64;
            tokens += u64::from(equal[0]) * equal.len() as u64;
            histogram.lengths.push(equal[0]);
            histogram.counts.push(count);
            histogram.tokens.push(tokens);
        }
        histogram
    }

    /// All tokens, unpadded.
    fn tokens(&self) -> u64 {
        self.tokens[self.lengths.len()]
    }

    /// The tokens of padding when each length is padded to its bound among learned `boundaries`.
    pub(crate) fn padding(&self, boundaries: &[u32]) -> u64 {
        let padded = |(at, len): (usize, &u32)| {
            u64::from(bound_among(boundaries, true, *len) - len) * (self.counts[at + 1] - self.counts[at])
        };
        self.lengths.iter().enumerate().map(padded).sum()
    }

    /// The tokens of padding when the lengths `from..to` share the bound of the longest of them.
    fn padding_of(&self, from: usize, to: usize) -> u64 {
        let count = self.counts[to] - self.counts[from];
        u64::from(self.lengths[to - 1]) * count - (self.tokens[to] - self.tokens[from])
    }

    /// The at most `limit` boundaries that pad least; no two equal, the last one the longest length.
    ///
    /// Row `k` of the table is the least padding of the first `j` lengths with `k` boundaries. The best
    /// place of the last cut never moves back as `j` grows, so a row takes O(n log n) by halving
    /// ("divide and conquer optimisation"; Galil and Park, "Dynamic programming with convexity, concavity
    /// and sparsity", 1992) rather than O(n^2): 1,024 distinct lengths stay well below a millisecond.
    pub(crate) fn least_padding(&self, limit: usize) -> Vec<u32> {
        let count = self.lengths.len();
        if count <= limit {
            return self.lengths.clone();
        }
        let mut row: Vec<u64> =
            (0..=count).map(|to| if to == 0 { 0 } else { self.padding_of(0, to) }).collect();
        let mut cuts: Vec<Vec<usize>> = Vec::new();
        for _ in 1..limit {
            let mut next = Row { least: vec![0; count + 1], cut: vec![0; count + 1] };
            self.fill(&row, &mut next, 1..count + 1, 0..count);
            row = next.least;
            cuts.push(next.cut);
        }
        let mut boundaries = Vec::with_capacity(limit);
        let mut to = count;
        for cut in cuts.iter().rev() {
            boundaries.push(self.lengths[to - 1]);
            to = cut[to];
            if to == 0 {
                break;
            }
        }
        if to > 0 {
            boundaries.push(self.lengths[to - 1]);
        }
        boundaries.reverse();
        boundaries
    }

    /// Fills `next[to]` for every `to` of `ends`, knowing that each best cut lies in `cuts`.
    fn fill(&self, row: &[u64], next: &mut Row, ends: std::ops::Range<usize>, cuts: std::ops::Range<usize>) {
        if ends.is_empty() {
            return;
        }
        let middle = ends.start + ends.len() / 2;
        let (mut least, mut best) = (u64::MAX, cuts.start);
        for (cut, before) in row.iter().enumerate().take(cuts.end.min(middle)).skip(cuts.start) {
            let padding = before + self.padding_of(cut, middle);
            if padding < least {
                (least, best) = (padding, cut);
            }
        }
        next.least[middle] = least;
        next.cut[middle] = best;
        self.fill(row, next, ends.start..middle, cuts.start..best + 1);
        self.fill(row, next, middle + 1..ends.end, best..cuts.end);
    }
}

/// One row of the table of [`Histogram::least_padding`].
struct Row {
    least: Vec<u64>,
    cut: Vec<usize>,
}
