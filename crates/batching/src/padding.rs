//! Splits items of different lengths into the sub-batches that cost least together.
//!
//! A sub-batch is padded to its longest item. Items sorted by length are best cut into consecutive runs, so
//! the cheapest split is a shortest path over the places to cut.

/// Splits one set of lengths after another; keeps its tables, so that a split allocates only its answer.
#[derive(Debug, Clone, Default)]
pub struct Splitter {
    /// `best[i]`: the cheapest way to run the items from `i` on.
    best: Vec<Tail>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tail {
    cost: f64,
    /// The number of sub-batches.
    parts: usize,
    /// The items in the first of them.
    first: usize,
}

/// Costs that differ by less than this part are equal: sums of the same terms in another order differ by
/// about as much, and would cut where nothing is gained.
const TIE: f64 = 1e-12;

impl Tail {
    /// Whether it costs less than `other`, or as much in fewer sub-batches.
    fn beats(&self, other: &Tail) -> bool {
        let margin = TIE * self.cost.abs().max(other.cost.abs());
        if (self.cost - other.cost).abs() <= margin {
            self.parts < other.parts
        } else {
            self.cost < other.cost
        }
    }
}

impl Splitter {
    /// The sizes of the consecutive sub-batches of `lengths` (tokens, longest first) whose costs sum to the
    /// least; among equal sums, the fewest sub-batches.
    ///
    /// `cost` takes a sub-batch's items and its padded tokens (items x longest). A sub-batch has at most
    /// `max_items` items (0 reads as 1) and `max_tokens` padded tokens; an item that is longer by itself
    /// stands alone. Takes O(items x `max_items`) calls of `cost`.
    pub fn split(
        &mut self,
        lengths: &[u32],
        max_items: usize,
        max_tokens: u64,
        cost: impl Fn(usize, u64) -> f64,
    ) -> Vec<usize> {
        debug_assert!(lengths.is_sorted_by(|a, b| a >= b), "the longest comes first");
        let count = lengths.len();
        self.best.clear();
        self.best.resize(count + 1, Tail::default());
        for (start, longest) in lengths.iter().enumerate().rev() {
            let tail = |items: usize, tokens: u64| {
                let rest = self.best[start + items];
                Tail { cost: cost(items, tokens) + rest.cost, parts: rest.parts + 1, first: items }
            };
            let longest = u64::from(*longest);
            let mut best = tail(1, longest);
            for items in 2..=max_items.min(count - start) {
                let tokens = longest * items as u64;
                if tokens > max_tokens {
                    break;
                }
                let next = tail(items, tokens);
                if next.beats(&best) {
                    best = next;
                }
            }
            self.best[start] = best;
        }
        self.sizes(count)
    }

    fn sizes(&self, count: usize) -> Vec<usize> {
        let mut sizes = Vec::with_capacity(self.best[0].parts);
        let mut start = 0;
        while start < count {
            sizes.push(self.best[start].first);
            start += self.best[start].first;
        }
        sizes
    }
}

/// [`Splitter::split`] without tables to reuse.
pub fn split(
    lengths: &[u32],
    max_items: usize,
    max_tokens: u64,
    cost: impl Fn(usize, u64) -> f64,
) -> Vec<usize> {
    Splitter::default().split(lengths, max_items, max_tokens, cost)
}
