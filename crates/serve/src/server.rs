//! A server inside this process: its own runtime, started and stopped from any thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::app::{self, App, AppError};
use crate::config::Settings;
use crate::hosted::Hosted;
use crate::registry::{State, Version};
use crate::torch::device::{self, DeviceError};

/// Why a server did not start, or did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The models' sources are wrong.
    #[error(transparent)]
    App(#[from] AppError),
    /// A device was asked for that is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Another process has the port, say.
    #[error("cannot listen on {host}:{port}: {error}")]
    Bind {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// The operating system's word.
        error: io::Error,
    },
    /// No threads, say.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// Models that failed, or still load after the time given.
    #[error("not ready: {0}")]
    NotReady(String),
}

/// A running server. Dropping it stops it.
pub struct Server {
    addr: SocketAddr,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    stopped: Arc<Stopped>,
    /// Taken by whoever stops the server first.
    runtime: Mutex<Option<Runtime>>,
}

#[derive(Default)]
struct Stopped {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Stopped {
    fn set(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let mut done = self.done.lock();
        while !*done {
            match deadline {
                None => self.changed.wait(&mut done),
                Some(deadline) => {
                    if self.changed.wait_until(&mut done, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        *done
    }
}

impl Server {
    /// Binds and answers at once; models load in the background.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        Self::start_with(settings, &[])
    }

    /// The same, with models that this program runs, beside those of the settings.
    pub fn start_with(settings: &Settings, hosted: &[Hosted]) -> Result<Self, StartError> {
        raise_file_limit();
        let app = Arc::new(App::new(settings, hosted)?);
        check_devices(settings, app.registry.versions())?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(settings.server.workers)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let (host, port) = (settings.server.host.clone(), settings.server.port);
        let listener = runtime
            .block_on(TcpListener::bind((host.as_str(), port)))
            .map_err(|error| StartError::Bind { host: host.clone(), port, error })?;
        let addr = listener.local_addr().map_err(|error| StartError::Bind { host, port, error })?;
        let (stop, stopping) = watch::channel(false);
        let stopped = Arc::new(Stopped::default());
        let signal = Arc::clone(&stopped);
        let running = Arc::clone(&app);
        runtime.spawn(async move {
            app::run(listener, running, stopping).await;
            signal.set();
        });
        Ok(Self { addr, app, stop, stopped, runtime: Mutex::new(Some(runtime)) })
    }

    /// Where it listens; the real port when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The server's state.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Waits until every model that loads at start answers. An error names the first that failed, or those
    /// that still load at the end of `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + timeout;
        while self.loading().next().is_some() {
            if let Some(failure) = self.first_failure() {
                return Err(StartError::NotReady(failure));
            }
            if Instant::now() >= deadline || self.wait(POLL) {
                let waiting: Vec<_> =
                    self.loading().map(|version| format!("\"{}\"", version.model())).collect();
                return Err(StartError::NotReady(format!("still loading: {}", waiting.join(", "))));
            }
        }
        self.first_failure().map_or(Ok(()), |failure| Err(StartError::NotReady(failure)))
    }

    /// Waits until every model that loads at start answers or has failed; false when the server stopped first.
    pub fn wait_settled(&self) -> bool {
        while self.loading().next().is_some() {
            if self.wait(POLL) {
                return false;
            }
        }
        true
    }

    fn loading(&self) -> impl Iterator<Item = &Arc<Version>> {
        let at_start = self.app.registry.versions().filter(|version| version.source().settings.load);
        at_start.filter(|version| version.state() == State::Loading)
    }

    fn first_failure(&self) -> Option<String> {
        self.app.registry.versions().find_map(|version| match version.state() {
            State::Failed(reason) => {
                Some(format!("model \"{}\" version \"{}\": {reason}", version.model(), version.name()))
            }
            _ => None,
        })
    }

    /// Whether it has not stopped.
    pub fn is_running(&self) -> bool {
        !*self.stopped.done.lock()
    }

    /// Waits until it has stopped, at most `timeout`; true when it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.stopped.wait_until(Some(Instant::now() + timeout))
    }

    /// Stops accepting, finishes what is in flight within `shutdown_timeout`, and ends every thread but those
    /// of a model that does not return within a second more. Blocks until then; a second call waits for the
    /// first.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.stopped.wait_until(None);
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Between two looks at the models' states.
const POLL: Duration = Duration::from_millis(5);

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A device that is not there is an error at start, not of the model's later loading. Whatever a version's
/// settings come from: the configuration, or a repository's `model.toml`.
pub(crate) fn check_devices<'a>(
    settings: &Settings,
    mut versions: impl Iterator<Item = &'a Arc<Version>>,
) -> Result<(), DeviceError> {
    device::select(settings.device.default.into())?;
    versions.try_for_each(|version| device::select(version.source().settings.device.into()).map(drop))
}

/// Every connection is a file: the default of 1,024 is reached by 1,000 clients.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
