//! Batches without padding: sequences one after another as rows of one matrix.

use super::config::{Architecture, ModelConfig};

/// Sequences that run together, as the rows of one matrix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pack {
    /// Token of each row; the rows beyond the last sequence hold token 0 and nobody reads them.
    pub(super) ids: Vec<i64>,
    /// Row of the position table for each row.
    pub(super) positions: Vec<i64>,
    /// Rows of each sequence.
    pub(super) lengths: Vec<i64>,
}

/// Splits the sequences of a batch into packs of at most `most_rows` rows (a longer sequence has a
/// pack of its own). Answers places in `lengths`, longest first, so that equal lengths are neighbours.
pub(super) fn plan(lengths: &[usize], most_rows: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
    let packs_needed = lengths.iter().sum::<usize>().div_ceil(most_rows).max(1);
    // Packs of nearly equal size: a small last pack would run at a lower speed than the others.
    let even = lengths.iter().sum::<usize>().div_ceil(packs_needed);
    let mut packs: Vec<Vec<usize>> = Vec::with_capacity(packs_needed + 1);
    let mut rows = usize::MAX;
    for place in order {
        if rows >= even || rows + lengths[place] > most_rows {
            packs.push(Vec::new());
            rows = 0;
        }
        rows += lengths[place];
        if let Some(pack) = packs.last_mut() {
            pack.push(place);
        }
    }
    packs
}

/// Rows to run for `used` rows: oneDNN compiles its kernels anew for each number of rows it meets
/// (milliseconds), so there are few such numbers, at the cost of a few percent idle rows.
pub(super) fn rows_for(used: usize) -> usize {
    let step = match used {
        0..=64 => 8,
        65..=512 => 16,
        513..=1024 => 32,
        _ => 64,
    };
    used.next_multiple_of(step)
}

impl Pack {
    /// Packs the sequences, in their order.
    pub(super) fn new<'a>(config: &ModelConfig, sequences: impl Iterator<Item = &'a [u32]>) -> Self {
        let mut pack = Self { ids: Vec::new(), positions: Vec::new(), lengths: Vec::new() };
        for sequence in sequences {
            pack.lengths.push(sequence.len() as i64);
            pack.ids.extend(sequence.iter().map(|&id| i64::from(id)));
            match config.architecture {
                Architecture::Bert => pack.positions.extend(0..sequence.len() as i64),
                Architecture::Roberta => extend_roberta(&mut pack.positions, sequence, config.padding),
            }
        }
        let rows = rows_for(pack.ids.len());
        pack.ids.resize(rows, 0);
        pack.positions.resize(rows, 0);
        pack
    }
}

/// RoBERTa counts positions from `padding + 1`, and leaves padding tokens out of the count: one that
/// stands in a text (it wrote `<pad>`) has position `padding`.
fn extend_roberta(positions: &mut Vec<i64>, sequence: &[u32], padding: u32) {
    let mut last = i64::from(padding);
    positions.extend(sequence.iter().map(|&id| {
        if id == padding {
            return i64::from(padding);
        }
        last += 1;
        last
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_is_in_one_pack_and_packs_keep_the_limit() {
        let lengths: Vec<usize> = (0..100).map(|i| 1 + (i * 37) % 90).collect();

        let packs = plan(&lengths, 256);

        let mut seen: Vec<usize> = packs.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(packs.iter().all(|pack| pack.iter().map(|&place| lengths[place]).sum::<usize>() <= 256));
    }

    #[test]
    fn a_sequence_longer_than_the_limit_has_a_pack_of_its_own() {
        assert_eq!(plan(&[3, 300, 4], 256), vec![vec![1], vec![2, 0]]);
    }

    #[test]
    fn equal_lengths_are_neighbours() {
        assert_eq!(plan(&[3, 5, 3, 5], 256), vec![vec![1, 3, 0, 2]]);
    }

    #[test]
    fn roberta_skips_padding_tokens_when_it_counts() {
        let mut positions = Vec::new();

        extend_roberta(&mut positions, &[0, 7, 1, 8, 2], 1);

        assert_eq!(positions, [2, 3, 1, 4, 5]);
    }
}
