//! The blocks of a KV cache: how many hold each, which are free, which only the prefix cache remembers.

use serde::Serialize;

use super::prefix_cache::{ChainHash, Parent, PrefixCache};

/// Index of a block in the KV cache, 0..blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Blocks by what they are for; each is in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BlockCounts {
    /// Sequences hold them.
    pub used: u32,
    /// Nobody holds them, but what they hold may be asked for again; taken when nothing is free.
    pub cached: u32,
    /// They hold nothing.
    pub free: u32,
}

/// Where a full block of a sequence lies after it was offered to the prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// Where it was; others will find it there.
    Here,
    /// In this block, which held the same before; the sequence now shares it, and its own was released.
    Moved(BlockId),
    /// Where it was; nobody will find it.
    Not,
}

/// Reference-counted blocks of one size, and the prefix cache over them.
///
/// Whoever takes or shares a block releases it once. Of a sequence's blocks the last are released first:
/// what nobody holds is forgotten in that order, so no chain loses its beginning before its end.
#[derive(Debug, Clone)]
pub struct BlockPool {
    references: Vec<u32>,
    /// Free blocks, the one used last on top: its memory may still be near the processor.
    free: Vec<BlockId>,
    used: u32,
    cache: Option<PrefixCache>,
    evictions: u64,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_size` tokens.
    pub fn new(blocks: u32, block_size: u32, prefix_caching: bool) -> Self {
        Self {
            references: vec![0; blocks as usize],
            free: (0..blocks).rev().map(BlockId).collect(),
            used: 0,
            cache: prefix_caching.then(|| PrefixCache::new(blocks, block_size)),
            evictions: 0,
        }
    }

    /// All blocks there are.
    pub fn blocks(&self) -> u32 {
        self.references.len() as u32
    }

    /// Blocks that [`BlockPool::take`] has yet to give, one after the other.
    pub fn available(&self) -> u32 {
        self.blocks() - self.used
    }

    /// Blocks by what they are for.
    pub fn counts(&self) -> BlockCounts {
        let free = self.free.len() as u32;
        BlockCounts { used: self.used, cached: self.blocks() - self.used - free, free }
    }

    /// Blocks whose content was forgotten to make room.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many hold the block.
    pub fn references(&self, block: BlockId) -> u32 {
        self.references[block.index()]
    }

    /// Whether its only holder may write to it: nobody else holds it, and nobody else can find it.
    pub fn writable(&self, block: BlockId) -> bool {
        self.references(block) == 1 && self.cache.as_ref().is_none_or(|cache| !cache.holds(block))
    }

    /// A block to write to: a free one, or else the one whose content was unused for longest.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let block = self.cache.as_mut()?.evict()?;
                self.evictions += 1;
                block
            }
        };
        self.references[block.index()] = 1;
        self.used += 1;
        Some(block)
    }

    /// One more holds the block, which is held or was found.
    pub fn share(&mut self, block: BlockId) {
        let references = &mut self.references[block.index()];
        *references += 1;
        if *references == 1 {
            self.used += 1;
            self.cache.iter_mut().for_each(|cache| cache.wake(block));
        }
    }

    /// One less holds the block.
    pub fn release(&mut self, block: BlockId) {
        let references = &mut self.references[block.index()];
        debug_assert!(*references > 0, "block {} is released twice", block.0);
        *references -= 1;
        if *references > 0 {
            return;
        }
        self.used -= 1;
        match &mut self.cache {
            Some(cache) if cache.holds(block) => cache.rest(block),
            _ => self.free.push(block),
        }
    }

    /// All blocks of a sequence are held by one less, the last first.
    pub fn release_all(&mut self, blocks: &[BlockId]) {
        blocks.iter().rev().for_each(|&block| self.release(block));
    }

    /// The block that holds these tokens after that parent, to be shared at once: nothing keeps it meanwhile.
    pub fn find(&self, hash: ChainHash, parent: Parent, tokens: &[u32]) -> Option<BlockId> {
        self.cache.as_ref()?.find(hash, parent, tokens)
    }

    /// Lets others find a full block, which its only holder will not write again.
    ///
    /// Where another holds the same already, the holder shares that one from now on: one copy is enough, and
    /// whoever holds a block the cache knows holds all that come before it.
    pub fn register(
        &mut self,
        block: BlockId,
        hash: ChainHash,
        parent: Parent,
        tokens: &[u32],
    ) -> Registered {
        let Some(cache) = &mut self.cache else { return Registered::Not };
        if let Some(same) = cache.find(hash, parent, tokens) {
            self.share(same);
            self.release(block);
            return Registered::Moved(same);
        }
        if cache.insert(block, hash, parent, tokens) { Registered::Here } else { Registered::Not }
    }

    /// Whether contents are remembered at all.
    pub fn remembers(&self) -> bool {
        self.cache.is_some()
    }

    /// Whether blocks are counted right and no chain has lost its beginning.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let held = self.references.iter().filter(|&&references| references > 0).count();
        if held != self.used as usize {
            return Err(format!("{held} blocks are held, {} counted", self.used));
        }
        let idle = self.cache.as_ref().map_or(0, PrefixCache::idle) as usize;
        if held + idle + self.free.len() != self.references.len() {
            return Err(format!("{held} held, {idle} idle, {} free: not all", self.free.len()));
        }
        if let Some(block) = self.free.iter().find(|block| self.references(**block) > 0) {
            return Err(format!("block {} is free and held", block.0));
        }
        self.cache.as_ref().map_or(Ok(()), |cache| cache.check(|block| self.references(block)))
    }
}
