//! The block pool: counted references, and a free list that evicts what was unused for longest.

use crate::continuous::block_pool::Registered;
use crate::continuous::prefix_cache::{ChainHash, Parent};
use crate::continuous::{BlockCounts, BlockId, BlockPool};

const ROOT: Parent = Parent::Root(None);

fn counts(used: u32, cached: u32, free: u32) -> BlockCounts {
    BlockCounts { used, cached, free }
}

fn hash(tokens: &[u32]) -> ChainHash {
    ChainHash::root(None).then(tokens)
}

/// A block that holds `tokens` after the root, registered and held.
fn holding(pool: &mut BlockPool, tokens: &[u32]) -> BlockId {
    let block = pool.take().unwrap();
    assert_eq!(pool.register(block, hash(tokens), ROOT, tokens), Registered::Here);
    block
}

#[test]
fn gives_every_block_once_and_then_none() {
    let mut pool = BlockPool::new(3, 2, true);
    let mut taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [BlockId(0), BlockId(1), BlockId(2)]);
    assert_eq!(pool.counts(), counts(3, 0, 0));
    assert_eq!(pool.available(), 0);
}

#[test]
fn a_shared_block_is_free_when_the_last_lets_go() {
    let mut pool = BlockPool::new(2, 2, false);
    let block = pool.take().unwrap();
    pool.share(block);
    assert!(!pool.writable(block));
    pool.release(block);
    assert!(pool.writable(block));
    assert_eq!(pool.counts(), counts(1, 0, 1));
    pool.release(block);
    assert_eq!(pool.counts(), counts(0, 0, 2));
}

#[test]
fn a_registered_block_is_not_written_even_by_its_only_holder() {
    let mut pool = BlockPool::new(2, 2, true);
    let block = holding(&mut pool, &[1, 2]);
    assert!(!pool.writable(block));
}

#[test]
fn what_nobody_holds_is_found_again() {
    let mut pool = BlockPool::new(2, 2, true);
    let block = holding(&mut pool, &[1, 2]);
    pool.release(block);
    assert_eq!(pool.counts(), counts(0, 1, 1));
    assert_eq!(pool.find(hash(&[1, 2]), ROOT, &[1, 2]), Some(block));
    pool.share(block);
    assert_eq!(pool.counts(), counts(1, 0, 1));
}

#[test]
fn free_blocks_go_before_cached_ones_and_the_longest_unused_before_others() {
    let mut pool = BlockPool::new(3, 2, true);
    let [first, second] = [[1, 1], [2, 2]].map(|tokens| holding(&mut pool, &tokens));
    pool.release(first);
    pool.release(second);
    assert!(![first, second].contains(&pool.take().unwrap()));
    assert_eq!(pool.evictions(), 0);
    assert_eq!(pool.take(), Some(first));
    assert_eq!(pool.find(hash(&[1, 1]), ROOT, &[1, 1]), None);
    assert_eq!(pool.evictions(), 1);
    assert_eq!(pool.take(), Some(second));
}

#[test]
fn use_makes_a_block_the_last_to_go() {
    let mut pool = BlockPool::new(2, 2, true);
    let [first, second] = [[1, 1], [2, 2]].map(|tokens| holding(&mut pool, &tokens));
    pool.release(first);
    pool.release(second);
    pool.share(first);
    pool.release(first);
    assert_eq!(pool.take(), Some(second));
}

#[test]
fn a_chain_is_forgotten_from_its_end() {
    let mut pool = BlockPool::new(3, 2, true);
    let head = holding(&mut pool, &[1, 2]);
    let [middle, tail] = [3, 5].map(|_| pool.take().unwrap());
    let after = hash(&[1, 2]).then(&[3, 4]);
    pool.register(middle, after, Parent::Block(head), &[3, 4]);
    pool.register(tail, after.then(&[5, 6]), Parent::Block(middle), &[5, 6]);
    pool.release_all(&[head, middle, tail]);
    assert_eq!([pool.take(), pool.take(), pool.take()], [Some(tail), Some(middle), Some(head)]);
}

#[test]
fn of_two_equal_blocks_one_is_kept() {
    let mut pool = BlockPool::new(3, 2, true);
    let first = holding(&mut pool, &[1, 2]);
    let second = pool.take().unwrap();
    assert_eq!(pool.register(second, hash(&[1, 2]), ROOT, &[1, 2]), Registered::Moved(first));
    assert_eq!(pool.references(first), 2);
    assert_eq!(pool.counts(), counts(1, 0, 2));
}

#[test]
fn a_collision_gives_nobody_anothers_block() {
    let mut pool = BlockPool::new(4, 2, true);
    let hash = ChainHash::of(42);
    let first = pool.take().unwrap();
    let second = pool.take().unwrap();
    assert_eq!(pool.register(first, hash, ROOT, &[1, 2]), Registered::Here);
    assert_eq!(pool.register(second, hash, ROOT, &[3, 4]), Registered::Not);
    assert_eq!(pool.find(hash, ROOT, &[3, 4]), None, "other tokens");
    assert_eq!(pool.find(hash, Parent::Block(second), &[1, 2]), None, "another parent");
    assert_eq!(pool.find(hash, Parent::Root(Some(7)), &[1, 2]), None, "another salt");
    assert_eq!(pool.find(hash, ROOT, &[1, 2]), Some(first));
    assert!(pool.writable(second), "what is not remembered stays its holder's");
}

#[test]
fn without_caching_nothing_is_remembered() {
    let mut pool = BlockPool::new(1, 2, false);
    let block = pool.take().unwrap();
    assert_eq!(pool.register(block, hash(&[1, 2]), ROOT, &[1, 2]), Registered::Not);
    pool.release(block);
    assert_eq!(pool.counts(), counts(0, 0, 1));
    assert!(!pool.remembers());
}

#[test]
fn hashes_tell_order_length_and_salt_apart() {
    let root = ChainHash::root(None);
    let all = [
        root,
        root.then(&[0]),
        root.then(&[0, 0]),
        root.then(&[1, 2]),
        root.then(&[2, 1]),
        ChainHash::root(Some(0)),
        ChainHash::root(Some(1)),
        ChainHash::root(Some(0)).then(&[1, 2]),
    ];
    for (index, one) in all.iter().enumerate() {
        assert!(all[index + 1..].iter().all(|other| one != other), "hash {index} is another's");
    }
    assert_eq!(root.then(&[1, 2]), root.then(&[1]).then(&[2]));
}
