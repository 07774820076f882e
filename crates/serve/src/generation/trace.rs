//! The last steps of a model and the texts that ended lately, in the form that Perfetto and Chrome open.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use trustformers_batching::Time;
use trustformers_batching::continuous::{BlockCounts, RequestId, SequenceId, StepId, StepPlan};

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
    preempted: Vec<SequenceId>,
    predicted_us: Option<f64>,
    blocks: BlockCounts,
}

/// A sequence through its life.
#[derive(Debug, Clone)]
pub(super) struct Life {
    /// The id that replies and log lines name its request by.
    pub(super) id: Arc<str>,
    pub(super) request: RequestId,
    pub(super) sequence: SequenceId,
    /// How it ended.
    pub(super) end: &'static str,
    /// Of the prompt; not told of what a client left.
    pub(super) cached_tokens: Option<u32>,
    pub(super) arrived: Time,
    /// When a step first fed any of it.
    pub(super) began: Option<Time>,
    pub(super) first_token: Option<Time>,
    pub(super) left: Time,
}

/// What is done while a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// Callers are told what the last step brought.
    Tell,
    /// The next step is planned.
    Plan,
}

impl Errand {
    /// What it is, and what it counts.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Errand::Tell => ("tell callers", "events"),
            Errand::Plan => ("plan ahead", "sequences"),
        }
    }
}

/// Something that was done beside the steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aside {
    pub(super) errand: Errand,
    /// The last step that had ended.
    pub(super) last: StepId,
    pub(super) count: usize,
    pub(super) began: Time,
    pub(super) ended: Time,
}

/// The last steps and texts of one model, as many as are kept.
#[derive(Debug, Default)]
pub struct Trace {
    steps: Mutex<VecDeque<Step>>,
    asides: Mutex<VecDeque<Aside>>,
    lives: Mutex<VecDeque<Life>>,
}

fn keep<T>(list: &Mutex<VecDeque<T>>, most: usize, item: T) {
    let mut list = list.lock();
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(item);
}

/// Microseconds of a time of the model's clock.
fn micros(time: Time) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// Where events are drawn.
#[derive(Debug, Clone, Copy)]
struct Place {
    process: usize,
    /// What the model's clock lacks of the trace's, in microseconds.
    behind: f64,
}

impl Place {
    fn at(self, time: Time) -> f64 {
        micros(time) + self.behind
    }

    /// An event on the track of a text. Its id is the process's own: other models have sequences of that number too.
    fn of_text(self, phase: &str, name: &str, sequence: SequenceId, time: Time, args: &Value) -> Value {
        json!({
            "ph": phase, "cat": "text", "name": name, "pid": self.process, "tid": 2,
            "id2": { "local": format!("{:#x}", sequence.0) }, "ts": self.at(time), "args": args,
        })
    }
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
            preempted: plan.preempted.clone(),
            predicted_us: plan.predicted.map(|predicted| predicted.as_secs_f64() * 1e6),
            blocks,
        };
        keep(&self.steps, KEPT, step);
    }

    pub(super) fn aside(&self, aside: Aside) {
        // Two beside each step.
        keep(&self.asides, 2 * KEPT, aside);
    }

    pub(super) fn life(&self, life: Life) {
        keep(&self.lives, KEPT, life);
    }

    /// Steps and texts as events of Chrome's trace format, of process `process`, which is called `name`. `behind` is
    /// what the model's clock lacks of the one that all models are drawn by.
    pub fn events(&self, process: usize, name: &str, behind: Duration) -> Vec<Value> {
        let place = Place { process, behind: behind.as_secs_f64() * 1e6 };
        let named = |what: &str, thread: usize, name: &str| json!({ "ph": "M", "name": what, "pid": process, "tid": thread, "args": { "name": name } });
        let mut events = vec![
            named("process_name", 0, name),
            named("thread_name", 1, "steps"),
            named("thread_name", 3, "beside steps"),
        ];
        // Copied, as the engine's thread must not wait while they are written.
        let (steps, asides) = (self.steps.lock().clone(), self.asides.lock().clone());
        let lives = self.lives.lock().clone();
        steps.iter().for_each(|step| events.extend(step.events(place)));
        events.extend(asides.iter().map(|aside| aside.event(place)));
        lives.iter().for_each(|life| events.extend(life.events(place)));
        events
    }
}

impl Step {
    fn events(&self, place: Place) -> Vec<Value> {
        let Span { planned, began, ended } = self.span;
        let BlockCounts { used, cached, free } = self.blocks;
        let name = match (self.prompts, self.decodes) {
            (0, _) => "decode",
            (_, 0) => "prefill",
            _ => "prefill and decode",
        };
        let mut events = vec![
            json!({
                "ph": "X", "name": name, "pid": place.process, "tid": 1,
                "ts": place.at(began), "dur": ended.since(began).as_secs_f64() * 1e6,
                "args": {
                    "step": self.number, "decodes": self.decodes, "prompts": self.prompts,
                    "prompt_tokens": self.prompt_tokens, "copies": self.copies,
                    "preempted": self.preempted.len(),
                    "predicted_us": self.predicted_us, "planning_us": began.since(planned).as_secs_f64() * 1e6,
                },
            }),
            json!({
                "ph": "C", "name": "kv_blocks", "pid": place.process, "ts": place.at(ended),
                "args": { "used": used, "cached": cached, "free": free },
            }),
        ];
        let preempted =
            |&sequence| place.of_text("n", "preempted", sequence, planned, &json!({ "step": self.number }));
        events.extend(self.preempted.iter().map(preempted));
        events
    }
}

impl Aside {
    fn event(&self, place: Place) -> Value {
        let (name, count) = self.errand.names();
        json!({
            "ph": "X", "name": name, "pid": place.process, "tid": 3,
            "ts": place.at(self.began), "dur": self.ended.since(self.began).as_secs_f64() * 1e6,
            "args": { "last_step": self.last.0, count: self.count },
        })
    }
}

impl Life {
    /// One track a text: the whole of it, and within that waiting, its prompt and what it generates.
    fn events(&self, place: Place) -> Vec<Value> {
        let name = format!("text {}", self.sequence.0);
        let about = json!({ "request_id": &*self.id, "request": self.request.0, "end": self.end, "cached_tokens": self.cached_tokens });
        let slice = |name: &str, from, to, args: &Value| {
            [("b", from), ("e", to)]
                .map(|(phase, time)| place.of_text(phase, name, self.sequence, time, args))
        };
        let began = self.began.unwrap_or(self.left);
        let first = self.first_token.unwrap_or(self.left);
        // In the order in which they nest.
        let [open, close] = slice(&name, self.arrived, self.left, &about);
        let mut events = vec![open];
        events.extend(slice("wait", self.arrived, began, &Value::Null));
        if self.began.is_some() {
            events.extend(slice("prefill", began, first, &Value::Null));
        }
        if self.first_token.is_some() {
            events.extend(slice("generate", first, self.left, &Value::Null));
        }
        events.push(close);
        events
    }
}

#[cfg(test)]
mod tests {
    use trustformers_batching::continuous::StepId;

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
        let events = trace.events(0, "m 1", Duration::ZERO);
        let steps: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(steps.len(), KEPT);
        assert_eq!(steps[0]["args"]["step"], 3);
        assert_eq!((&steps[0]["ts"], &steps[0]["dur"]), (&json!(2.0), &json!(3.0)));
    }

    #[test]
    fn a_text_waits_reads_its_prompt_and_generates_on_one_track() {
        let trace = Trace::default();
        let (request, sequence) = (RequestId(4), SequenceId(7));
        trace.life(Life {
            id: "abc".into(),
            request,
            sequence,
            end: "length",
            cached_tokens: Some(16),
            arrived: time(10),
            began: Some(time(15)),
            first_token: Some(time(30)),
            left: time(90),
        });
        let events = trace.events(3, "m 1", Duration::from_micros(100));
        let of = |phase: &str| -> Vec<(Value, Value)> {
            let events = events.iter().filter(|event| event["ph"] == phase);
            events.map(|event| (event["name"].clone(), event["ts"].clone())).collect()
        };
        let named = |list: [(&str, f64); 4]| list.map(|(name, at)| (json!(name), json!(at))).to_vec();
        let begun = [("text 7", 110.0), ("wait", 110.0), ("prefill", 115.0), ("generate", 130.0)];
        let ended = [("wait", 115.0), ("prefill", 130.0), ("generate", 190.0), ("text 7", 190.0)];
        assert_eq!(of("b"), named(begun));
        assert_eq!(of("e"), named(ended));
        assert!(events.iter().skip(3).all(|event| event["id2"]["local"] == "0x7"));
    }

    #[test]
    fn a_preempted_text_is_marked_on_its_track() {
        let trace = Trace::default();
        let span = Span { planned: time(1), began: time(2), ended: time(5) };
        trace.step(span, &StepPlan { preempted: vec![SequenceId(9)], ..plan(0) }, BlockCounts::default());
        let events = trace.events(0, "m 1", Duration::ZERO);
        let marks: Vec<_> = events.iter().filter(|event| event["ph"] == "n").collect();
        assert_eq!(marks.len(), 1);
        assert_eq!((&marks[0]["name"], &marks[0]["id2"]["local"]), (&json!("preempted"), &json!("0x9")));
    }
}
