//! The last steps of a model and the texts that ended lately, in the form that Perfetto and Chrome open.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Value, json};
use trustformers_batching::Time;
use trustformers_batching::continuous::{BlockCounts, Ended, StepPlan};

/// How many steps are kept, and how many texts.
const KEPT: usize = 4096;

/// When a step was planned, when the model began, and when its tokens were drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) planned: Time,
    pub(super) began: Time,
    pub(super) ended: Time,
}

#[derive(Debug, Clone)]
struct Step {
    span: Span,
    number: u64,
    decodes: usize,
    prompts: usize,
    prompt_tokens: usize,
    copies: usize,
    preempted: usize,
    predicted_us: Option<f64>,
    blocks: BlockCounts,
}

/// A sequence through its life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) ended: Ended,
    pub(super) arrived: Time,
    pub(super) first_token: Option<Time>,
    pub(super) left: Time,
}

/// The last steps and texts of one model, as many as are kept.
#[derive(Debug, Default)]
pub struct Trace {
    steps: Mutex<VecDeque<Step>>,
    lives: Mutex<VecDeque<Life>>,
}

fn keep<T>(list: &Mutex<VecDeque<T>>, item: T) {
    let mut list = list.lock();
    if list.len() == KEPT {
        list.pop_front();
    }
    list.push_back(item);
}

/// Microseconds since the model was loaded.
fn at(time: Time) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

impl Trace {
    pub(super) fn step(&self, span: Span, plan: &StepPlan, blocks: BlockCounts) {
        let decodes = plan.work.iter().filter(|work| work.samples && work.tokens.len() == 1).count();
        let tokens: usize = plan.work.iter().map(|work| work.tokens.len()).sum();
        let step = Step {
            span,
            number: plan.id.0,
            decodes,
            prompts: plan.work.len() - decodes,
            prompt_tokens: tokens - decodes,
            copies: plan.copies.len(),
            preempted: plan.preempted.len(),
            predicted_us: plan.predicted.map(|predicted| predicted.as_secs_f64() * 1e6),
            blocks,
        };
        keep(&self.steps, step);
    }

    pub(super) fn life(&self, life: Life) {
        keep(&self.lives, life);
    }

    /// Steps and texts as events of Chrome's trace format, of process `process`, which is called `name`; times in
    /// microseconds since the model was loaded.
    pub fn events(&self, process: usize, name: &str) -> Vec<Value> {
        let named = |what: &str, thread: usize, name: &str| json!({ "ph": "M", "name": what, "pid": process, "tid": thread, "args": { "name": name } });
        let mut events = vec![named("process_name", 0, name), named("thread_name", 1, "steps")];
        // Copied, as the engine's thread must not wait while they are written.
        let (steps, lives) = (self.steps.lock().clone(), self.lives.lock().clone());
        steps.iter().for_each(|step| events.extend(step.events(process)));
        lives.iter().for_each(|life| events.extend(life.events(process)));
        events
    }
}

impl Step {
    fn events(&self, process: usize) -> [Value; 2] {
        let Span { planned, began, ended } = self.span;
        let BlockCounts { used, cached, free } = self.blocks;
        let name = if self.prompts > 0 { "step with prompts" } else { "step" };
        [
            json!({
                "ph": "X", "name": name, "pid": process, "tid": 1,
                "ts": at(began), "dur": ended.since(began).as_secs_f64() * 1e6,
                "args": {
                    "step": self.number, "decodes": self.decodes, "prompts": self.prompts,
                    "prompt_tokens": self.prompt_tokens, "copies": self.copies, "preempted": self.preempted,
                    "predicted_us": self.predicted_us, "planning_us": began.since(planned).as_secs_f64() * 1e6,
                },
            }),
            json!({
                "ph": "C", "name": "kv_blocks", "pid": process, "ts": at(ended),
                "args": { "used": used, "cached": cached, "free": free },
            }),
        ]
    }
}

impl Life {
    /// Waiting for the first token, and generating, as one asynchronous track a text.
    fn events(&self, process: usize) -> Vec<Value> {
        let Ended { sequence, request, end, cached_tokens, .. } = self.ended;
        let event = |phase: &str, name: &str, time: Time| {
            json!({
                "ph": phase, "cat": "text", "name": name, "pid": process, "tid": 2, "id": sequence.0, "ts": at(time),
                "args": { "request": request.0, "end": end.name(), "cached_tokens": cached_tokens },
            })
        };
        let first = self.first_token.unwrap_or(self.left);
        let mut events = vec![event("b", "first token", self.arrived), event("e", "first token", first)];
        if self.first_token.is_some() {
            events.extend([event("b", "generate", first), event("e", "generate", self.left)]);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trustformers_batching::continuous::{End, RequestId, SequenceId, StepId};

    use super::*;

    fn time(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    fn plan(number: u64) -> StepPlan {
        StepPlan {
            id: StepId(number),
            work: Vec::new(),
            copies: Vec::new(),
            preempted: Vec::new(),
            predicted: None,
        }
    }

    #[test]
    fn only_the_last_steps_are_kept() {
        let trace = Trace::default();
        let span = Span { planned: time(1), began: time(2), ended: time(5) };
        for number in 0..KEPT as u64 + 3 {
            trace.step(span, &plan(number), BlockCounts::default());
        }
        let events = trace.events(0, "m 1");
        let steps: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(steps.len(), KEPT);
        assert_eq!(steps[0]["args"]["step"], 3);
        assert_eq!((&steps[0]["ts"], &steps[0]["dur"]), (&json!(2.0), &json!(3.0)));
    }

    #[test]
    fn a_text_is_a_wait_for_its_first_token_and_what_follows() {
        let trace = Trace::default();
        let ended = Ended {
            request: RequestId(4),
            sequence: SequenceId(7),
            end: End::Length,
            last: true,
            cached_tokens: 16,
        };
        trace.life(Life { ended, arrived: time(10), first_token: Some(time(30)), left: time(90) });
        let events = trace.events(3, "m 1");
        let of = |phase: &str| -> Vec<(Value, Value)> {
            let events = events.iter().filter(|event| event["ph"] == phase);
            events.map(|event| (event["name"].clone(), event["ts"].clone())).collect()
        };
        assert_eq!(of("b"), [(json!("first token"), json!(10.0)), (json!("generate"), json!(30.0))]);
        assert_eq!(of("e"), [(json!("first token"), json!(30.0)), (json!("generate"), json!(90.0))]);
    }
}
