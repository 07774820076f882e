//! A language model without arithmetic behind a scheduler: what a position holds is the hash of all tokens up to
//! it, so a block that holds anything but what its sequence needs is seen at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::continuous::sequence::Deadlines;
use crate::continuous::{
    Admitted, BlockId, ContinuousConfig, Ended, Refusal, Request, RequestId, Scheduled, Scheduler,
    SequenceId, StepOutcome, StepPlan, Work,
};
use crate::entry::{ClientId, Priority};
use crate::time::Time;

pub(super) type Checked = Result<(), TestCaseError>;

/// A request of normal priority, of one sequence and without deadlines.
pub(super) fn request(prompt: impl IntoIterator<Item = u32>, max_tokens: u32) -> Request {
    Request {
        prompt: prompt.into_iter().collect(),
        max_tokens,
        sequences: 1,
        priority: Priority::Normal,
        client: ClientId(0),
        salt: None,
        scores_prompt: false,
        deadlines: Deadlines::default(),
    }
}

/// Small blocks, no ageing.
pub(super) fn config() -> ContinuousConfig {
    ContinuousConfig {
        blocks: 64,
        block_size: 4,
        max_context: 256,
        max_sequences: 8,
        max_step_tokens: 32,
        ageing: None,
        ..ContinuousConfig::default()
    }
}

/// What the test knows of a sequence that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) request: RequestId,
    pub(super) prompt: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) max_tokens: u32,
    /// How many of the prompt's tokens were scored; all where that is not wanted.
    scored: usize,
    /// Positions that it has fed or shared, since it was last preempted.
    fed: usize,
}

/// A scheduler, the content of its blocks, and the truth about each sequence.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) scheduler: Scheduler,
    pub(super) live: BTreeMap<SequenceId, Known>,
    /// Sequences of live requests that have yet to begin.
    pub(super) unborn: BTreeMap<SequenceId, Known>,
    pub(super) ended: Vec<Ended>,
    pub(super) plan: Option<StepPlan>,
    pub(super) story: Vec<String>,
    contents: Vec<Vec<u64>>,
    pub(super) steps: u64,
    pub(super) preemptions: u64,
}

fn after(prefix: u64, token: u32) -> u64 {
    (prefix ^ u64::from(token) ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn prefixes(tokens: &[u32]) -> Vec<u64> {
    let hashes = tokens.iter().scan(1, |prefix, &token| {
        *prefix = after(*prefix, token);
        Some(*prefix)
    });
    hashes.collect()
}

impl World {
    pub(super) fn new(config: ContinuousConfig) -> Self {
        let contents = vec![vec![0; config.block_size as usize]; config.blocks as usize];
        Self {
            now: Time::ZERO,
            scheduler: Scheduler::new(config),
            live: BTreeMap::new(),
            unborn: BTreeMap::new(),
            ended: Vec::new(),
            plan: None,
            story: Vec::new(),
            contents,
            steps: 0,
            preemptions: 0,
        }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    pub(super) fn submit(&mut self, request: Request) -> Result<Admitted, Refusal> {
        let known = Known {
            request: RequestId(0),
            prompt: request.prompt.len(),
            tokens: request.prompt.clone(),
            max_tokens: request.max_tokens,
            scored: if request.scores_prompt { 0 } else { request.prompt.len() },
            fed: 0,
        };
        let said = self.scheduler.submit(self.now, request);
        if let Ok(admitted) = &said {
            for (index, id) in admitted.sequences().enumerate() {
                let known = Known { request: admitted.request, ..known.clone() };
                let place = if index == 0 { &mut self.live } else { &mut self.unborn };
                place.insert(id, known);
            }
        }
        said
    }

    /// Submits what must be admitted; its only, or first, sequence.
    #[track_caller]
    pub(super) fn admit(&mut self, request: Request) -> SequenceId {
        let admitted = self.submit(request).unwrap();
        admitted.sequences().next().unwrap()
    }

    pub(super) fn cancel(&mut self, request: RequestId) -> bool {
        self.live.retain(|_, known| known.request != request);
        self.unborn.retain(|_, known| known.request != request);
        self.scheduler.cancel(self.now, request)
    }

    /// Plans a step, checks it against the truth, and writes what it would write.
    pub(super) fn schedule(&mut self) -> Checked {
        let idle = self.plan.is_none();
        let Scheduled { ended, plan } = self.scheduler.schedule(self.now);
        self.say(ended)?;
        let Some(plan) = plan else { return self.check_blocks() };
        prop_assert!(idle, "a step was planned while another runs");
        self.steps += 1;
        self.check_plan(&plan)?;
        for &(from, to) in &plan.copies {
            self.contents[to.0 as usize] = self.contents[from.0 as usize].clone();
        }
        let holders = self.holders();
        for work in &plan.work {
            self.check_writes(work, &holders)?;
            self.write(work)?;
        }
        self.plan = Some(plan);
        self.check_blocks()
    }

    fn check_plan(&mut self, plan: &StepPlan) -> Checked {
        let config = self.scheduler.config().clone();
        let tokens: usize = plan.work.iter().map(|work| work.tokens.len()).sum();
        prop_assert!(!plan.work.is_empty(), "an empty step");
        prop_assert!(tokens <= config.max_step_tokens as usize, "{} tokens in a step", tokens);
        let distinct: BTreeSet<_> = plan.work.iter().map(|work| work.sequence).collect();
        prop_assert_eq!(distinct.len(), plan.work.len(), "a sequence is in a step twice");
        let places: usize = plan.work.iter().map(|work| 1 + work.forks.len()).sum();
        prop_assert!(places <= config.max_sequences as usize, "{} sequences in a step", places);
        let copied: BTreeSet<_> = plan.copies.iter().map(|&(_, to)| to).collect();
        prop_assert_eq!(copied.len(), plan.copies.len(), "a block is to be two copies");
        for id in &plan.preempted {
            prop_assert!(self.live.contains_key(id), "one was preempted that had ended");
            self.preemptions += 1;
            self.live.entry(*id).and_modify(|known| known.fed = 0);
        }
        let decodes = |work: &Work| {
            let known = &self.live[&work.sequence];
            known.fed > 0 && known.fed + 1 == known.tokens.len() && known.tokens.len() > known.prompt
        };
        let first_chunk = plan.work.iter().position(|work| work.tokens.len() > 1);
        let last_decode = plan.work.iter().rposition(decodes);
        if let (Some(chunk), Some(decode)) = (first_chunk, last_decode) {
            prop_assert!(decode < chunk, "a chunk comes before one that decodes");
        }
        Ok(())
    }

    /// Who holds each block.
    fn holders(&self) -> BTreeMap<BlockId, Vec<SequenceId>> {
        let mut holders = BTreeMap::<_, Vec<_>>::new();
        for (id, blocks) in self.scheduler.holdings() {
            blocks.into_iter().for_each(|block| holders.entry(block).or_default().push(id));
        }
        holders
    }

    fn check_writes(&self, work: &Work, holders: &BTreeMap<BlockId, Vec<SequenceId>>) -> Checked {
        let size = self.scheduler.config().block_size as usize;
        let known = self.live.get(&work.sequence);
        prop_assert!(known.is_some(), "{:?} had ended, or never was", work.sequence);
        let Some(known) = known else { return Ok(()) };
        let (start, end) = (work.start as usize, work.start as usize + work.tokens.len());
        prop_assert!(start < end, "nothing is fed");
        prop_assert!(end <= known.tokens.len(), "fed past the last token");
        prop_assert_eq!(&work.tokens, &known.tokens[start..end]);
        prop_assert_eq!(work.samples, end == known.tokens.len());
        prop_assert!(start >= known.fed, "position {} was fed before", start);
        prop_assert!(known.scored == known.prompt || start <= known.scored, "a token is not scored");
        prop_assert_eq!(work.scores, known.scored < known.prompt && end > known.scored);
        prop_assert_eq!(work.blocks.len(), end.div_ceil(size), "blocks for {} tokens", end);
        let truth = prefixes(&known.tokens);
        for (position, &held) in truth[..start].iter().enumerate() {
            let block = work.blocks[position / size];
            let found = self.contents[block.0 as usize][position % size];
            prop_assert_eq!(found, held, "{:?} reads wrong keys at {}", work.sequence, position);
        }
        for &block in &work.blocks[start / size..] {
            prop_assert_eq!(&holders[&block], &vec![work.sequence], "written while shared");
            prop_assert!(self.scheduler.pool().writable(block), "written while others may find it");
        }
        let forks = self.unborn.iter().filter(|(_, fork)| fork.request == known.request);
        let forks: Vec<_> = forks.map(|(&id, _)| id).collect();
        let expected = if work.samples { forks } else { Vec::new() };
        prop_assert_eq!(&work.forks, &expected, "forks begin where the prompt ends");
        Ok(())
    }

    fn write(&mut self, work: &Work) -> Checked {
        let size = self.scheduler.config().block_size as usize;
        let Some(known) = self.live.get_mut(&work.sequence) else { return Ok(()) };
        let end = work.start as usize + work.tokens.len();
        known.fed = end;
        let truth = prefixes(&known.tokens);
        for (position, &held) in truth.iter().enumerate().take(end).skip(work.start as usize) {
            self.contents[work.blocks[position / size].0 as usize][position % size] = held;
        }
        Ok(())
    }

    /// Ends the step: `draw` says each sequence's token and whether it stops, or that it failed (`None`).
    pub(super) fn commit(
        &mut self,
        busy: Duration,
        mut draw: impl FnMut(SequenceId, &Known) -> Option<(u32, bool)>,
    ) -> Checked {
        let Some(plan) = self.plan.take() else { return Ok(()) };
        self.now = self.now + busy;
        let (mut tokens, mut failed) = (Vec::new(), Vec::new());
        for work in plan.work.iter().filter(|work| work.samples) {
            for id in std::iter::once(work.sequence).chain(work.forks.iter().copied()) {
                let (prompt_only, fed) = match self.live.get(&work.sequence) {
                    Some(leader) => (leader.clone(), leader.fed),
                    // Its caller left.
                    None => continue,
                };
                if let Some(fork) = self.unborn.remove(&id) {
                    self.live.insert(id, Known { fed, scored: fork.prompt, ..fork });
                }
                let Some(known) = self.live.get(&id) else { continue };
                prop_assert!(
                    id == work.sequence || known.tokens[..known.prompt] == prompt_only.tokens[..known.prompt]
                );
                match draw(id, known) {
                    Some((token, stops)) => tokens.push((id, token, stops)),
                    None => failed.push(id),
                }
            }
        }
        for &(id, token, _) in &tokens {
            if let Some(known) = self.live.get_mut(&id) {
                known.tokens.push(token);
            }
        }
        for work in plan.work.iter().filter(|work| work.scores) {
            if let Some(known) = self.live.get_mut(&work.sequence) {
                known.scored = known.scored.max(work.start as usize + work.tokens.len());
            }
        }
        let expected: BTreeSet<_> = tokens
            .iter()
            .filter(|(id, _, stops)| *stops || self.full(*id))
            .map(|(id, ..)| *id)
            .chain(failed.iter().copied())
            .collect();
        let ended = self.scheduler.commit(self.now, StepOutcome { id: plan.id, busy, tokens, failed });
        let said: BTreeSet<_> = ended.iter().map(|ended| ended.sequence).collect();
        prop_assert_eq!(said, expected, "others ended than those that were to");
        self.say(ended)?;
        self.check_blocks()
    }

    fn full(&self, id: SequenceId) -> bool {
        self.live.get(&id).is_some_and(|known| known.tokens.len() - known.prompt == known.max_tokens as usize)
    }

    /// One step in which everybody draws token 7 and nobody stops.
    #[track_caller]
    pub(super) fn step(&mut self) -> StepPlan {
        self.try_step().unwrap().expect("a step")
    }

    /// Runs until nothing is left; how many steps that took.
    #[track_caller]
    pub(super) fn run(&mut self) -> u32 {
        let mut steps = 0;
        while self.try_step().unwrap().is_some() {
            steps += 1;
            assert!(steps < 10_000, "it never ends");
        }
        assert!(self.scheduler.remembers_nothing());
        steps
    }

    fn try_step(&mut self) -> Result<Option<StepPlan>, TestCaseError> {
        self.schedule()?;
        let plan = self.plan.clone();
        self.commit(Duration::from_millis(1), |_, _| Some((7, false)))?;
        Ok(plan)
    }

    pub(super) fn expire(&mut self) -> Checked {
        let (ended, _) = self.scheduler.expire(self.now);
        self.say(ended)?;
        self.check_blocks()
    }

    fn say(&mut self, ended: Vec<Ended>) -> Checked {
        for ended in ended {
            let lived = self.live.remove(&ended.sequence).or_else(|| self.unborn.remove(&ended.sequence));
            prop_assert!(lived.is_some(), "{:?} ended twice, or after its caller left", ended.sequence);
            let others = self.live.values().chain(self.unborn.values());
            let others = others.filter(|known| known.request == ended.request).count();
            prop_assert_eq!(ended.last, others == 0, "whether it is the last of its request");
            self.ended.push(ended);
        }
        Ok(())
    }

    /// Every block is held by exactly those that the pool counts.
    pub(super) fn check_blocks(&self) -> Checked {
        let pool = self.scheduler.pool();
        pool.check().map_err(TestCaseError::fail)?;
        let holders = self.holders();
        for block in (0..pool.blocks()).map(BlockId) {
            let held = holders.get(&block).map_or(0, Vec::len);
            prop_assert_eq!(held as u32, pool.references(block), "holders of block {}", block.0);
        }
        Ok(())
    }
}
