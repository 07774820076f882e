//! Metrics as a typed struct: every family of the server, and the handles of one model version.

mod busy;
mod generation;

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, TextEncoder,
};
use serde::Serialize;
use trustformers_batching::batcher::BatchRecord;
use trustformers_batching::{BreakerState, InstanceId, Rejection};

use self::busy::BusyWindow;
use self::generation::GenerationFamilies;
pub use self::generation::GenerationMetrics;
use crate::registry::Now;

/// From a tenth of a millisecond to a minute, about 2.5x a step.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
const TOKENS: &[f64] = &[8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0, 131_072.0];

const RATIOS: &[f64] = &[0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

const VERSION: &[&str] = &["model", "version"];

/// Every metric family of one server. No process globals: two servers count apart.
#[derive(Debug)]
pub struct Metrics {
    registry: prometheus::Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    queue_duration: HistogramVec,
    compute_duration: HistogramVec,
    batch_size: HistogramVec,
    batch_tokens: HistogramVec,
    padding_ratio: HistogramVec,
    breaker_state: IntGaugeVec,
    stalled_instances: IntGaugeVec,
    memory: IntGaugeVec,
    busy_ratio: GaugeVec,
    queue_depth: IntGaugeVec,
    rejections: IntCounterVec,
    tokens: IntCounterVec,
    generation: GenerationFamilies,
    /// Client connections open now; bounded by `server.max_connections`.
    pub connections: IntGauge,
}

/// The metrics cannot be made: two families have one name. A mistake of the program, found by any test.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

impl Metrics {
    /// All families, empty.
    pub fn new() -> Result<Self, MetricsError> {
        let families = Families(prometheus::Registry::new());
        Ok(Self {
            requests: families.counters(
                "requests_total",
                "Requests by outcome (ok, cancelled, or the error's code); each item of a batched call is one.",
                &["model", "version", "outcome"],
            )?,
            request_duration: families.histograms(
                "request_duration_seconds",
                "Time of a call from its arrival to its results.",
                SECONDS,
            )?,
            queue_duration: families.histograms(
                "queue_duration_seconds",
                "Time from admission to the start of the batch.",
                SECONDS,
            )?,
            compute_duration: families.histograms(
                "compute_duration_seconds",
                "Time the model ran a batch.",
                SECONDS,
            )?,
            batch_size: families.histograms("batch_size", "Requests in a batch.", SIZES)?,
            batch_tokens: families.histograms(
                "batch_tokens",
                "Cost of a batch: tokens, or requests where a request is one item.",
                TOKENS,
            )?,
            padding_ratio: families.histograms(
                "padding_ratio",
                "Share of padding in what the model computed for a batch.",
                RATIOS,
            )?,
            breaker_state: families.register(IntGaugeVec::new(
                opts("breaker_state", "Whether the model is left alone: 0 closed, 1 half-open, 2 open."),
                VERSION,
            )?)?,
            stalled_instances: families.register(IntGaugeVec::new(
                opts("stalled_instances", "Instances whose batch runs for longer than stall_timeout."),
                VERSION,
            )?)?,
            memory: families.register(IntGaugeVec::new(
                opts("memory_bytes", "The limit of a batch, and what the last one was predicted to need and needed."),
                &["model", "version", "kind"],
            )?)?,
            busy_ratio: families.register(GaugeVec::new(
                opts("instance_busy_ratio", "Share of the last 10 seconds in which the instance ran a batch."),
                &["model", "version", "instance"],
            )?)?,
            queue_depth: families
                .register(IntGaugeVec::new(opts("queue_depth", "Requests that wait in the queue."), VERSION)?)?,
            rejections: families.counters(
                "rejections_total",
                "Requests that the queue did not admit.",
                &["model", "version", "reason"],
            )?,
            tokens: families.counters(
                "tokens_total",
                "Tokens of prompts and texts, those of prompts that were found computed, and those generated.",
                &["model", "version", "kind"],
            )?,
            generation: GenerationFamilies::new(&families)?,
            connections: families
                .register(IntGauge::with_opts(opts("connections", "Open client connections."))?)?,
            registry: families.0,
        })
    }

    /// The handles of one model version, resolved once so that a request looks up no label.
    pub fn of_version(&self, model: &str, version: &str, instances: usize) -> VersionMetrics {
        let labels = &[model, version];
        VersionMetrics {
            ok: self.requests.with_label_values(&[model, version, "ok"]),
            requests: self.requests.clone(),
            rejections: self.rejections.clone(),
            request_duration: self.request_duration.with_label_values(labels),
            queue_duration: self.queue_duration.with_label_values(labels),
            compute_duration: self.compute_duration.with_label_values(labels),
            batch_size: self.batch_size.with_label_values(labels),
            batch_tokens: self.batch_tokens.with_label_values(labels),
            padding_ratio: self.padding_ratio.with_label_values(labels),
            breaker_state: self.breaker_state.with_label_values(labels),
            stalled_instances: self.stalled_instances.with_label_values(labels),
            memory: self.memory.clone(),
            queue_depth: self.queue_depth.with_label_values(labels),
            tokens: self.tokens.clone(),
            generation: self.generation.clone(),
            busy: (0..instances)
                .map(|instance| {
                    let gauge = self.busy_ratio.with_label_values(&[model, version, &instance.to_string()]);
                    (Mutex::new(BusyWindow::default()), gauge)
                })
                .collect(),
            model: model.to_owned(),
            version: version.to_owned(),
        }
    }

    /// Counts an error of a request that named no known model.
    pub fn failed_without_model(&self, code: &str) {
        self.requests.with_label_values(&["", "", code]).inc();
    }

    /// Prometheus' text format.
    pub fn text(&self) -> Result<Vec<u8>, MetricsError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("trustformers")
}

struct Families(prometheus::Registry);

impl Families {
    fn register<C: Collector + Clone + 'static>(&self, family: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(opts(name, help), labels)?)
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, VERSION)?)
    }
}

/// The metrics of one model version.
#[derive(Debug)]
pub struct VersionMetrics {
    ok: IntCounter,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    request_duration: Histogram,
    queue_duration: Histogram,
    compute_duration: Histogram,
    batch_size: Histogram,
    batch_tokens: Histogram,
    padding_ratio: Histogram,
    breaker_state: IntGauge,
    stalled_instances: IntGauge,
    /// Its kinds show once they are known.
    memory: IntGaugeVec,
    queue_depth: IntGauge,
    /// Its kinds show for models that read text.
    tokens: IntCounterVec,
    generation: GenerationFamilies,
    busy: Vec<(Mutex<BusyWindow>, Gauge)>,
    model: String,
    version: String,
}

/// What `/admin/stats` shows of a model version since the server started.
#[derive(Debug, Clone, Serialize)]
pub struct VersionStats {
    /// Requests answered with a result.
    pub ok: u64,
    /// Requests that the model executed, results and failures alike.
    pub executed_items: u64,
    /// Batches that the model executed.
    pub executed_batches: u64,
    /// `executed_items / executed_batches`
    pub mean_batch_size: f64,
    /// Mean time in the queue.
    pub mean_queue_seconds: f64,
    /// Mean time of a batch in the model.
    pub mean_compute_seconds: f64,
    /// Mean time of a call.
    pub mean_request_seconds: f64,
    /// Share of the last 10 seconds in which each instance ran a batch.
    pub instance_busy_ratio: Vec<f64>,
}

impl VersionMetrics {
    /// Counts a request's end: `None` is a result.
    pub fn ended(&self, error: Option<&str>) {
        match error {
            None => self.ok.inc(),
            Some(outcome) => {
                self.requests.with_label_values(&[&self.model, &self.version, outcome]).inc();
            }
        }
    }

    /// Counts a call's duration.
    pub fn call_took(&self, time: Duration) {
        self.request_duration.observe(time.as_secs_f64());
    }

    /// Counts a refused submission.
    pub fn rejected(&self, rejection: &Rejection) {
        self.refused(rejection.reason());
    }

    /// The same, by the reason's name.
    fn refused(&self, reason: &str) {
        self.rejections.with_label_values(&[&self.model, &self.version, reason]).inc();
    }

    /// The counter of tokens of one kind, for those who count them often.
    pub fn tokens(&self, kind: &str) -> IntCounter {
        self.tokens.with_label_values(&[&self.model, &self.version, kind])
    }

    /// An instance is busy from now on.
    pub fn batch_started(&self, InstanceId(instance): InstanceId) {
        if let Some((window, _)) = self.busy.get(instance as usize) {
            window.lock().begin(Instant::now());
        }
    }

    /// Counts an executed batch.
    pub fn batch_ended(&self, record: &BatchRecord<'_>) {
        self.batch_size.observe(record.size as f64);
        self.batch_tokens.observe(record.cost as f64);
        self.padding_ratio.observe(padding_ratio(record));
        self.knows_memory("predicted", Some(record.bytes).filter(|bytes| *bytes > 0));
        self.knows_memory("peak", record.peak_bytes);
        self.compute_duration.observe(record.busy.as_secs_f64());
        for wait in record.waits {
            self.queue_duration.observe(wait.as_secs_f64());
        }
        let InstanceId(instance) = record.instance;
        if let Some((window, _)) = self.busy.get(instance as usize) {
            window.lock().end(Instant::now(), record.busy);
        }
    }

    /// Brings the gauges up to date; called before they are read.
    pub fn refresh(&self, now: &Now) {
        self.queue_depth.set(i64::try_from(now.queued.entries).unwrap_or(i64::MAX));
        self.breaker_state.set(match now.breaker {
            None | Some(BreakerState::Closed) => 0,
            Some(BreakerState::HalfOpen) => 1,
            Some(BreakerState::Open { .. }) => 2,
        });
        self.stalled_instances.set(i64::try_from(now.stalled.len()).unwrap_or(i64::MAX));
        self.knows_memory("limit", now.memory_limit);
        for (window, gauge) in &self.busy {
            gauge.set(window.lock().ratio(Instant::now()));
        }
    }

    fn knows_memory(&self, kind: &str, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            let gauge = self.memory.with_label_values(&[&self.model, &self.version, kind]);
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// What `/admin/stats` shows.
    pub fn stats(&self) -> VersionStats {
        let batches = self.batch_size.get_sample_count();
        let items = self.batch_size.get_sample_sum();
        let mean = |histogram: &Histogram| match histogram.get_sample_count() {
            0 => 0.0,
            count => histogram.get_sample_sum() / count as f64,
        };
        VersionStats {
            ok: self.ok.get(),
            executed_items: items as u64,
            executed_batches: batches,
            mean_batch_size: mean(&self.batch_size),
            mean_queue_seconds: mean(&self.queue_duration),
            mean_compute_seconds: mean(&self.compute_duration),
            mean_request_seconds: mean(&self.request_duration),
            instance_busy_ratio: self
                .busy
                .iter()
                .map(|(window, _)| window.lock().ratio(Instant::now()))
                .collect(),
        }
    }
}

/// 0 where nothing was padded.
fn padding_ratio(record: &BatchRecord<'_>) -> f64 {
    match record.elements {
        0 => 0.0,
        elements => (1.0 - record.cost as f64 / elements as f64).clamp(0.0, 1.0),
    }
}
