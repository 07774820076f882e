//! One server's state, and its loop: accept, serve, shut down.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::config::{ServerSettings, Settings};
use crate::hosted::Hosted;
use crate::http::client_id::Clients;
use crate::http::{Outer, connection};
use crate::metrics::{Metrics, MetricsError};
use crate::registry::{Registry, SourceError};

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each says what it wraps
pub enum AppError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// What every request of one server sees. No process globals: two servers live in one process.
pub struct App {
    /// Limits and times of requests.
    pub settings: ServerSettings,
    /// The models.
    pub registry: Registry,
    /// The metrics.
    pub metrics: Metrics,
    /// Tells clients apart.
    pub clients: Clients,
    /// For uptimes.
    pub started: Instant,
    /// Places for long texts on the pool of blocking threads: one a worker.
    pub tokenising: Arc<Semaphore>,
    /// Requests that have no reply yet.
    pub in_flight: Arc<InFlight>,
    draining: AtomicBool,
}

/// Counts what shutting down waits for.
#[derive(Debug, Default)]
pub struct InFlight {
    count: AtomicUsize,
    none_left: Notify,
}

/// One request in flight, while it lives.
#[derive(Debug)]
pub struct Flight(Arc<InFlight>);

impl InFlight {
    /// Counts one more.
    pub fn enter(self: &Arc<Self>) -> Flight {
        self.count.fetch_add(1, Ordering::Relaxed);
        Flight(Arc::clone(self))
    }

    async fn wait_for_none(&self) {
        loop {
            let changed = self.none_left.notified();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Release) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

impl App {
    /// The state of a server with these settings and `hosted` models; no model is loaded yet.
    pub fn new(settings: &Settings, hosted: &[Hosted]) -> Result<Self, AppError> {
        let metrics = Metrics::new()?;
        let registry = Registry::new(settings, hosted, &metrics)?;
        let server = settings.server.clone();
        Ok(Self {
            settings: server,
            registry,
            metrics,
            clients: Clients::default(),
            started: Instant::now(),
            tokenising: Arc::new(Semaphore::new(settings.server.workers)),
            in_flight: Arc::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Whether the server is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Serves until `stop` turns true, then finishes what is in flight within `shutdown_timeout`.
/// Models that are to be loaded at start load meanwhile: the server listens at once.
pub async fn run(listener: TcpListener, app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let mut loads = JoinSet::new();
    for version in app.registry.versions().filter(|version| version.source().settings.load) {
        let version = Arc::clone(version);
        // A failure is the version's state, which readiness shows, and a log line.
        loads.spawn(async move { drop(version.load().await) });
    }
    // Each connection holds a receiver, so that the sender sees when the last has ended.
    let (stopping, _) = watch::channel(());
    tokio::select! {
        () = accept(&listener, &app, &stopping) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    drop(listener);
    app.draining.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + app.settings.shutdown_timeout;
    stopping.send_replace(());
    let mut finished = pin!(stopping.closed());
    let finishing = async {
        tokio::select! {
            () = &mut finished => {}
            // What is left then has nothing in flight: a client who is silent, or slow to read its reply.
            () = app.in_flight.wait_for_none() => drop(tokio::time::timeout(LAST_WORDS, &mut finished).await),
        }
    };
    let in_time = tokio::time::timeout_at(deadline.into(), finishing).await.is_ok();
    if !in_time {
        tracing::warn!("requests are still in flight after shutdown_timeout: they are answered as failed");
    }
    loads.abort_all();
    let grace = deadline.saturating_duration_since(Instant::now());
    let registry = Arc::clone(&app);
    drop(spawn_blocking(move || registry.registry.shut_down(grace)).await);
    if !in_time {
        // The answers that shutting down gave are still to be written.
        drop(tokio::time::timeout(LAST_WORDS, finished).await);
    }
}

/// How long a server that stops waits for its last replies to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

async fn accept(listener: &TcpListener, app: &Arc<App>, stopping: &watch::Sender<()>) {
    let service = Outer::new(Arc::clone(app));
    let places = Arc::new(Semaphore::new(app.settings.max_connections));
    loop {
        // Before accepting, so that clients beyond the bound wait in the listener's backlog.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                after_failed_accept(&error).await;
                continue;
            }
        };
        let connection = connection::serve(stream, service.clone(), stopping.subscribe());
        let app = Arc::clone(app);
        tokio::spawn(async move {
            app.metrics.connections.inc();
            connection.await;
            app.metrics.connections.dec();
            drop(place);
        });
    }
}

async fn after_failed_accept(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "cannot accept connections; trying again");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
