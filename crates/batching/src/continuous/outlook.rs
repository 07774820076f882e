//! How many blocks those that run will need at most at once, before they end one after the other.
//!
//! The peak over the ends to come, each sequence growing by one token a step until its own (Gong et al.,
//! "Past-Future Scheduler for LLM Serving under SLA Guarantees", ASPLOS 2025). What is left of a sequence is
//! its allowance times the share of theirs that those before it used.

use super::sequence::blocks_for;

/// What sequences are believed to use of `max_tokens` before any has ended.
const FIRST_SHARE: f64 = 0.5;
/// Ends that the share is a mean of, mostly.
const MEMORY: f64 = 64.0;
/// A preemption shows that those that run use more than those that ended.
const PREEMPTED_FACTOR: f64 = 1.05;

/// What one sequence will need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Tokens that are to lie in blocks of its own, as far as they are known.
    pub(crate) own_tokens: u64,
    /// Tokens that it is expected to add, one a step.
    pub(crate) growth: u64,
}

/// The share of their allowance that sequences use.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    share: f64,
    ends: f64,
}

impl Default for Outlook {
    fn default() -> Self {
        Self { share: FIRST_SHARE, ends: 1.0 }
    }
}

impl Outlook {
    /// A sequence ended by itself after `generated` of at most `allowed` tokens.
    pub(crate) fn ended(&mut self, generated: u32, allowed: u32) {
        self.ends = (self.ends + 1.0).min(MEMORY);
        let used = f64::from(generated) / f64::from(allowed.max(1));
        self.share += (used - self.share) / self.ends;
    }

    /// A sequence was preempted for want of blocks.
    pub(crate) fn preempted(&mut self) {
        self.share = (self.share * PREEMPTED_FACTOR).min(1.0);
    }

    /// Tokens that a sequence is expected to generate when it may still generate `allowed`.
    pub(crate) fn expected(&self, allowed: u32) -> u64 {
        (f64::from(allowed) * self.share).ceil() as u64
    }

    /// The part of `max_tokens` that sequences use, 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        self.share
    }
}

/// The most blocks in use at once, beside `base` that stay: `needs` grow together, and each ends when it has
/// grown by as much as is expected of it. Sorts `needs`.
pub(crate) fn peak_blocks(base: u64, needs: &mut [Need], block_size: u32) -> u64 {
    // Those that end last first: at the end of each, those before it are what still runs.
    needs.sort_unstable_by_key(|need| std::cmp::Reverse(need.growth));
    let (mut running, mut own) = (0, 0);
    let mut peak = base;
    for need in needs {
        running += 1;
        own += need.own_tokens;
        // The last block of each is half full on average.
        let unused = (running - 1) * u64::from(block_size - 1) / 2;
        let tokens = own + running * need.growth + unused;
        peak = peak.max(base + blocks_for(tokens, block_size));
    }
    peak
}
