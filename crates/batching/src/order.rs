//! Tickets by time: constant work while they come in order, which nearly all do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::entry::Ticket;
use crate::time::Time;

/// A time (deadline or arrival), and the ticket it belongs to.
pub(crate) type Key = (Time, Ticket);

/// A set of tickets, least key first.
///
/// A removed ticket stays inside until it comes to the front or the dead are three times the living (a sweep
/// asks about each of them, mostly far apart in memory, so it must end many), so its owner
/// says which still live; the front always does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// Keys that came in order: arrivals always do, and deadlines as long as timeouts are alike.
    run: VecDeque<Key>,
    /// The others.
    strays: BinaryHeap<Reverse<Key>>,
    live: usize,
}

/// Dead keys that are not worth a sweep.
const SLACK: usize = 64;

impl Order {
    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub(crate) fn first(&self) -> Option<Key> {
        let stray = self.strays.peek().map(|&Reverse(key)| key);
        self.run.front().copied().into_iter().chain(stray).min()
    }

    pub(crate) fn push(&mut self, key: Key) {
        self.live += 1;
        match self.run.back() {
            Some(&last) if key < last => self.strays.push(Reverse(key)),
            _ => self.run.push_back(key),
        }
    }

    /// To be called once for each ticket that ended, after which `lives` no longer holds for it.
    pub(crate) fn removed(&mut self, lives: impl Fn(Ticket) -> bool) {
        self.live -= 1;
        while self.run.front().is_some_and(|&(_, ticket)| !lives(ticket)) {
            self.run.pop_front();
        }
        while self.strays.peek().is_some_and(|&Reverse((_, ticket))| !lives(ticket)) {
            self.strays.pop();
        }
        if self.run.len() + self.strays.len() > 4 * self.live + SLACK {
            self.run.retain(|&(_, ticket)| lives(ticket));
            self.strays.retain(|&Reverse((_, ticket))| lives(ticket));
        }
    }

    /// All that live, in no order.
    pub(crate) fn iter(&self, lives: impl Fn(Ticket) -> bool) -> impl Iterator<Item = Ticket> {
        let strays = self.strays.iter().map(|&Reverse((_, ticket))| ticket);
        self.run.iter().map(|&(_, ticket)| ticket).chain(strays).filter(move |&ticket| lives(ticket))
    }
}
