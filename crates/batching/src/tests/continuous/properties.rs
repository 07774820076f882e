//! Random runs, each judged call by call: contents of blocks, who writes what, and that everything ends once.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use super::world::{Checked, Known, World};
use crate::continuous::{ContinuousConfig, Deadlines, End, Request, RequestId, SequenceId};
use crate::entry::{ClientId, Priority};
use crate::time::Time;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Op {
    Advance(u64),
    Submit(Asked),
    Cancel(Index),
    StopSequence(Index),
    Schedule,
    PlanAhead,
    Commit { busy: u64, dice: u64 },
    Expire,
}

/// A request as it is asked for; its prompt begins like those of the same family.
#[derive(Debug, Clone)]
struct Asked {
    family: u32,
    common: usize,
    own: usize,
    max_tokens: u32,
    sequences: u32,
    priority: Priority,
    client: u64,
    salt: Option<u64>,
    scores_prompt: bool,
    timeouts: [Option<u64>; 3],
}

fn asked() -> impl Strategy<Value = Asked> {
    let prompt = (0_u32..3, 0_usize..14, 0_usize..6);
    let output = (0_u32..12, prop_oneof![6 => Just(1_u32), 2 => 2_u32..4, 1 => Just(0)]);
    let from = (0_usize..4, 0_u64..3, prop::option::weighted(0.2, 0_u64..2), prop::bool::weighted(0.15));
    let timeout = || prop::option::weighted(0.15, 0_u64..40);
    (prompt, output, from, [timeout(), timeout(), timeout()]).prop_map(
        |(
            (family, common, own),
            (max_tokens, sequences),
            (priority, client, salt, scores_prompt),
            timeouts,
        )| Asked {
            family,
            common,
            own,
            max_tokens,
            sequences,
            priority: Priority::DESCENDING[priority],
            client,
            salt,
            scores_prompt,
            timeouts,
        },
    )
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (1_u64..8).prop_map(Op::Advance),
        25 => asked().prop_map(Op::Submit),
        4 => any::<Index>().prop_map(Op::Cancel),
        3 => any::<Index>().prop_map(Op::StopSequence),
        40 => Just(Op::Schedule),
        25 => Just(Op::PlanAhead),
        40 => (1_u64..6, any::<u64>()).prop_map(|(busy, dice)| Op::Commit { busy, dice }),
        3 => Just(Op::Expire),
    ];
    prop::collection::vec(op, 0..200)
}

fn configs() -> impl Strategy<Value = ContinuousConfig> {
    let sizes = (1_u32..20, 1_u32..6, 1_u32..8, 1_u32..24);
    let limits = (prop::option::of(1_u32..8), prop::option::of(0_u64..12), prop::option::of(0_u64..30));
    let switches = (prop::bool::weighted(0.8), prop::bool::weighted(0.8), any::<bool>());
    let queue = (1_u32..20, prop::option::of(0_u64..60));
    (sizes, limits, switches, queue).prop_map(
        |((blocks, block_size, max_sequences, max_step_tokens), limits, switches, queue)| ContinuousConfig {
            blocks,
            block_size,
            max_context: 64,
            max_sequences,
            max_step_tokens,
            prefill_chunk: limits.0,
            inter_token_target: limits.1.map(Duration::from_nanos),
            prefix_caching: switches.0,
            preemption: switches.1,
            priorities: switches.2,
            max_queue_size: queue.0,
            max_queue_tokens: queue.1,
            ageing: limits.2.map(Duration::from_nanos),
        },
    )
}

/// Few different tokens, so that sequences often go on alike; now and then a stop or a failure.
fn draw(dice: u64, id: SequenceId, known: &Known) -> Option<(u32, bool)> {
    let mixed = (dice ^ id.0 << 32 ^ known.tokens.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (!mixed.is_multiple_of(40)).then_some((mixed as u32 / 64 % 2, mixed.is_multiple_of(23)))
}

impl World {
    fn play(&mut self, op: &Op) -> Checked {
        self.story.push(format!("{:3} {op:?}", self.now.as_nanos()));
        match op {
            Op::Advance(ticks) => self.advance(Duration::from_nanos(*ticks)),
            Op::Submit(asked) => drop(self.submit(self.request(asked))),
            Op::Cancel(index) => {
                let requests: Vec<RequestId> = self.live.values().map(|known| known.request).collect();
                if !requests.is_empty() {
                    let cancelled = self.cancel(requests[index.index(requests.len())]);
                    prop_assert!(cancelled, "one that lives was not there");
                }
            }
            Op::StopSequence(index) => {
                let drawn = self.live.iter().filter(|(_, known)| known.tokens.len() > known.prompt);
                let drawn: Vec<SequenceId> = drawn.map(|(&id, _)| id).collect();
                if !drawn.is_empty() {
                    let id = drawn[index.index(drawn.len())];
                    self.live.remove(&id);
                    let ended = self.scheduler.stop_sequence(self.now, id);
                    prop_assert_eq!(ended.map(|ended| (ended.sequence, ended.end)), Some((id, End::Stopped)));
                }
            }
            Op::Schedule => self.schedule()?,
            Op::PlanAhead => drop(self.scheduler.plan_ahead(self.now)),
            Op::Commit { busy, dice } => {
                self.commit(Duration::from_nanos(*busy), |id, known| draw(*dice, id, known))?;
            }
            Op::Expire => self.expire()?,
        }
        self.check_blocks()
    }

    fn request(&self, asked: &Asked) -> Request {
        let common = (0..asked.common as u32).map(|index| 100 * asked.family + index);
        let own = (0..asked.own as u32).map(|index| 1_000 + index % 2);
        let [queue, first_token, total] =
            asked.timeouts.map(|timeout| timeout.map(|timeout| self.now + Duration::from_nanos(timeout)));
        Request {
            prompt: common.chain(own).collect(),
            max_tokens: asked.max_tokens,
            sequences: asked.sequences,
            priority: asked.priority,
            client: ClientId(asked.client),
            salt: asked.salt,
            scores_prompt: asked.scores_prompt,
            deadlines: Deadlines { queue, first_token, total },
        }
    }

    /// Lets everything come to its end.
    fn finish(&mut self) -> Checked {
        let most = 200 * (self.live.len() + self.unborn.len()) + 10;
        for round in 0.. {
            prop_assert!(round < most, "it never ends: {:?} live", self.live);
            self.commit(Duration::from_nanos(1), |id, known| draw(round as u64, id, known))?;
            if !self.scheduler.has_work() {
                break;
            }
            self.schedule()?;
            prop_assert!(self.plan.is_some() || !self.scheduler.has_work(), "work, and no step");
        }
        prop_assert!(self.live.is_empty() && self.unborn.is_empty(), "unanswered: {:?}", self.live);
        prop_assert!(self.scheduler.remembers_nothing(), "something is left of those that ended");
        prop_assert_eq!(self.scheduler.pool().available(), self.scheduler.config().blocks);
        prop_assert_eq!(self.scheduler.expire(Time::MAX), (Vec::new(), None));
        Ok(())
    }
}

fn run(config: ContinuousConfig, ops: &[Op]) -> Result<World, TestCaseError> {
    let mut world = World::new(config);
    let played = ops.iter().try_for_each(|op| world.play(op)).and_then(|()| world.finish());
    match played {
        Ok(()) => Ok(world),
        Err(error) => {
            Err(TestCaseError::fail(format!("{error}\nafter these calls:\n  {}", world.story.join("\n  "))))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_reads_what_it_wrote_shares_nothing_it_writes_and_ends_once(
        config in configs(), ops in ops()
    ) {
        run(config, &ops)?;
    }

    #[test]
    fn without_preemption_nobody_is_preempted(config in configs(), ops in ops()) {
        let world = run(ContinuousConfig { preemption: false, ..config }, &ops)?;
        prop_assert_eq!(world.preemptions, 0);
    }
}
