//! Language models as the scheduler runs them against transformers: the company a text is in, chunks of its prompt,
//! cached prefixes and preemptions leave its tokens as they are.

use std::collections::HashMap;
use std::time::Duration;

use trustformers_batching::continuous::{
    ContinuousConfig, Deadlines, Ended, Request, Scheduler, SequenceId, StepOutcome,
};
use trustformers_batching::{ClientId, Priority, Time};
use trustformers_serve::backend::llm::Runner;

use super::{Case, SIZE, Text, cases, likeliest, rows, runner};

/// Of the cache's blocks, hardly more than the longest text needs.
const BLOCKS: u32 = 12;

struct World {
    runner: Runner,
    scheduler: Scheduler,
    now: Time,
}

impl World {
    fn new(case: &Case) -> Self {
        let config = ContinuousConfig {
            blocks: BLOCKS,
            block_size: u32::try_from(SIZE.block_size).unwrap(),
            max_context: 256,
            max_step_tokens: 24,
            ..ContinuousConfig::default()
        };
        Self { runner: runner(case), scheduler: Scheduler::new(config), now: Time::ZERO }
    }

    /// Runs all texts together, each for so many tokens at most; what followed them, and their ends.
    fn run(&mut self, texts: &[Text], most: usize) -> (Vec<Vec<u32>>, Vec<Ended>) {
        let places: HashMap<SequenceId, usize> = texts
            .iter()
            .enumerate()
            .map(|(place, text)| {
                let request = Request {
                    prompt: text.ids.clone(),
                    max_tokens: u32::try_from(text.tokens.len()).unwrap(),
                    sequences: 1,
                    priority: Priority::default(),
                    client: ClientId::default(),
                    salt: None,
                    scores_prompt: false,
                    deadlines: Deadlines::default(),
                };
                (self.scheduler.submit(self.now, request).unwrap().sequences().next().unwrap(), place)
            })
            .collect();
        let (mut followed, mut ended) = (vec![Vec::new(); texts.len()], Vec::new());
        while self.scheduler.has_work() {
            self.now = self.now + Duration::from_millis(1);
            let plan = self.scheduler.schedule(self.now).plan.unwrap();
            let logits = rows(&self.runner.step(&plan.work, &plan.copies).unwrap());
            let sampled = plan.work.iter().filter(|work| work.samples);
            let tokens = sampled
                .zip(&logits)
                .map(|(work, row)| {
                    let token = likeliest(row);
                    let text = &mut followed[places[&work.sequence]];
                    text.push(token);
                    (work.sequence, token, text.len() == most)
                })
                .collect();
            let outcome =
                StepOutcome { id: plan.id, busy: Duration::from_millis(1), tokens, failed: Vec::new() };
            ended.extend(self.scheduler.commit(self.now, outcome));
        }
        (followed, ended)
    }
}

#[test]
fn texts_do_not_depend_on_company_chunks_cached_prefixes_and_preemptions() {
    for (name, case) in cases() {
        let mut world = World::new(&case);
        // Texts that end early let the scheduler hope for more such, and start more than have room to the end.
        world.run(&case.texts, 2);
        let (together, _) = world.run(&case.texts, usize::MAX);
        let preemptions = world.scheduler.stats().counters.preemptions;
        let (alone, _) = world.run(&case.texts[4..], usize::MAX);
        let (again, ended) = world.run(&case.texts[3..], usize::MAX);

        let texts = case.texts.iter().chain(&case.texts[4..]).chain(&case.texts[3..]);
        for (text, followed) in texts.zip(together.iter().chain(&alone).chain(&again)) {
            assert_eq!(*followed, text.tokens, "{name}, after {} tokens", text.ids.len());
        }
        assert!(preemptions > 0, "{name}: nobody was preempted");
        assert!(ended.iter().any(|end| end.cached_tokens > 0), "{name}: nothing was cached");
        assert_eq!(world.scheduler.stats().blocks.used, 0, "{name}");
    }
}
