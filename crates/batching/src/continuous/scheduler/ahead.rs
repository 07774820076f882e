//! Planning while a step runs: who takes part in the next one, and in which blocks, if this one ends nobody.
//!
//! All that a step leaves open is which tokens it draws, and who stops with them. So the next one is planned as if
//! everybody went on. If everybody did and nobody begins, the plan stands once the tokens are filled in; otherwise all
//! of it is planned anew, so that who gives way and who goes first is decided as if nothing had been planned.

use super::Scheduler;
use super::planning::Draft;
use crate::continuous::block_pool::BlockId;
use crate::continuous::sequence::{SequenceId, State, blocks_for};
use crate::time::Time;

/// A plan for the step after the one that runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead {
    /// Nobody is in it where it cannot stand. The copies that it needs are due whatever becomes of it.
    draft: Draft,
    /// How many run then, if nobody stops or begins.
    running: usize,
}

impl Ahead {
    /// Nothing but copies that are due.
    pub(super) fn of_copies(draft: Draft) -> Option<Self> {
        (!draft.copies.is_empty()).then_some(Self { draft, running: 0 })
    }
}

impl Scheduler {
    /// Plans the step after the one that runs, for [`Self::schedule`] to complete; how many sequences take part. 0 with
    /// no step that runs, where that was done already, and where it hangs on what the step brings: for want of blocks,
    /// or because others wait for what it computes. It may be left out: what is run is the same.
    pub fn plan_ahead(&mut self, now: Time) -> usize {
        let begins = |id: &SequenceId| self.sequences[id].draws() && self.sequences[id].forks > 0;
        if self.step.is_none() || self.ahead.is_some() || self.running.is_empty() {
            return 0;
        }
        if self.running.iter().any(begins) {
            return 0;
        }
        let ends = |id: &&SequenceId| self.sequences[*id].is_open();
        let running = self.running.len() - self.running.iter().filter(ends).count();
        let mut draft = self.plan(now, Vec::new());
        for work in &draft.work {
            if let Some(sequence) = self.sequences.get_mut(&work.sequence) {
                sequence.planned = 0;
            }
        }
        if draft.contested {
            draft = Draft::of_copies(self.give_up(draft));
        }
        let members = draft.work.len();
        self.ahead = Some(Ahead { draft, running });
        members
    }

    /// The next step: as it was planned ahead, if that stands, or planned now.
    pub(super) fn resume(&mut self, now: Time, ahead: Option<Ahead>, started: bool) -> Draft {
        let Some(Ahead { draft, running }) = ahead else { return self.plan(now, Vec::new()) };
        let runs = |id| self.sequences.get(&id).is_some_and(|sequence| sequence.state == State::Running);
        let all_go_on = draft.work.iter().all(|work| runs(work.sequence));
        if !started && running == self.running.len() && all_go_on && !draft.work.is_empty() {
            return self.complete(draft);
        }
        let copies = self.give_up(draft);
        self.plan(now, copies)
    }

    /// Fills in what the last step has drawn and computed.
    fn complete(&mut self, mut draft: Draft) -> Draft {
        for work in &mut draft.work {
            let Some(sequence) = self.sequences.get_mut(&work.sequence) else { continue };
            if work.tokens.is_empty() {
                work.tokens.extend(sequence.tokens.last());
            }
            sequence.planned = work.tokens.len();
            work.scores = !sequence.may_share(work.start as usize + work.tokens.len());
            // A full block may be another's of the same content now.
            work.blocks.clone_from(&sequence.blocks);
        }
        draft
    }

    /// Takes back the blocks that were for tokens of the plan; the copies that are due for those who live.
    fn give_up(&mut self, draft: Draft) -> Vec<(BlockId, BlockId)> {
        let size = self.config.block_size;
        for work in draft.work {
            let Some(sequence) = self.sequences.get_mut(&work.sequence) else { continue };
            let held = blocks_for(sequence.start() as u64, size) as usize;
            self.pool.release_all(&sequence.blocks.split_off(held.min(sequence.blocks.len())));
        }
        draft.copies.into_iter().filter(|&(_, to)| self.pool.references(to) > 0).collect()
    }
}
