//! Who gives way when blocks or places run out: the least urgent, and of those who loses least.
//!
//! A preempted sequence gives up its blocks and later feeds prompt and generated tokens again. Of equals the one
//! with most work done is never the victim, so somebody always comes to an end.

use std::cmp::Reverse;

use super::Scheduler;
use crate::continuous::sequence::{SequenceId, State};
use crate::entry::Priority;
use crate::time::Time;

/// What protects a sequence, the least protected being the least: its rank, the work that it would lose, and
/// that it came early.
type Protection = (Priority, usize, Reverse<SequenceId>);

impl Scheduler {
    pub(super) fn protection(&self, id: SequenceId) -> Protection {
        let sequence = &self.sequences[&id];
        // What others hold too is found again.
        let lost = sequence.computed.saturating_sub(self.held_too(id) * self.config.block_size as usize);
        (sequence.rank, lost, Reverse(id))
    }

    fn held_too(&self, id: SequenceId) -> usize {
        let blocks = self.sequences[&id].blocks.iter();
        blocks.filter(|&&block| self.pool.references(block) > 1).count()
    }

    /// Who gives way first of those that run and are not in this step yet, of ranks below `below` if that is
    /// given. Where anybody's end frees a block, it is one whose does. Nobody while a step runs: who ends with it may
    /// leave enough.
    pub(super) fn victim(&self, below: Option<Priority>) -> Option<SequenceId> {
        if self.step.is_some() {
            return None;
        }
        let order = |id: &SequenceId| {
            let frees = self.held_too(*id) < self.sequences[id].blocks.len();
            (!frees, self.protection(*id))
        };
        let may = |id: &SequenceId| {
            let sequence = &self.sequences[id];
            sequence.planned == 0 && below.is_none_or(|rank| sequence.rank < rank)
        };
        self.running.iter().copied().filter(may).min_by_key(order)
    }

    /// Takes a sequence's place and blocks because others need those.
    pub(super) fn preempt_for_blocks(&mut self, now: Time, id: SequenceId) {
        self.outlook.preempted();
        self.preempt(now, id);
    }

    /// Takes a sequence's place and blocks; it will be computed again.
    pub(super) fn preempt(&mut self, now: Time, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        self.counters.preemptions += 1;
        self.counters.preempted_tokens += sequence.computed as u64;
        self.pool.release_all(&sequence.blocks);
        sequence.blocks.clear();
        (sequence.computed, sequence.known, sequence.shared) = (0, 0, 0);
        sequence.state = State::Preempted(now);
        sequence.resumed = true;
        self.running.retain(|&other| other != id);
        self.preempted.push(id);
        self.just_preempted.push(id);
    }
}
