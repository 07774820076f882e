//! Models by name and version: what is loaded, what is loading, what failed and why.

mod batches;
mod budgets;
mod event_log;
mod free_memory;
mod gathering;
mod generator;
mod hosting;
mod loader;
pub mod natural;
mod running;
mod sources;
mod version;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use self::batches::{Batches, Unanswered};
pub(crate) use self::batches::{Size, shape_key};
use self::budgets::Budgets;
pub use self::hosting::{Asked, Hosting, Piecewise};
pub use self::running::{Now, Running, Terms, Work};
use self::sources::Source;
pub use self::sources::{Origin, SourceError};
pub use self::version::{LoadFailed, State, Version};
use crate::config::Settings;
use crate::hosted::Hosted;
use crate::metrics::Metrics;

/// Why a model cannot be used now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// No such name.
    #[error("model \"{name}\" is not known; known models: {known}")]
    NoModel {
        /// As asked.
        name: String,
        /// What could have been asked.
        known: String,
    },
    /// No such version of a known model.
    #[error("model \"{name}\" has no version \"{version}\"; it has {known}")]
    NoVersion {
        /// As asked.
        name: String,
        /// As asked.
        version: String,
        /// What could have been asked.
        known: String,
    },
    /// Known, and not ready.
    #[error("model \"{name}\" version \"{version}\" {state}")]
    NotReady {
        /// As asked.
        name: String,
        /// As asked, or the newest.
        version: String,
        /// Why not.
        state: State,
    },
}

/// All models of one server.
pub struct Registry {
    models: BTreeMap<String, Model>,
}

/// One model: its versions, oldest first.
pub struct Model {
    name: String,
    versions: Vec<Arc<Version>>,
}

impl Registry {
    /// The models that `settings` name or whose folders it points to, and those `hosted`; nothing is loaded yet.
    pub fn new(settings: &Settings, hosted: &[Hosted], metrics: &Metrics) -> Result<Self, SourceError> {
        let sources = sources::find(settings, hosted)?;
        let share = threads_of_each(settings.device.threads, &sources);
        let budgets = Arc::new(Budgets::new(settings.device.memory_limit));
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        for source in sources {
            let threads = source.settings.threads.unwrap_or(share);
            let model = models
                .entry(source.model().to_owned())
                .or_insert_with(|| Model { name: source.model().to_owned(), versions: Vec::new() });
            model.versions.push(Arc::new(Version::new(source, threads, metrics, Arc::clone(&budgets))));
        }
        for model in models.values_mut() {
            model.versions.sort_by(|a, b| natural::compare(a.name(), b.name()));
        }
        Ok(Self { models })
    }

    /// All models, by name.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// All versions of all models.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.models.values().flat_map(|model| &model.versions)
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Result<&Model, Unavailable> {
        self.models.get(name).ok_or_else(|| Unavailable::NoModel {
            name: name.to_owned(),
            known: list(self.models.keys().map(String::as_str)),
        })
    }

    /// Stops everything: what is queued runs for at most `grace`, then is answered as closed.
    ///
    /// Blocks until every thread has ended, but for no more than [`LAST_BATCH`] beyond `grace`: a model cannot
    /// be made to return, so one that still runs is left to the end of the process, with a warning.
    pub fn shut_down(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut drains: BTreeMap<usize, Drain> = BTreeMap::new();
        let (ended, has_ended) = mpsc::channel();
        for (index, version) in self.versions().enumerate() {
            if let Some(running) = version.close()
                && let Some(drain) = Drain::start(index, Arc::clone(version), running, ended.clone())
            {
                drains.insert(index, drain);
            }
        }
        wait_for(&mut drains, &has_ended, deadline);
        drains.values().for_each(Drain::abort);
        wait_for(&mut drains, &has_ended, Instant::now() + LAST_BATCH);
        for drain in drains.values() {
            let (model, version) = (drain.version.model(), drain.version.name());
            tracing::warn!(model, version, "stopped without waiting for its model, which still runs");
        }
    }
}

/// How long a server that stops waits for models to return whose callers have been answered.
const LAST_BATCH: Duration = Duration::from_secs(1);

/// A version that runs its queue on a thread of its own, so that nobody has to wait for it.
struct Drain {
    version: Arc<Version>,
    /// Weak, so that the thread's is the last: what it frees, and the end of its log, hold nobody up.
    running: Weak<Running>,
    thread: JoinHandle<()>,
}

impl Drain {
    /// Its `index` comes through `ended`. `None` without a thread to be had: then it is answered as closed.
    fn start(
        index: usize,
        version: Arc<Version>,
        running: Arc<Running>,
        ended: Sender<usize>,
    ) -> Option<Self> {
        let weak = Arc::downgrade(&running);
        let body = move || {
            running.drain();
            drop(running);
            // Fails when nobody waits any more.
            let _ = ended.send(index);
        };
        match thread::Builder::new().name("drain".to_owned()).spawn(body) {
            Ok(thread) => Some(Self { version, running: weak, thread }),
            Err(error) => {
                // The thread's half is gone with it, and with that the model: dropping aborts.
                tracing::error!(model = version.model(), %error, "cannot finish what is queued");
                None
            }
        }
    }

    fn abort(&self) {
        if let Some(running) = self.running.upgrade() {
            running.abort();
        }
    }
}

/// Takes out those that end before `deadline`.
fn wait_for(drains: &mut BTreeMap<usize, Drain>, ended: &Receiver<usize>, deadline: Instant) {
    while !drains.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(index) = ended.recv_timeout(left) else { return };
        if let Some(drain) = drains.remove(&index) {
            // It has nothing left to do but to end.
            drop(drain.thread.join());
        }
    }
}

impl Model {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its versions, oldest first.
    pub fn versions(&self) -> &[Arc<Version>] {
        &self.versions
    }

    /// The version of that name; without one, the newest that is ready, else the newest.
    pub fn version(&self, name: Option<&str>) -> Result<&Arc<Version>, Unavailable> {
        let found = match name {
            Some(name) => self.versions.iter().find(|version| version.name() == name),
            None => self.default_version(),
        };
        found.ok_or_else(|| Unavailable::NoVersion {
            name: self.name.clone(),
            version: name.unwrap_or_default().to_owned(),
            known: list(self.versions.iter().map(|version| version.name())),
        })
    }

    /// The newest version that is ready, else the newest.
    pub fn default_version(&self) -> Option<&Arc<Version>> {
        let newest_ready = self.versions.iter().rev().find(|version| version.ready().is_some());
        newest_ready.or_else(|| self.versions.last())
    }
}

/// LibTorch threads of each instance whose model does not say how many: what the others leave of `all`, at
/// least one. Says so when together they have more than `all` because a model's settings ask for them.
fn threads_of_each(all: usize, sources: &[Source]) -> usize {
    let torch = || sources.iter().filter(|source| source.uses_torch()).map(|source| &source.settings);
    let taken: usize = torch().filter_map(|model| Some(model.instances * model.threads?)).sum();
    let shares: usize = torch().filter(|model| model.threads.is_none()).map(|model| model.instances).sum();
    let share = (all.saturating_sub(taken) / shares.max(1)).max(1);
    let sum = taken + shares * share;
    if sum > all && torch().any(|model| model.threads.is_some() || model.instances > 1) {
        tracing::warn!(
            threads = sum,
            device_threads = all,
            "instances x threads of all models exceed device.threads: they slow each other down"
        );
    }
    share
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
