//! A hash for keys that nobody outside chooses: tickets are counted up here, client ids are hashed before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

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
