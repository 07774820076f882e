//! Strings that end a text.
//!
//! An automaton of all stop strings (Aho and Corasick, 1975) reads each byte once, however many strings
//! there are. Its state is the longest end of the text that begins one of them: that much is held back.

use std::collections::VecDeque;
use std::sync::Arc;

/// Finds stop strings across the borders of tokens, and holds back what may yet become one.
///
/// The text ends with the stop string that is complete first, of those complete together with the one that
/// began first. How the text was cut when it came does not matter. An empty stop string never ends it.
#[derive(Debug, Clone)]
pub struct StopStrings {
    automaton: Arc<Automaton>,
    include: bool,
    state: u32,
    held: String,
    stopped: bool,
}

/// Text that is certain to be part of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// The text, maybe empty.
    pub text: String,
    /// Which stop string ended the text.
    pub stopped: Option<usize>,
}

impl StopStrings {
    /// Looks for any of `stops`; `include`: the one found is part of the text. Clones share what is made
    /// of them, and begin where their original stands.
    pub fn new(stops: Arc<[String]>, include: bool) -> Self {
        let automaton = Arc::new(Automaton::new(stops));
        Self { automaton, include, state: ROOT, held: String::new(), stopped: false }
    }

    /// One of the strings it looks for.
    pub fn stop(&self, index: usize) -> Option<&str> {
        self.automaton.stops.get(index).map(String::as_str)
    }

    /// Adds text. What comes after a stop string is dropped.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped {
            return Released::default();
        }
        for (at, byte) in text.bytes().enumerate() {
            self.state = self.automaton.step(self.state, byte);
            if let Some(stop) = self.automaton.node(self.state).found {
                self.stopped = true;
                let mut all = std::mem::take(&mut self.held);
                all.push_str(&text[..=at]);
                if !self.include {
                    all.truncate(all.len() - self.automaton.stops[stop].len());
                }
                return Released { text: all, stopped: Some(stop) };
            }
        }
        self.held.push_str(text);
        // What will be part of the text in any case need not wait.
        let keep = if self.include { 0 } else { self.automaton.node(self.state).depth };
        let rest = self.held.split_off(self.held.len() - keep);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// What was held back: nothing more comes.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }
}

const ROOT: u32 = 0;

/// All beginnings of all stop strings, as a tree.
#[derive(Debug)]
struct Automaton {
    nodes: Vec<Node>,
    stops: Arc<[String]>,
}

#[derive(Debug, Default)]
struct Node {
    /// The beginnings that are one byte longer, by that byte.
    next: Vec<(u8, u32)>,
    /// The longest beginning that this one ends with, itself left out.
    fallback: u32,
    /// Bytes of this beginning.
    depth: usize,
    /// The longest stop string that this beginning ends with.
    found: Option<usize>,
}

impl Automaton {
    fn new(stops: Arc<[String]>) -> Self {
        let mut automaton = Self { nodes: vec![Node::default()], stops: Arc::clone(&stops) };
        for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            automaton.insert(index, stop.as_bytes());
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, index: usize, stop: &[u8]) {
        let mut at = ROOT;
        for (depth, &byte) in stop.iter().enumerate() {
            let next = &self.node(at).next;
            at = match next.binary_search_by_key(&byte, |&(byte, _)| byte) {
                Ok(found) => next[found].1,
                Err(place) => {
                    let new = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
                    self.nodes[at as usize].next.insert(place, (byte, new));
                    self.nodes.push(Node { depth: depth + 1, ..Node::default() });
                    new
                }
            };
        }
        self.nodes[at as usize].found.get_or_insert(index);
    }

    /// Finds the fallbacks, shorter beginnings before longer ones.
    fn link(&mut self) {
        let mut queue = VecDeque::from([ROOT]);
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.node(at).next.clone() {
                let fallback = if at == ROOT { ROOT } else { self.step(self.node(at).fallback, byte) };
                let found = self.node(fallback).found;
                let node = &mut self.nodes[child as usize];
                node.fallback = fallback;
                node.found = node.found.or(found);
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            let node = self.node(state);
            if let Ok(found) = node.next.binary_search_by_key(&byte, |&(byte, _)| byte) {
                return node.next[found].1;
            }
            if state == ROOT {
                return ROOT;
            }
            state = node.fallback;
        }
    }

    fn node(&self, state: u32) -> &Node {
        &self.nodes[state as usize]
    }
}
