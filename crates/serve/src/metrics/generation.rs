//! Metrics of models that generate text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};
use trustformers_batching::InstanceId;
use trustformers_batching::continuous::stats::Counters;
use trustformers_batching::continuous::{BlockCounts, Refusal, Stats, StepPlan};

use super::{Families, SECONDS, VERSION, VersionMetrics, opts};

const BLOCK_STATES: [&str; 3] = ["used", "cached", "free"];
const SEQUENCE_STATES: [&str; 3] = ["waiting", "running", "preempted"];

/// Families that only models which generate text have.
#[derive(Debug, Clone)]
pub(super) struct GenerationFamilies {
    first_token: HistogramVec,
    inter_token: HistogramVec,
    blocks: IntGaugeVec,
    sequences: IntGaugeVec,
    preemptions: IntCounterVec,
}

impl GenerationFamilies {
    pub(super) fn new(families: &Families) -> Result<Self, prometheus::Error> {
        Ok(Self {
            first_token: families.histograms(
                "time_to_first_token_seconds",
                "Time from admission to a text's first token.",
                SECONDS,
            )?,
            inter_token: families.histograms(
                "inter_token_seconds",
                "Time from one token of a text to the next.",
                SECONDS,
            )?,
            blocks: families.register(IntGaugeVec::new(
                opts(
                    "kv_blocks",
                    "Blocks of the KV cache: in use, kept for prompts that begin alike, or free.",
                ),
                &["model", "version", "state"],
            )?)?,
            sequences: families.register(IntGaugeVec::new(
                opts("sequences", "Texts that wait, are generated, or lost their blocks and wait again."),
                &["model", "version", "state"],
            )?)?,
            preemptions: families.counters(
                "preemptions_total",
                "Texts that lost their blocks to others and are computed again.",
                VERSION,
            )?,
        })
    }
}

/// The metrics of one load of a model that generates text.
#[derive(Debug)]
pub struct GenerationMetrics {
    of: Arc<VersionMetrics>,
    first_token: Histogram,
    inter_token: Histogram,
    /// Prompt, cached, generated.
    tokens: [IntCounter; 3],
    preemptions: IntCounter,
    /// What the scheduler had counted when it was last asked.
    counted: Mutex<Counters>,
}

impl GenerationMetrics {
    /// Those of a version, for a scheduler that has counted nothing yet.
    pub fn new(of: &Arc<VersionMetrics>) -> Self {
        let labels = [of.model.as_str(), of.version.as_str()];
        Self {
            first_token: of.generation.first_token.with_label_values(&labels),
            inter_token: of.generation.inter_token.with_label_values(&labels),
            tokens: ["prompt", "cached", "generated"].map(|kind| of.tokens(kind)),
            preemptions: of.generation.preemptions.with_label_values(&labels),
            counted: Mutex::default(),
            of: Arc::clone(of),
        }
    }

    /// Counts a request that was not admitted.
    pub fn refused(&self, refusal: &Refusal) {
        self.of.refused(refusal.reason());
    }

    /// Counts a request that left the queue.
    pub fn waited(&self, time: Duration) {
        self.of.queue_duration.observe(time.as_secs_f64());
    }

    /// Counts a text's first token.
    pub fn first_token(&self, time: Duration) {
        self.first_token.observe(time.as_secs_f64());
    }

    /// Counts every further one.
    pub fn next_token(&self, time: Duration) {
        self.inter_token.observe(time.as_secs_f64());
    }

    /// A step begins.
    pub fn step_began(&self) {
        self.of.batch_started(InstanceId(0));
    }

    /// Counts a step of the model.
    pub fn step_ended(&self, plan: &StepPlan, busy: Duration) {
        self.of.batch_size.observe(plan.work.len() as f64);
        let tokens: usize = plan.work.iter().map(|work| work.tokens.len()).sum();
        self.of.batch_tokens.observe(tokens as f64);
        self.of.compute_duration.observe(busy.as_secs_f64());
        if let Some((window, _)) = self.of.busy.first() {
            window.lock().end(Instant::now(), busy);
        }
    }

    /// Brings counters up to what the scheduler says, which is asked while nobody else counts: an older answer must
    /// not come after a newer one.
    pub fn count(&self, stats: impl FnOnce() -> Stats) {
        self.count_and(stats, |_| ());
    }

    /// The same with the gauges, for the load of the model that answers.
    pub fn refresh(&self, stats: impl FnOnce() -> Stats) {
        self.count_and(stats, |stats| self.show(stats));
    }

    fn count_and(&self, stats: impl FnOnce() -> Stats, and: impl FnOnce(&Stats)) {
        let mut counted = self.counted.lock();
        let stats = stats();
        let now = &stats.counters;
        let [prompt, cached, generated] = &self.tokens;
        prompt.inc_by(now.prompt_tokens - counted.prompt_tokens);
        cached.inc_by(now.cached_prompt_tokens - counted.cached_prompt_tokens);
        generated.inc_by(now.generated_tokens - counted.generated_tokens);
        self.preemptions.inc_by(now.preemptions - counted.preemptions);
        *counted = now.clone();
        and(&stats);
    }

    fn show(&self, stats: &Stats) {
        let set = |family: &IntGaugeVec, state: &str, value: u64| {
            let gauge = family.with_label_values(&[self.of.model.as_str(), &self.of.version, state]);
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let BlockCounts { used, cached, free } = stats.blocks;
        let blocks = [used, cached, free].map(u64::from);
        let sequences = [stats.sequences_waiting, stats.sequences_running, stats.sequences_preempted];
        let families = &self.of.generation;
        BLOCK_STATES.into_iter().zip(blocks).for_each(|(state, value)| set(&families.blocks, state, value));
        let sequences = SEQUENCE_STATES.into_iter().zip(sequences);
        sequences.for_each(|(state, value)| set(&families.sequences, state, value));
    }
}

impl VersionMetrics {
    /// Takes the gauges of a model away that is no longer there.
    pub fn hide_generation(&self) {
        let families = &self.generation;
        let blocks = BLOCK_STATES.map(|state| (&families.blocks, state));
        for (family, state) in
            blocks.into_iter().chain(SEQUENCE_STATES.map(|state| (&families.sequences, state)))
        {
            // Only that there is none, which is what is wanted.
            drop(family.remove_label_values(&[self.model.as_str(), &self.version, state]));
        }
    }
}
