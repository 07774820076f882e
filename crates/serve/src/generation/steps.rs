//! Runs a plan: the model's step, what fails in it set apart, and a token drawn for each sequence that samples.

use trustformers_batching::continuous::{BlockId, SequenceId, StepPlan, Work};

use super::sampling::{Drawn, Scratch};
use super::seats::Drawing;
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

/// What a step brought.
#[derive(Debug, Default)]
pub(super) struct Stepped {
    /// Of each sequence that samples, and of those of the others that failed.
    pub(super) outcomes: Vec<(SequenceId, Outcome)>,
    /// What was drawn with, to go on with.
    pub(super) drawings: Vec<Drawing>,
    /// Whether nothing of it ran.
    pub(super) failed: bool,
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
    /// Logits that more than one sequence draws from.
    shared: Vec<f32>,
}

impl Steps {
    pub(super) fn new(runner: Runner) -> Self {
        Self { runner, scratch: Scratch::default(), shared: Vec::new() }
    }

    /// Runs a plan. `drawing`: for each work that samples, who draws from its logits.
    pub(super) fn run(&mut self, plan: &StepPlan, drawing: Vec<Vec<Drawing>>) -> Stepped {
        let mut parts = Vec::new();
        self.run_works(&plan.work, &plan.copies, &mut parts);
        let mut stepped =
            Stepped { failed: parts.iter().all(|part| part.logits.is_err()), ..Stepped::default() };
        let mut drawing = drawing.into_iter();
        for part in &mut parts {
            let mut index = 0;
            for work in part.work {
                let members = if work.samples { drawing.next().unwrap_or_default() } else { Vec::new() };
                match &mut part.logits {
                    Err(error) => fail(work, members, &error.to_string(), &mut stepped),
                    Ok(rows) if work.samples => {
                        if let Some(row) = rows.row(index) {
                            self.draw(row, members, &mut stepped);
                        }
                        index += 1;
                    }
                    Ok(_) => {}
                }
            }
        }
        stepped
    }

    /// Runs works together; where that fails, in halves, so that only what cannot run fails. Works that ran in a
    /// failed whole run again, and write the same keys and values to the same places.
    fn run_works<'a>(&mut self, work: &'a [Work], copies: &[(BlockId, BlockId)], parts: &mut Vec<Part<'a>>) {
        let logits = self.runner.step(work, copies).and_then(|logits| Ok(Rows::of(&logits)?));
        if logits.is_ok() || work.len() < 2 {
            parts.push(Part { work, logits });
            return;
        }
        let (left, right) = work.split_at(work.len() / 2);
        // Copies are made whatever becomes of the works.
        self.run_works(left, &[], parts);
        self.run_works(right, &[], parts);
    }

    /// Draws a token for each of `members`, from logits that are theirs alone.
    fn draw(&mut self, row: &mut [f32], members: Vec<Drawing>, stepped: &mut Stepped) {
        let several = members.len() > 1;
        if several {
            self.shared.clear();
            self.shared.extend_from_slice(row);
        }
        for (index, mut member) in members.into_iter().enumerate() {
            if several && index > 0 {
                row.copy_from_slice(&self.shared);
            }
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
}

fn fail(work: &Work, members: Vec<Drawing>, reason: &str, stepped: &mut Stepped) {
    let sequences = [&[work.sequence], work.forks.as_slice()].concat();
    let failed = sequences.into_iter().map(|sequence| (sequence, Outcome::Failed(reason.to_owned())));
    stepped.outcomes.extend(failed);
    stepped.drawings.extend(members);
}
