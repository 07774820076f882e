//! Who gets a place in steps: the most urgent that waits, as long as blocks are expected to last.

use super::{RequestId, Scheduler};
use crate::continuous::outlook::{Need, peak_blocks};
use crate::continuous::prefix_cache::Parent;
use crate::continuous::sequence::{Sequence, SequenceId, State, blocks_for, most_fed};
use crate::entry::{Priority, Ticket};
use crate::time::Time;

impl Scheduler {
    /// Gives places to those that wait, for as long as a step that feeds at most `prompt_tokens` of prompts has
    /// some to feed of them; whether it gave any.
    pub(super) fn start_waiting(&mut self, now: Time, prompt_tokens: usize) -> bool {
        let mut started = false;
        while let Some(id) = self.next_to_start(now) {
            let rank = self.rank(now, &self.sequences[&id]);
            if self.backlog(rank) >= prompt_tokens || !self.make_room(now, id, rank) {
                break;
            }
            self.start(now, id, rank);
            started = true;
        }
        started
    }

    /// Of the preempted and the queue, who is first. The preempted have waited before: of equals they are,
    /// and whatever their priority once they have waited for long again.
    fn next_to_start(&mut self, now: Time) -> Option<SequenceId> {
        let order = |id: &&SequenceId| {
            let sequence = &self.sequences[*id];
            (std::cmp::Reverse(self.rank(now, sequence)), sequence.request, **id)
        };
        let preempted = self.preempted.iter().min_by_key(order).copied();
        let queued = self.queue.head(super::GROUP, now).map(|entry| (entry.priority, entry.ticket));
        match (preempted, queued) {
            (Some(id), Some((priority, _))) if self.rank(now, &self.sequences[&id]) >= priority => Some(id),
            (_, Some((_, ticket))) => self.requests.get(&RequestId(ticket.0)).map(|live| live.first),
            (preempted, None) => preempted,
        }
    }

    /// How urgent a sequence is that waits: as its request is, and as nothing else once it waited for long.
    fn rank(&self, now: Time, sequence: &Sequence) -> Priority {
        let since = match sequence.state {
            State::Waiting => self.requests.get(&sequence.request).map_or(now, |live| live.arrived),
            State::Running => now,
            State::Preempted(since) => since,
        };
        match self.config.ageing {
            Some(ageing) if now.since(since) >= ageing => Priority::Critical,
            _ => sequence.priority,
        }
    }

    /// Tokens that sequences at least as urgent have yet to feed: while they fill the step, nobody else starts.
    fn backlog(&self, rank: Priority) -> usize {
        let running = self.running.iter().map(|id| &self.sequences[id]);
        running.filter(|other| !other.decodes() && other.rank >= rank).map(Sequence::pending).sum()
    }

    /// Whether a sequence may start; sequences less urgent are preempted where that is what it takes.
    fn make_room(&mut self, now: Time, id: SequenceId, rank: Priority) -> bool {
        let size = self.config.block_size as usize;
        if self.pool.remembers()
            && let Some(sequence) = self.sequences.get_mut(&id)
            && let Some(last) = (sequence.tokens.len() / size).checked_sub(1)
        {
            // What it would find is asked of a sequence that cannot be changed.
            sequence.hash(last, size);
        }
        if self.fits(id, None) {
            return true;
        }
        if !self.config.preemption || !self.fits(id, Some(rank)) {
            return false;
        }
        while let Some(victim) = self.victim(Some(rank)) {
            self.preempt(now, victim);
            if self.fits(id, None) {
                return true;
            }
        }
        false
    }

    /// Whether there is a place and there will be blocks for a sequence, beside all that run, or beside those
    /// that are not less urgent than `but_below`.
    fn fits(&self, id: SequenceId, but_below: Option<Priority>) -> bool {
        let stays = |other: &&Sequence| but_below.is_none_or(|rank| other.rank >= rank);
        let running = || self.running.iter().map(|id| &self.sequences[id]).filter(stays);
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let places: u32 = running().map(Sequence::places).sum();
        if places + sequence.places() > self.config.max_sequences {
            return false;
        }
        if places == 0 {
            // All blocks are for it, and it was only let in because those are enough.
            return true;
        }
        let (size, blocks) = (self.config.block_size, u64::from(self.config.blocks));
        if !self.config.preemption {
            let whole = |sequence: &Sequence| {
                let each = blocks_for(most_fed(sequence.prompt, sequence.max_tokens), size);
                each * u64::from(sequence.places())
            };
            return running().map(whole).sum::<u64>() + whole(sequence) <= blocks;
        }
        let mut needs = Vec::with_capacity(places as usize + sequence.places() as usize);
        running().for_each(|other| self.needs(other, other.shared, &mut needs));
        let all = self.running.iter().map(|id| &self.sequences[id]);
        let own = all.map(|other| (other.blocks.len() - other.shared) as u64).sum::<u64>();
        let (hits, idle) = self.hits(sequence);
        self.needs(sequence, hits, &mut needs);
        let base = u64::from(self.pool.counts().used).saturating_sub(own) + idle;
        peak_blocks(base, &mut needs, size) <= blocks
    }

    fn needs(&self, sequence: &Sequence, shared: usize, needs: &mut Vec<Need>) {
        let shared = shared as u64 * u64::from(self.config.block_size);
        let growth = self.outlook.expected(sequence.allowed());
        needs.push(Need { own_tokens: (sequence.tokens.len() as u64).saturating_sub(shared), growth });
        // Each fork writes to a copy of the prompt's last block.
        let fork = Need { own_tokens: 1, growth };
        needs.extend(std::iter::repeat_n(fork, sequence.forks as usize));
    }

    /// Blocks that the sequence would share if it began now, and how many of them nobody holds.
    fn hits(&self, sequence: &Sequence) -> (usize, u64) {
        let size = self.config.block_size as usize;
        let (mut found, mut idle) = (Vec::new(), 0);
        // The last token is fed whatever is found.
        let full = (sequence.tokens.len() - 1) / size;
        for (index, &hash) in sequence.chain.iter().enumerate().take(full) {
            if !sequence.may_share((index + 1) * size) {
                break;
            }
            let tokens = &sequence.tokens[index * size..(index + 1) * size];
            let parent = found.last().map_or(Parent::Root(sequence.salt), |&block| Parent::Block(block));
            let Some(block) = self.pool.find(hash, parent, tokens) else { break };
            idle += u64::from(self.pool.references(block) == 0);
            found.push(block);
        }
        (found.len(), idle)
    }

    fn start(&mut self, now: Time, id: SequenceId, rank: Priority) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (request, prompt) = (sequence.request, sequence.prompt as u64);
        let (places, max_tokens) = (sequence.places(), sequence.max_tokens);
        let queued = sequence.state == State::Waiting;
        sequence.state = State::Running;
        sequence.rank = rank;
        self.running.push(id);
        if !queued {
            self.preempted.retain(|&other| other != id);
            return;
        }
        self.counters.prompt_tokens += prompt;
        // It is the head: taken as such, it counts as its client's turn.
        let taken = self.queue.take(super::GROUP, now, |entry| entry.ticket == Ticket(request.0));
        debug_assert_eq!(taken.len(), 1, "the queue has another head");
        self.left_queue(places, max_tokens);
        self.follow_due(request);
    }
}
