//! Runs a plan: the model's step, what fails in it set apart, and a token drawn for each sequence that samples.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use trustformers_batching::continuous::{BlockId, SequenceId, StepPlan, Work};

use super::sampling::{Drawn, Logprobs, Scratch, score};
use super::seats::{Drawing, Scoring, Use};
use crate::backend::llm::{BackendError, Runner};
use crate::torch::rows::Rows;

/// What became of a sequence in a step.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A token was drawn for it; whether that ends it.
    Drawn(Drawn, bool),
    /// It failed alone.
    Failed(String),
}

/// Tokens of a prompt, from one position on, and how likely each was.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) sequence: SequenceId,
    pub(super) position: u32,
    pub(super) logprobs: Vec<Logprobs>,
}

/// What a step brought.
#[derive(Debug, Default)]
pub(super) struct Stepped {
    /// Of each sequence that samples, and of those of the others that failed.
    pub(super) outcomes: Vec<(SequenceId, Outcome)>,
    /// What was drawn with, to go on with.
    pub(super) drawings: Vec<Drawing>,
    pub(super) scored: Vec<Scored>,
}

impl Stepped {
    /// Whether the model works: true when a token was drawn, false when all failed; `None` when there was nothing
    /// to tell by.
    pub(super) fn works(&self) -> Option<bool> {
        let drawn = self.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Drawn(..)));
        (!self.outcomes.is_empty()).then_some(drawn)
    }
}

/// Works that ran together, and what that gave.
struct Part<'a> {
    work: &'a [Work],
    logits: Result<Rows, BackendError>,
}

/// Runs the steps of one model, and draws.
pub(super) struct Steps {
    runner: Runner,
    scratch: Scratch,
}

impl Steps {
    pub(super) fn new(runner: Runner) -> Self {
        Self { runner, scratch: Scratch::default() }
    }

    /// Runs a plan. `uses`: what the logits of each of its works are for.
    pub(super) fn run(&mut self, plan: &StepPlan, uses: Vec<Use>) -> Stepped {
        let mut parts = Vec::new();
        // Apart from the works: what ran without its copies would read what is not its own.
        match self.copy(&plan.copies) {
            Ok(()) => self.run_works(&plan.work, &mut parts),
            Err(error) => parts.push(Part { work: &plan.work, logits: Err(error) }),
        }
        let mut stepped = Stepped::default();
        let mut uses = uses.into_iter();
        for part in &mut parts {
            let mut row = 0;
            for work in part.work {
                let of = uses.next().unwrap_or_default();
                match &mut part.logits {
                    Err(error) => fail(work, of.drawing, &error.to_string(), &mut stepped),
                    Ok(rows) => {
                        let count = rows_of(work);
                        self.take(work, of, &mut Window { rows, first: row, count }, &mut stepped);
                        row += count;
                    }
                }
            }
        }
        stepped
    }

    /// Runs works together; where that fails, in halves, so that only what cannot run fails. Works that ran in a
    /// failed whole run again, and write the same keys and values to the same places.
    fn run_works<'a>(&mut self, work: &'a [Work], parts: &mut Vec<Part<'a>>) {
        let logits = self.step(work, &[]).and_then(|logits| Ok(Rows::of(&logits)?));
        if logits.is_ok() || work.len() < 2 {
            parts.push(Part { work, logits });
            return;
        }
        let (left, right) = work.split_at(work.len() / 2);
        self.run_works(left, parts);
        self.run_works(right, parts);
    }

    fn copy(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), BackendError> {
        if copies.is_empty() { Ok(()) } else { self.step(&[], copies).map(drop) }
    }

    /// A step of the model, whose panics are failures like any other.
    fn step(&mut self, work: &[Work], copies: &[(BlockId, BlockId)]) -> Result<Tensor, BackendError> {
        let step = AssertUnwindSafe(|| self.runner.step(work, copies));
        catch_unwind(step).unwrap_or_else(|_| Err(BackendError::Torch("the model panicked".to_owned())))
    }

    /// Uses one work's logits.
    fn take(&mut self, work: &Work, of: Use, window: &mut Window<'_>, stepped: &mut Stepped) {
        if let Some(scoring) = of.scoring {
            match self.score(work, &scoring, window) {
                Ok(scored) => stepped.scored.extend(scored),
                Err(reason) => return fail(work, of.drawing, &reason, stepped),
            }
        }
        let last = window.count.checked_sub(1).filter(|_| work.samples);
        let Some(row) = last.and_then(|last| window.row(last)) else { return };
        for mut member in of.drawing {
            let outcome = match member.sampler.draw(row, &mut self.scratch) {
                Ok(drawn) => {
                    let stops = member.stop_tokens.contains(&drawn.token);
                    Outcome::Drawn(drawn, stops)
                }
                Err(not_a_number) => Outcome::Failed(not_a_number.to_string()),
            };
            stepped.outcomes.push((member.sequence, outcome));
            stepped.drawings.push(member);
        }
    }

    /// How likely the prompt's tokens after those of a work were.
    fn score(
        &mut self,
        work: &Work,
        scoring: &Scoring,
        window: &mut Window<'_>,
    ) -> Result<Option<Scored>, String> {
        let mut logprobs = Vec::new();
        // A row says how likely the token after its own was.
        let first = scoring.next.max(work.start + 1);
        let end = (work.start + work.tokens.len() as u32 + 1).min(scoring.prompt.len() as u32);
        for position in first..end {
            let Some(row) = window.row((position - 1 - work.start) as usize) else { break };
            let token = scoring.prompt[position as usize];
            let scored = score(token, scoring.count, row, &mut self.scratch);
            logprobs.push(scored.map_err(|not_a_number| not_a_number.to_string())?);
        }
        let scored = Scored { sequence: work.sequence, position: first, logprobs };
        Ok(Some(scored).filter(|scored| !scored.logprobs.is_empty()))
    }
}

/// The rows of logits that are one work's.
struct Window<'a> {
    rows: &'a mut Rows,
    first: usize,
    count: usize,
}

impl Window<'_> {
    fn row(&mut self, index: usize) -> Option<&mut [f32]> {
        self.rows.row(self.first + index)
    }
}

/// How many rows of logits a work gives.
fn rows_of(work: &Work) -> usize {
    if work.scores { work.tokens.len() } else { usize::from(work.samples) }
}

fn fail(work: &Work, members: Vec<Drawing>, reason: &str, stepped: &mut Stepped) {
    let sequences = [&[work.sequence], work.forks.as_slice()].concat();
    let failed = sequences.into_iter().map(|sequence| (sequence, Outcome::Failed(reason.to_owned())));
    stepped.outcomes.extend(failed);
    stepped.drawings.extend(members);
}
