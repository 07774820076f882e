//! One version of a model through its life: loading, ready, failed, unloading, unloaded.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use tokio::task::spawn_blocking;

use super::budgets::Budgets;
use super::loader;
use super::running::{Now, Running};
use super::sources::Source;
use crate::metrics::{Metrics, VersionMetrics};
use crate::torch::memory::Turnover;

/// What a version does now, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is not to be loaded at start, or was unloaded.
    Unloaded,
    /// It is read and warmed up, or will be.
    Loading,
    /// It answers.
    Ready,
    /// It could not be loaded.
    Failed(String),
    /// What is queued runs; nothing new is taken.
    Unloading,
}

impl State {
    /// The name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            State::Unloaded => "unloaded",
            State::Loading => "loading",
            State::Ready => "ready",
            State::Failed(_) => "failed",
            State::Unloading => "unloading",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Unloaded => f.write_str("is not loaded"),
            State::Loading => f.write_str("is still loading"),
            State::Ready => f.write_str("is ready"),
            State::Failed(reason) => write!(f, "failed to load: {reason}"),
            State::Unloading => f.write_str("is being unloaded"),
        }
    }
}

/// A version whose loading failed, with the reason.
#[derive(Debug, Clone, thiserror::Error)]
#[error("model \"{model}\" version \"{version}\" failed to load: {reason}")]
pub struct LoadFailed {
    /// Which model.
    pub model: String,
    /// Which version of it.
    pub version: String,
    /// Why, in the backend's words.
    pub reason: String,
}

/// One version of a model.
pub struct Version {
    source: Source,
    threads: usize,
    metrics: Arc<VersionMetrics>,
    budgets: Arc<Budgets>,
    slot: RwLock<Slot>,
    /// Loads and unloads of one version go one after another.
    transition: tokio::sync::Mutex<()>,
}

struct Slot {
    state: State,
    /// There while `Ready`, and while a replacement loads.
    running: Option<Arc<Running>>,
    /// Once set, nothing loads any more: the server is stopping.
    closed: bool,
}

impl Version {
    pub(super) fn new(source: Source, threads: usize, metrics: &Metrics, budgets: Arc<Budgets>) -> Self {
        let metrics = metrics.of_version(source.model(), &source.version, source.settings.instances);
        // From the first moment, so that readiness never misses a model whose load has not begun.
        let state = if source.settings.load { State::Loading } else { State::Unloaded };
        let slot = Slot { state, running: None, closed: false };
        Self {
            source,
            threads,
            metrics: Arc::new(metrics),
            budgets,
            slot: RwLock::new(slot),
            transition: tokio::sync::Mutex::new(()),
        }
    }

    /// Its model's name.
    pub fn model(&self) -> &str {
        self.source.model()
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        &self.source.version
    }

    /// Where it comes from and how it is run.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// LibTorch threads of each of its instances.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Its metrics.
    pub fn metrics(&self) -> &Arc<VersionMetrics> {
        &self.metrics
    }

    /// What it does now.
    pub fn state(&self) -> State {
        self.slot.read().state.clone()
    }

    /// What answers, when something does.
    pub fn ready(&self) -> Option<Arc<Running>> {
        self.slot.read().running.clone()
    }

    /// Brings its metrics up to date; called before they are read.
    pub fn refresh_metrics(&self) {
        // Held meanwhile, so that what is taken away does not come back.
        let slot = self.slot.read();
        let running = slot.running.as_deref();
        self.metrics.refresh(&running.map_or_else(Now::default, Running::now));
        match running.and_then(Running::generator) {
            Some(generator) => generator.engine.refresh(),
            None => self.metrics.hide_generation(),
        }
    }

    /// Loads it, or loads it anew: the old one answers until the new one can, then finishes its queue.
    pub async fn load(self: &Arc<Self>) -> Result<(), LoadFailed> {
        let _one_at_a_time = self.transition.lock().await;
        {
            let mut slot = self.slot.write();
            if slot.closed {
                return Err(self.failed("the server is stopping".to_owned()));
            }
            if slot.running.is_none() {
                slot.state = State::Loading;
            }
        }
        let version = Arc::clone(self);
        let loading = move || {
            let _turnover = Turnover::begin();
            version.load_now()
        };
        let loaded = spawn_blocking(loading).await;
        loaded.unwrap_or_else(|panic| Err(self.fail(format!("the loader panicked: {panic}"))))
    }

    fn load_now(&self) -> Result<(), LoadFailed> {
        let started = Instant::now();
        tracing::info!(model = self.model(), version = self.name(), "loading");
        match loader::load(&self.source, self.threads, &self.metrics, &self.budgets) {
            Err(reason) => Err(self.fail(reason)),
            Ok(running) => {
                self.say_ready(&running, started);
                self.swap(running);
                Ok(())
            }
        }
    }

    fn say_ready(&self, running: &Running, started: Instant) {
        let (model, version, device) = (self.model(), self.name(), &running.device);
        let seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        if running.hosting().is_some() {
            tracing::info!(model, version, device, seconds, "ready");
            return;
        }
        let (instances, threads_per_instance) = (self.source.settings.instances, running.threads);
        tracing::info!(model, version, device, instances, threads_per_instance, seconds, "ready");
    }

    fn swap(&self, running: Running) {
        let running = Arc::new(running);
        let mut slot = self.slot.write();
        if slot.closed {
            drop(slot);
            running.drain();
            return;
        }
        slot.state = State::Ready;
        let old = slot.running.replace(running);
        drop(slot);
        if let Some(old) = old {
            old.drain();
        }
    }

    /// A version that still answers goes on answering when its replacement cannot be loaded.
    fn fail(&self, reason: String) -> LoadFailed {
        tracing::error!(model = self.model(), version = self.name(), reason, "failed to load");
        let mut slot = self.slot.write();
        if slot.running.is_none() {
            slot.state = State::Failed(reason.clone());
        }
        drop(slot);
        self.failed(reason)
    }

    fn failed(&self, reason: String) -> LoadFailed {
        LoadFailed { model: self.model().to_owned(), version: self.name().to_owned(), reason }
    }

    /// Takes no more work, runs what is queued, frees the model.
    pub async fn unload(self: &Arc<Self>) {
        let _one_at_a_time = self.transition.lock().await;
        let old = {
            let mut slot = self.slot.write();
            let old = slot.running.take();
            slot.state = if old.is_some() { State::Unloading } else { State::Unloaded };
            old
        };
        if let Some(old) = old {
            // A join of threads that end by themselves; if the task is lost with the runtime, so is the model.
            let unloading = move || {
                let turnover = Turnover::begin();
                old.drain();
                drop(old);
                drop(turnover);
            };
            drop(spawn_blocking(unloading).await);
            self.slot.write().state = State::Unloaded;
            tracing::info!(model = self.model(), version = self.name(), "unloaded");
        }
    }

    /// Loads nothing any more; gives up what answers, for the caller to drain.
    pub(super) fn close(&self) -> Option<Arc<Running>> {
        let mut slot = self.slot.write();
        slot.closed = true;
        slot.state = State::Unloading;
        slot.running.take()
    }
}
