//! What a step brought: tokens drawn, sequences that ended, blocks that others may share.

use std::collections::HashSet;

use super::Scheduler;
use crate::continuous::block_pool::Registered;
use crate::continuous::sequence::{End, Ended, Sequence, SequenceId, State};
use crate::continuous::step::StepOutcome;
use crate::hash::FastMap;
use crate::time::Time;

impl Scheduler {
    /// Takes a step's outcome in, and says which sequences ended with it. What is said of sequences that ended
    /// while it ran is passed over, and so is an outcome that is not of the step that runs.
    pub fn commit(&mut self, _now: Time, outcome: StepOutcome) -> Vec<Ended> {
        let mut ended = Vec::new();
        let Some(step) = self.step.take_if(|step| step.id == outcome.id) else { return ended };
        self.times.observe(step.load, outcome.busy);
        self.counters.steps += 1;
        self.counters.busy_nanos += outcome.busy.as_nanos();

        let failed: HashSet<_> = outcome.failed.iter().copied().collect();
        let drawn = outcome.tokens.iter().filter(|(id, ..)| !failed.contains(id));
        let drawn: FastMap<_, _> = drawn.map(|&(id, token, stops)| (id, (token, stops))).collect();
        for id in step.work {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            let samples = sequence.draws();
            let fed = std::mem::take(&mut sequence.fed);
            self.counters.fed_tokens += fed as u64;
            if failed.contains(&id) && (!samples || sequence.forks == 0) {
                self.end_sequence(id, Some(End::Failed), &mut ended);
                continue;
            }
            sequence.computed += fed;
            sequence.scored = sequence.scored.max(sequence.computed.min(sequence.prompt));
            // What a failed sequence computed is nothing to share.
            if !failed.contains(&id) {
                self.register(id);
            }
            if samples {
                self.fork(id, &drawn, &mut ended);
                self.draw(id, drawn.get(&id).copied(), &mut ended);
            }
        }
        ended
    }

    /// Takes in the token that was drawn for a sequence, and whether it stops there.
    fn draw(&mut self, id: SequenceId, drawn: Option<(u32, bool)>, ended: &mut Vec<Ended>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some((token, stops)) = drawn else {
            return self.end_sequence(id, Some(End::Failed), ended);
        };
        self.counters.generated_tokens += 1;
        sequence.tokens.push(token);
        let (request, full) = (sequence.request, sequence.allowed() == 0);
        if stops {
            self.end_sequence(id, Some(End::Stopped), ended);
        } else if full {
            self.end_sequence(id, Some(End::Length), ended);
        }
        if let Some(live) = self.requests.get_mut(&request)
            && !live.answered
        {
            live.answered = true;
            self.follow_due(request);
        }
    }

    /// Where a prompt ends, the other sequences of its request begin: they share all of its blocks, until each
    /// writes to the last one.
    fn fork(&mut self, id: SequenceId, drawn: &FastMap<SequenceId, (u32, bool)>, ended: &mut Vec<Ended>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let forks = std::mem::take(&mut sequence.forks);
        let sequence = sequence.clone();
        for fork in (1..=u64::from(forks)).map(|fork| SequenceId(id.0 + fork)) {
            sequence.blocks.iter().for_each(|&block| self.pool.share(block));
            self.running.push(fork);
            let shared = sequence.blocks.len();
            self.sequences.insert(fork, Sequence { state: State::Running, shared, ..sequence.clone() });
            self.draw(fork, drawn.get(&fork).copied(), ended);
        }
    }

    /// Lets others find the blocks of a sequence that have become full.
    fn register(&mut self, id: SequenceId) {
        let size = self.config.block_size as usize;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        while self.pool.remembers() && (sequence.known + 1) * size <= sequence.computed {
            let index = sequence.known;
            let hash = sequence.hash(index, size);
            let tokens = &sequence.tokens[index * size..(index + 1) * size];
            match self.pool.register(sequence.blocks[index], hash, sequence.parent(index), tokens) {
                Registered::Here => {}
                Registered::Moved(same) => {
                    sequence.blocks[index] = same;
                    sequence.shared += usize::from(sequence.shared == index);
                }
                Registered::Not => break,
            }
            sequence.known += 1;
        }
    }
}
