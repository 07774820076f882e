//! Planning while a step runs: who takes part in the next one, and in which blocks, if this one ends nobody.
//!
//! All that a step leaves open is which tokens it draws, and who ends with them. So the next one is planned as if
//! everybody went on; the plan is completed once the tokens are there, and what they contradict is planned anew.

use super::Scheduler;
use super::planning::Draft;
use crate::continuous::block_pool::BlockId;
use crate::continuous::sequence::{Sequence, SequenceId, State, blocks_for};
use crate::time::Time;

/// A plan for the step after the one that runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead {
    decodes: Vec<SequenceId>,
    /// Chunks of prompts, and how many tokens each has.
    prompts: Vec<(SequenceId, usize)>,
    /// Copies of blocks that these need.
    copies: Vec<(BlockId, BlockId)>,
    /// The request that was next to be admitted.
    next_request: u64,
}

impl Scheduler {
    /// Plans the step after the one that runs, for [`Self::schedule`] to complete; how many sequences take part.
    /// 0 with no step that runs, or where that was done already. It may be left out: all that follows is the same,
    /// but later.
    pub fn plan_ahead(&mut self, now: Time) -> usize {
        if self.step.is_none() || self.ahead.is_some() {
            return 0;
        }
        self.start_waiting(now, self.prompt_budget(self.decodes()));
        let mut draft = self.draft();
        self.plan_decodes(now, &mut draft);
        let decodes = draft.work.len();
        draft.prompt_left = self.prompt_budget(decodes);
        self.plan_prompts(now, &mut draft);
        let mut planned =
            |id| self.sequences.get_mut(&id).map_or(0, |sequence| std::mem::take(&mut sequence.planned));
        let counts = draft.work.iter().map(|work| (work.sequence, planned(work.sequence)));
        let mut prompts: Vec<_> = counts.collect();
        let ahead = Ahead {
            decodes: prompts.drain(..decodes).map(|(id, _)| id).collect(),
            prompts,
            copies: draft.copies,
            next_request: self.next_request,
        };
        self.ahead.insert(ahead).members()
    }

    /// Takes in what was planned for those who generate and go on.
    pub(super) fn resume_decodes(&mut self, ahead: &Ahead, draft: &mut Draft) {
        let held = ahead.copies.iter().filter(|&&(_, to)| self.pool.references(to) > 0);
        draft.copies.extend(held);
        for &id in &ahead.decodes {
            // It may have been preempted, and begun again.
            if self.lacks(id) && self.sequences[&id].decodes() && self.prepare(id, 1, draft) {
                self.feed(id, 1, draft);
            }
        }
    }

    /// Takes in what was planned for prompts; to be planned anew where others may be more urgent by now.
    pub(super) fn resume_prompts(&mut self, ahead: Ahead, undisturbed: bool, draft: &mut Draft) {
        let stands = undisturbed && ahead.next_request == self.next_request;
        for (id, count) in ahead.prompts {
            if !self.lacks(id) {
                continue;
            }
            if stands {
                self.feed(id, count, draft);
            } else {
                self.give_back(id);
            }
        }
    }

    /// Whether it runs, and has no part in this step yet.
    fn lacks(&self, id: SequenceId) -> bool {
        let lacks = |sequence: &Sequence| sequence.state == State::Running && sequence.planned == 0;
        self.sequences.get(&id).is_some_and(lacks)
    }

    /// Takes the blocks that a sequence has for tokens it does not feed yet.
    fn give_back(&mut self, id: SequenceId) {
        let size = self.config.block_size;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let held = blocks_for(sequence.computed as u64, size) as usize;
        self.pool.release_all(&sequence.blocks.split_off(held.min(sequence.blocks.len())));
    }
}

impl Ahead {
    fn members(&self) -> usize {
        self.decodes.len() + self.prompts.len()
    }
}
