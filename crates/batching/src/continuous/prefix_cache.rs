//! What full blocks hold, so that sequences that begin alike share them.
//!
//! A block is found by the hash of its tokens and of all before them. A hash alone decides nothing: a block
//! is given only where its tokens are the same and the block before it is the one the asker already
//! has, so by induction everything before is the same too, and no collision, found by chance or on purpose, gives
//! anybody another's keys and values. Colliding content is merely not remembered.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::block_pool::BlockId;
use crate::hash::Multiply;

/// A multiplier for 128 bits (O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good
/// Algorithms for Random Number Generation", 2014).
const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
/// Where the chains of requests without a salt begin, and those with one.
const UNSALTED: u128 = 0x243f_6a88_85a3_08d3_1319_8a2e_0370_7344;
const SALTED: u128 = 0xa409_3822_299f_31d0_082e_fa98_ec4e_6c89;
/// Of the list's ends.
const NONE: u32 = u32::MAX;

/// The hash of a block's tokens, of all tokens before them, and of the salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHash(u128);

impl ChainHash {
    /// Before the first block of requests with this salt.
    pub fn root(salt: Option<u64>) -> Self {
        salt.map_or(Self(UNSALTED), |salt| Self(SALTED).mix(u128::from(salt)))
    }

    /// Of the block with these tokens after what this is the hash of.
    #[must_use]
    pub fn then(self, tokens: &[u32]) -> Self {
        tokens.iter().fold(self, |hash, &token| hash.mix(u128::from(token) + 1))
    }

    fn mix(self, word: u128) -> Self {
        let product = (self.0 ^ word).wrapping_mul(MULTIPLIER);
        Self(product ^ (product >> 71))
    }

    /// A hash as a test wants it.
    #[cfg(test)]
    pub(crate) fn of(hash: u128) -> Self {
        Self(hash)
    }
}

impl Hash for ChainHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0 as u64);
    }
}

/// What comes before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: it is the first of a sequence with this salt.
    Root(Option<u64>),
    /// This block, which the cache knows.
    Block(BlockId),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: ChainHash,
    parent: Parent,
}

/// Neighbours in the list of those nobody holds.
#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// The contents of full blocks, and which of them nobody holds, longest unused first.
///
/// Whoever holds a block holds its parent, and lets go of it later: so the longest unused is never a parent.
#[derive(Debug, Clone)]
pub struct PrefixCache {
    block_size: usize,
    by_hash: HashMap<ChainHash, BlockId, BuildHasherDefault<Multiply>>,
    entries: Vec<Option<Entry>>,
    /// The tokens of every block, side by side; those of unknown blocks mean nothing.
    tokens: Vec<u32>,
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
    idle: u32,
}

impl PrefixCache {
    /// A cache that knows none of `blocks` blocks of `block_size` tokens.
    pub fn new(blocks: u32, block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            by_hash: HashMap::default(),
            entries: vec![None; blocks as usize],
            tokens: vec![0; blocks as usize * block_size as usize],
            links: vec![Link { before: NONE, after: NONE }; blocks as usize],
            oldest: NONE,
            newest: NONE,
            idle: 0,
        }
    }

    /// Known blocks that nobody holds; any number of them can be evicted.
    pub fn idle(&self) -> u32 {
        self.idle
    }

    /// Whether the block's content is known.
    pub fn holds(&self, block: BlockId) -> bool {
        self.entries[block.index()].is_some()
    }

    /// The block with exactly these tokens after exactly that parent.
    pub fn find(&self, hash: ChainHash, parent: Parent, tokens: &[u32]) -> Option<BlockId> {
        let block = *self.by_hash.get(&hash)?;
        let entry = self.entries[block.index()]?;
        (entry.parent == parent && self.tokens_of(block) == tokens).then_some(block)
    }

    /// Remembers what a held block holds. False where the hash is taken by other content, which stays.
    pub fn insert(&mut self, block: BlockId, hash: ChainHash, parent: Parent, tokens: &[u32]) -> bool {
        if self.holds(block) || self.by_hash.contains_key(&hash) || tokens.len() != self.block_size {
            return false;
        }
        self.by_hash.insert(hash, block);
        self.entries[block.index()] = Some(Entry { hash, parent });
        let start = block.index() * self.block_size;
        self.tokens[start..start + self.block_size].copy_from_slice(tokens);
        true
    }

    /// Nobody holds this known block any more: it is the last to be evicted.
    pub fn rest(&mut self, block: BlockId) {
        self.links[block.index()] = Link { before: self.newest, after: NONE };
        match self.newest {
            NONE => self.oldest = block.0,
            newest => self.links[newest as usize].after = block.0,
        }
        self.newest = block.0;
        self.idle += 1;
    }

    /// Somebody holds this known block again.
    pub fn wake(&mut self, block: BlockId) {
        let Link { before, after } = self.links[block.index()];
        match before {
            NONE => self.oldest = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.links[after as usize].before = before,
        }
        self.idle -= 1;
    }

    /// Forgets the block that nobody held for longest, and gives it away.
    pub fn evict(&mut self) -> Option<BlockId> {
        let block = BlockId(self.oldest);
        let entry = self.entries.get_mut(block.index())?.take()?;
        self.wake(block);
        self.by_hash.remove(&entry.hash);
        Some(block)
    }

    fn tokens_of(&self, block: BlockId) -> &[u32] {
        let start = block.index() * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    /// Whether every block can be found, and is held by no more than its parent is.
    #[cfg(test)]
    pub(crate) fn check(&self, references: impl Fn(BlockId) -> u32) -> Result<(), String> {
        let known = self.entries.iter().flatten().count();
        if known != self.by_hash.len() {
            return Err(format!("{known} blocks are known, {} can be found", self.by_hash.len()));
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(Entry { hash, parent }) = entry else { continue };
            let block = BlockId(index as u32);
            if self.by_hash.get(hash) != Some(&block) {
                return Err(format!("block {index} cannot be found"));
            }
            let Parent::Block(parent) = *parent else { continue };
            if !self.holds(parent) || references(parent) < references(block) {
                return Err(format!("block {index} outlives its parent {}", parent.0));
            }
        }
        Ok(())
    }
}
