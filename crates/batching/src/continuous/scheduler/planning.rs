//! What the next step feeds: a token of everyone who generates, and chunks of prompts in what that leaves.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::ahead::Ahead;
use super::{Running, Scheduler};
use crate::continuous::block_pool::BlockId;
use crate::continuous::prefix_cache::ChainHash;
use crate::continuous::sequence::{Ended, Sequence, SequenceId, State, blocks_for};
use crate::continuous::step::{StepId, StepPlan, Work};
use crate::continuous::step_time::{StepLoad, StepTime};
use crate::hash::Multiply;
use crate::time::Time;

/// Tokens of prompts beside decodes, where a target is set and steps' times are not known yet.
const UNKNOWN_CHUNK: usize = 128;

/// Tokens in a step of prompts that are scored. Each takes a row of logits: as many as a large vocabulary has.
const SCORED_CHUNK: usize = 256;

/// What `schedule` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheduled {
    /// Sequences whose deadline has passed.
    pub ended: Vec<Ended>,
    /// The step to run; `None` while one runs, or with nothing to feed.
    pub plan: Option<StepPlan>,
}

/// Full blocks that somebody feeds in this step or in those to come.
type Coming = HashSet<ChainHash, BuildHasherDefault<Multiply>>;

/// A step in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) work: Vec<Work>,
    pub(super) copies: Vec<(BlockId, BlockId)>,
    load: StepLoad,
    /// Tokens that it may still feed, and those of them that may be prompts'.
    left: usize,
    prompt_left: usize,
    /// Tokens of prompts that it may still score.
    score_left: usize,
    /// Whether others got nothing for want of blocks, or wait for what somebody computes.
    pub(super) contested: bool,
}

impl Draft {
    /// One in which nobody is.
    pub(super) fn of_copies(copies: Vec<(BlockId, BlockId)>) -> Self {
        Self { copies, ..Self::default() }
    }

    /// Makes `to` a copy of `from` before the step.
    fn copy(&mut self, from: BlockId, to: BlockId) {
        // Whoever had it for a copy before has been preempted.
        self.copies.retain(|&(_, other)| other != to);
        self.copies.push((from, to));
    }
}

impl Scheduler {
    /// What to run next. Nothing runs before the last plan was committed: the tokens that it draws are part of the
    /// next.
    pub fn schedule(&mut self, now: Time) -> Scheduled {
        let (ended, _) = self.expire(now);
        if self.step.is_some() || self.requests.is_empty() {
            return Scheduled { ended, plan: None };
        }
        let ahead = self.ahead.take();
        let decodes = self.running.iter().filter(|id| self.sequences[id].decodes()).count();
        let started = self.start_waiting(now, self.prompt_budget(decodes));
        let mut draft = self.resume(now, ahead, started);
        while draft.work.is_empty() && self.running.len() > 1 {
            // Prompts that have begun hold all blocks, and none can go on.
            let Some(victim) = self.victim(None) else { break };
            self.preempt_for_blocks(now, victim);
            self.plan_prompts(now, &mut draft);
        }
        Scheduled { ended, plan: self.seal(draft) }
    }

    /// A step for those who run, with copies that are due.
    pub(super) fn plan(&mut self, now: Time, copies: Vec<(BlockId, BlockId)>) -> Draft {
        let left = self.config.max_step_tokens as usize;
        let mut draft = Draft { left, score_left: SCORED_CHUNK, ..Draft::of_copies(copies) };
        self.plan_decodes(now, &mut draft);
        draft.prompt_left = self.prompt_budget(draft.work.len());
        self.plan_prompts(now, &mut draft);
        draft
    }

    /// The most tokens of prompts in a step in which so many decode.
    fn prompt_budget(&self, decodes: usize) -> usize {
        let left = (self.config.max_step_tokens as usize).saturating_sub(decodes);
        match self.config.prefill_chunk {
            Some(chunk) if decodes > 0 => left.min(chunk.max(1) as usize),
            _ => left,
        }
    }

    fn seal(&mut self, draft: Draft) -> Option<StepPlan> {
        if draft.work.is_empty() {
            self.ahead = Ahead::of_copies(draft);
            return None;
        }
        let id = StepId(self.next_step);
        self.next_step += 1;
        let work: Vec<_> = draft.work.iter().map(|work| work.sequence).collect();
        for id in &work {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.fed = std::mem::take(&mut sequence.planned);
            }
        }
        self.step = Some(Running { id, work, load: draft.load });
        self.counters.copies += draft.copies.len() as u64;
        Some(StepPlan {
            id,
            work: draft.work,
            copies: draft.copies,
            preempted: std::mem::take(&mut self.just_preempted),
            predicted: self.times.predict(draft.load),
        })
    }

    fn plan_decodes(&mut self, now: Time, draft: &mut Draft) {
        let takes_part = |id: &SequenceId| self.sequences[id].decodes() && !self.sequences[id].is_open();
        let decodes = self.running.iter().copied().filter(takes_part);
        let mut decodes: Vec<_> = decodes.collect();
        if (self.pool.available() as usize) < decodes.len() {
            // Somebody may have to give way: best protected first, so that those planned are never victims.
            decodes.sort_by_cached_key(|&id| Reverse(self.protection(id)));
        }
        for id in decodes {
            while self.sequences[&id].state == State::Running && draft.left > 0 {
                if self.prepare(id, 1, draft) {
                    self.feed(id, 1, draft);
                    break;
                }
                // Itself, if nobody is less protected.
                let Some(victim) = self.victim(None) else {
                    draft.contested = true;
                    break;
                };
                self.preempt_for_blocks(now, victim);
            }
        }
    }

    /// Feeds prompts that have places, most urgent first.
    fn plan_prompts(&mut self, now: Time, draft: &mut Draft) {
        let sequences = &self.sequences;
        let lacks = |id: &SequenceId| sequences[id].planned == 0 && !sequences[id].is_open();
        let mut prompts: Vec<_> = self.running.iter().copied().filter(lacks).collect();
        if prompts.is_empty() {
            return;
        }
        prompts.sort_unstable_by_key(|id| (Reverse(sequences[id].rank), *id));
        let mut coming = self.coming();
        let alone = prompts.len() == 1;
        for id in prompts {
            if draft.prompt_left == 0 {
                break;
            }
            if self.sequences[&id].state != State::Running {
                continue;
            }
            self.extend_from_cache(id, draft);
            if self.awaits(id, &coming) {
                draft.contested = true;
                continue;
            }
            let chunk = self.chunk(now, id, draft);
            if chunk == 0 {
                continue;
            }
            if !self.prepare(id, chunk, draft) {
                draft.contested = true;
                continue;
            }
            self.feed(id, chunk, draft);
            if !alone {
                self.announce(id, &mut coming);
            }
        }
    }

    /// How many tokens of its prompt a sequence feeds: as time, budget and blocks allow.
    fn chunk(&mut self, now: Time, id: SequenceId, draft: &mut Draft) -> usize {
        let sequence = &self.sequences[&id];
        let (start, mut most) = (sequence.start(), sequence.pending().min(draft.prompt_left));
        if !sequence.may_share(start + most) {
            most = most.min(draft.score_left);
        }
        let rank = sequence.rank;
        let mut chunk = self.chunk_beside(self.times.known(), draft.load, start, most);
        if draft.load.prompt_tokens == 0.0 {
            // However long decodes take: a prompt that has begun has to end some time.
            chunk = chunk.max(most.min(self.config.block_size as usize));
        }
        loop {
            let room = self.room(id).saturating_sub(start);
            draft.contested |= room < chunk;
            if room > 0 || chunk == 0 {
                return chunk.min(room);
            }
            let Some(victim) = self.victim(Some(rank)) else { return 0 };
            self.preempt_for_blocks(now, victim);
        }
    }

    /// How many tokens, of at most `most`, a chunk that begins at `start` may have beside this load.
    pub(super) fn chunk_beside(
        &self,
        times: Option<&StepTime>,
        load: StepLoad,
        start: usize,
        most: usize,
    ) -> usize {
        let most = match self.config.prefill_chunk {
            Some(chunk) if load.decodes > 0.0 => most.min(chunk.max(1) as usize),
            _ => most,
        };
        match (self.config.inter_token_target, times) {
            (None, _) => most,
            // Nobody waits for a token.
            (Some(_), _) if load.decodes == 0.0 => most,
            (Some(_), None) => most.min(UNKNOWN_CHUNK),
            (Some(target), Some(times)) => times.largest_chunk(load, start, most, target),
        }
    }

    /// How many tokens of the sequence its blocks and all that are left would hold.
    fn room(&self, id: SequenceId) -> usize {
        let sequence = &self.sequences[&id];
        let mut blocks = sequence.blocks.len() + self.pool.available() as usize;
        if self.shared_block(sequence).is_some() {
            blocks -= 1;
        }
        blocks * self.config.block_size as usize
    }

    /// The index of the block that its next token goes to, where that may not be written.
    fn shared_block(&self, sequence: &Sequence) -> Option<usize> {
        let index = sequence.start() / self.config.block_size as usize;
        let block = *sequence.blocks.get(index)?;
        (!self.pool.writable(block)).then_some(index)
    }

    /// Gives the sequence blocks for its next `count` tokens, all its own to write; false, and nothing
    /// changed, where there are not enough.
    fn prepare(&mut self, id: SequenceId, count: usize, draft: &mut Draft) -> bool {
        let sequence = &self.sequences[&id];
        let shared = self.shared_block(sequence);
        let needed = blocks_for((sequence.start() + count) as u64, self.config.block_size) as usize;
        let more = needed.saturating_sub(sequence.blocks.len());
        if more + usize::from(shared.is_some()) > self.pool.available() as usize {
            return false;
        }
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        if let Some(index) = shared
            && let Some(own) = self.pool.take()
        {
            draft.copy(sequence.blocks[index], own);
            self.pool.release(std::mem::replace(&mut sequence.blocks[index], own));
            sequence.shared = sequence.shared.min(index);
        }
        for _ in 0..more {
            sequence.blocks.extend(self.pool.take());
        }
        true
    }

    fn feed(&mut self, id: SequenceId, count: usize, draft: &mut Draft) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let start = sequence.start();
        let samples = count == sequence.pending();
        // A prompt of one token is fed like a token that was drawn.
        draft.load = if sequence.decodes() {
            draft.load.with_decode(start + 1)
        } else {
            draft.load.with_chunk(start, count)
        };
        let scores = !sequence.may_share(start + count);
        sequence.planned = count;
        draft.left -= count;
        draft.score_left = draft.score_left.saturating_sub(if scores { count } else { 0 });
        draft.prompt_left = draft.prompt_left.saturating_sub(count);
        let forks = if samples { u64::from(sequence.forks) } else { 0 };
        draft.work.push(Work {
            sequence: id,
            // Not the one that is being drawn.
            tokens: sequence.tokens.iter().skip(start).take(count).copied().collect(),
            start: start as u32,
            blocks: sequence.blocks.clone(),
            samples,
            scores,
            forks: (1..=forks).map(|fork| SequenceId(id.0 + fork)).collect(),
        });
    }

    /// Lets a sequence share what others have computed of what comes next, but for its last token: the logits
    /// of that one are wanted.
    fn extend_from_cache(&mut self, id: SequenceId, draft: &mut Draft) {
        let size = self.config.block_size as usize;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let before = sequence.computed;
        loop {
            let index = sequence.blocks.len();
            let end = (index + 1) * size;
            let aligned = sequence.start() == index * size && sequence.known == index;
            let fits = end <= sequence.tokens.len() && sequence.may_share(end);
            if !aligned || !fits || !self.pool.remembers() {
                break;
            }
            let hash = sequence.hash(index, size);
            let tokens = &sequence.tokens[index * size..end];
            let Some(found) = self.pool.find(hash, sequence.parent(index), tokens) else { break };
            self.pool.share(found);
            if end < sequence.tokens.len() {
                sequence.blocks.push(found);
                (sequence.known, sequence.computed) = (index + 1, end);
                sequence.shared += usize::from(sequence.shared == index);
                continue;
            }
            // All of it is there: of a copy only the last token is fed again.
            if let Some(own) = self.pool.take() {
                draft.copy(found, own);
                sequence.blocks.push(own);
                sequence.computed = end - 1;
            }
            self.pool.release(found);
            break;
        }
        if !sequence.resumed {
            let cached = sequence.computed - before;
            self.counters.cached_prompt_tokens += cached as u64;
            if let Some(live) = self.requests.get_mut(&sequence.request) {
                live.cached_tokens += cached as u32;
            }
        }
    }

    /// Whether the sequence's next block is one that another feeds: better to share it when it is there.
    fn awaits(&mut self, id: SequenceId, coming: &Coming) -> bool {
        let size = self.config.block_size as usize;
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let index = sequence.blocks.len();
        let aligned = sequence.start() == index * size && sequence.known == index;
        aligned
            && !coming.is_empty()
            && (index + 1) * size <= sequence.tokens.len()
            && sequence.may_share((index + 1) * size)
            && coming.contains(&sequence.hash(index, size))
    }

    /// What the step that runs feeds and nobody can find before it has ended.
    fn coming(&mut self) -> Coming {
        let mut coming = Coming::default();
        let runs = self.step.iter().flat_map(|step| &step.work).copied();
        for id in runs.collect::<Vec<_>>() {
            self.announce(id, &mut coming);
        }
        coming
    }

    /// Others that begin alike may wait for the full blocks that the sequence has yet to feed.
    fn announce(&mut self, id: SequenceId, coming: &mut Coming) {
        if !self.pool.remembers() {
            return;
        }
        let size = self.config.block_size as usize;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        for index in sequence.known..sequence.tokens.len() / size {
            coming.insert(sequence.hash(index, size));
        }
    }
}
