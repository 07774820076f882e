//! Hashes for keys that nobody outside chooses: tickets are counted up here, client ids are hashed before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::entry::Ticket;

/// A map whose order of iteration must not matter.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Multiply>>;

/// Multiplication by a large odd number spreads consecutive integers over the whole range.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Multiply(u64);

impl Multiply {
    fn add(&mut self, word: u64) {
        // 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4).
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.add(u64::from(byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }

    fn finish(&self) -> u64 {
        // The table takes its slot from the low bits, which a multiplication mixes least.
        self.0 ^ (self.0 >> 32)
    }
}

/// A map by ticket, whose order of iteration must not matter.
pub(crate) type TicketMap<V> = HashMap<Ticket, V, BuildHasherDefault<Blocks>>;

/// Tickets in a row that lie side by side in a table.
const BLOCK_BITS: u32 = 4;

/// Keeps blocks of consecutive tickets together and spreads the blocks: what came together mostly leaves
/// together, and a table of a million entries is read from memory once a block and not once a ticket.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Blocks(u64);

impl Hasher for Blocks {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, ticket: u64) {
        let block = (ticket >> BLOCK_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The table takes its slot from the low bits, and tells the keys around one from the highest seven.
        let slot = (block >> 32 << BLOCK_BITS) | (ticket & ((1 << BLOCK_BITS) - 1));
        self.0 = (slot & (u64::MAX >> 7)) | ticket.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !(u64::MAX >> 7);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
