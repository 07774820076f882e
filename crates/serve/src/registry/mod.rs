//! Models by name and version: what is loaded, what is loading, what failed and why.

mod event_log;
mod loader;
mod natural;
mod running;
mod sources;
mod version;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

pub use self::running::{Running, Unanswered};
pub use self::sources::SourceError;
pub use self::version::{LoadFailed, State, Version};
use crate::config::Settings;
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
    /// The models that `settings` name or whose folders it points to; nothing is loaded yet.
    pub fn new(settings: &Settings, metrics: &Metrics) -> Result<Self, SourceError> {
        let sources = sources::find(settings)?;
        let cores = settings.device.threads;
        let shares: usize =
            sources.iter().filter(|source| source.uses_torch()).map(|s| s.settings.instances).sum();
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        for source in sources {
            let threads = source.settings.threads.unwrap_or_else(|| (cores / shares.max(1)).max(1));
            let model = models
                .entry(source.model().to_owned())
                .or_insert_with(|| Model { name: source.model().to_owned(), versions: Vec::new() });
            model.versions.push(Arc::new(Version::new(source, threads, metrics)));
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
    /// Blocks until every thread has ended.
    pub fn shut_down(&self, grace: Duration) {
        let running: Vec<Arc<Running>> = self.versions().filter_map(|version| version.close()).collect();
        std::thread::scope(|scope| {
            let (alive, all_drained) = mpsc::channel::<()>();
            for model in &running {
                let alive = alive.clone();
                scope.spawn(move || {
                    model.drain();
                    drop(alive);
                });
            }
            drop(alive);
            // Nothing is ever sent: the channel hangs up when the last drain is over.
            if all_drained.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
                running.iter().for_each(|model| model.abort());
            }
        });
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

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
