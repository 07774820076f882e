//! Starts real servers on free ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use trustformers_serve::config::{Settings, cache_folders};
use trustformers_serve::server::Server;

use crate::client::{Connection, JSON, Reply};

/// A server for one test, stopped when dropped.
pub(crate) struct Running {
    pub(crate) server: Server,
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// A model that answers at once and needs no file.
pub(crate) const INSTANT: &str = "[models.delay]\ndelay = { batch_time = \"0ms\" }\n";

/// Starts a server with `config` on a free port and waits until its models answer.
pub(crate) fn start(config: &str) -> Running {
    let running = start_unready(config);
    running.server.wait_ready(Duration::from_secs(60)).expect("the models load");
    running
}

/// The same without waiting.
pub(crate) fn start_unready(config: &str) -> Running {
    Running { server: Server::start(&settings(config)).expect("the server starts") }
}

/// `config` over what every test needs: a free port, and the built-in models.
pub(crate) fn settings(config: &str) -> Settings {
    let sets = ["server.port=0".to_owned(), "server.workers=2".to_owned()];
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), config).expect("the configuration is written");
    Settings::load(Some(file.path()), cache_folders(), &sets).unwrap_or_else(|error| panic!("{error}"))
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

    /// `/admin/stats` of one model's newest version.
    pub(crate) fn stats(&self, model: &str) -> Value {
        let stats = self.get("/admin/stats").json();
        let models = stats["models"].as_array().expect("a list").clone();
        models
            .into_iter()
            .rfind(|entry| entry["name"] == model)
            .unwrap_or_else(|| panic!("no {model} in {stats}"))
    }

    /// The value of one sample of `/metrics`; 0 when it is not there.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").text();
        text.lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_default()
    }

    /// Waits until `condition` holds: for what happens on another thread and has no event to wait for.
    pub(crate) fn eventually(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            assert!(std::time::Instant::now() < deadline, "{what} did not happen");
            std::thread::yield_now();
        }
    }
}
