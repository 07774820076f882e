//! Starts real servers on free ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trustformers_serve::config::{Settings, cache_folders};
use trustformers_serve::registry::Version;
use trustformers_serve::server::Server;

use crate::client::{Connection, JSON, Reply};

/// A server for one test, stopped when dropped.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
}

/// The folder where `make` puts the built-in models.
pub(crate) fn builtin_models() -> PathBuf {
    Settings::load(None, cache_folders(), &[]).expect("defaults are right").builtin_models
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// A model that answers at once and needs no file.
pub(crate) const INSTANT: &str = "models.delay.delay.batch_time = '0ms'\n";

/// A model that is busy long enough for a test to do something meanwhile, one request at a time.
pub(crate) const BUSY: &str =
    "models.delay.delay.batch_time = '300ms'\nmodels.delay.batching.max_batch_size = 1\n";

/// Where the delay model answers.
pub(crate) const DELAY: &str = "/models/delay/predict";

/// Where the text model answers.
pub(crate) const MINILM: &str = "/models/minilm/predict";

/// Starts a server with `config` on a free port and waits until its models answer.
pub(crate) fn start(config: &str) -> Running {
    let running = start_unready(config);
    running.server.wait_ready(Duration::from_secs(60)).expect("the models load");
    running
}

/// The same without waiting.
pub(crate) fn start_unready(config: &str) -> Running {
    let server = Server::start(&settings(config)).unwrap_or_else(|error| panic!("{error}"));
    Running { server: Arc::new(server) }
}

/// The same, waiting until each model answers or has failed.
pub(crate) fn start_settled(config: &str) -> Running {
    let running = start_unready(config);
    assert!(running.server.wait_settled(), "the server stopped by itself");
    running
}

/// `config` over what every test needs: a free port and few threads.
pub(crate) fn settings(config: &str) -> Settings {
    try_settings(config).unwrap_or_else(|error| panic!("{error}\n{config}"))
}

/// The same for settings that may be wrong.
pub(crate) fn try_settings(config: &str) -> Result<Settings, String> {
    let mut sets = Vec::new();
    for (key, value) in [("server.port", "0"), ("server.workers", "2")] {
        if !config.contains(key) {
            sets.push(format!("{key}={value}"));
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), config).expect("the configuration is written");
    Settings::load(Some(file.path()), cache_folders(), &sets).map_err(|error| error.to_string())
}

/// A path as TOML writes it.
pub(crate) fn quoted(path: &Path) -> String {
    json!(path).to_string()
}

impl Running {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.addr())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_raw(path, &[JSON], body.to_string().as_bytes())
    }

    pub(crate) fn post_raw(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.connect().request("POST", path, headers, body)
    }

    /// A request whose reply is read later.
    pub(crate) fn post_later(&self, path: &str, body: &Value) -> Connection {
        let mut connection = self.connect();
        connection.start_post(path, body);
        connection
    }

    /// `/admin/stats` of one model's newest version.
    pub(crate) fn stats(&self, model: &str) -> Value {
        let stats = self.get("/admin/stats").ok();
        let models = stats["models"].as_array().expect("a list").clone();
        models
            .into_iter()
            .rfind(|entry| entry["name"] == model)
            .unwrap_or_else(|| panic!("no {model} in {stats}"))
    }

    /// A count in `/admin/stats`.
    pub(crate) fn count(&self, model: &str, field: &str) -> u64 {
        self.stats(model)[field].as_u64().unwrap_or_else(|| panic!("no count {field}"))
    }

    /// The value of one sample of `/metrics`; 0 when it is not there.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").text();
        text.lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_default()
    }

    /// `trustformers_requests_total` of a version "1".
    pub(crate) fn outcomes(&self, model: &str, outcome: &str) -> f64 {
        let version = if model.is_empty() { "" } else { "1" };
        self.metric(&format!(
            "trustformers_requests_total{{model=\"{model}\",outcome=\"{outcome}\",version=\"{version}\"}}"
        ))
    }

    /// `trustformers_rejections_total` of a version "1".
    pub(crate) fn rejections(&self, model: &str, reason: &str) -> f64 {
        self.metric(&format!(
            "trustformers_rejections_total{{model=\"{model}\",reason=\"{reason}\",version=\"1\"}}"
        ))
    }

    /// Requests that wait for `model`, without asking over a socket.
    pub(crate) fn queued(&self, model: &str) -> usize {
        let mut versions = self.server.app().registry.versions();
        versions.find(|version| version.model() == model).and_then(queue).unwrap_or_default()
    }

    /// Waits until `condition` holds: for what happens on another thread and has no event to wait for.
    pub(crate) fn eventually(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        eventually(what, || condition(self));
    }

    /// Waits until exactly `count` requests wait for the delay model.
    pub(crate) fn until_queued(&self, count: usize) {
        self.eventually(&format!("{count} requests in the queue"), |running| {
            running.queued("delay") == count
        });
    }

    /// Makes the delay model of [`BUSY`] run one request with another in the queue. Both are admitted
    /// under one lock, so that a queue of one says that the other runs.
    pub(crate) fn occupy(&self) -> Connection {
        let connection = self.post_later(DELAY, &json!({ "instances": [[0.0], [0.0]] }));
        self.until_queued(1);
        connection
    }

    /// Asserts that it answers as if nothing had happened.
    pub(crate) fn still_serves(&self) {
        assert_eq!(self.get("/health/live").status, 200);
        let reply = self.post(DELAY, &json!({ "data": [1.0, 2.0] })).ok();
        assert_eq!(reply["data"], json!([1.0, 2.0]));
    }
}

/// The same without a server of this process.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn queue(version: &Arc<Version>) -> Option<usize> {
    version.ready().map(|running| running.queued().entries)
}

/// The names of this process's threads.
pub(crate) fn threads() -> Vec<String> {
    threads_of("self")
}

/// The same of another process, by its id.
pub(crate) fn threads_of(process: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("Linux");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// How many threads have a name that starts so.
pub(crate) fn threads_named(prefix: &str) -> usize {
    threads().iter().filter(|name| name.starts_with(prefix)).count()
}
