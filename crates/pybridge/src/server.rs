//! `Server`: a running server in this process.

use std::process;
use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use trustformers_serve::{logging, server};

use crate::interrupt::{POLL, interruptible, seconds};
use crate::serving::HostedModel;
use crate::{config, error};

/// A server that runs on threads of its own in this process.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Server {
    /// Shared with the thread of a wait that a signal ended early.
    running: Arc<server::Server>,
    /// Who has its threads. One forked from it has a copy of their memory, which nobody will ever change.
    process: u32,
}

impl Server {
    /// # Errors
    /// `RuntimeError` in another process than its own.
    fn here(&self) -> PyResult<Arc<server::Server>> {
        if self.is_here() {
            return Ok(Arc::clone(&self.running));
        }
        Err(PyRuntimeError::new_err(format!(
            "this server runs in process {}, which this one was forked from: stop it there",
            self.process
        )))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.is_here() {
            // Its end would wait for threads that are not in this process.
            std::mem::forget(Arc::clone(&self.running));
        }
    }
}

#[pymethods]
impl Server {
    /// Binds the address of a configuration and serves; models load in the background, also those `hosted`,
    /// which stand in the place of the built-in ones without `builtins`.
    ///
    /// The first one in a process also decides what the process logs.
    #[staticmethod]
    #[pyo3(signature = (text, origin, folder, hosted, builtins))]
    fn start(
        py: Python<'_>,
        text: &str,
        origin: &str,
        folder: &str,
        hosted: Vec<Py<HostedModel>>,
        builtins: bool,
    ) -> PyResult<Self> {
        let mut settings = config::settings(text, origin, folder).map_err(error::config)?;
        if !builtins {
            settings.models.clear();
        }
        logging::log_to_stderr(&settings.logging);
        let hosted: Vec<_> = hosted.iter().map(|model| model.get().model()).collect();
        let start = move || server::Server::start_with(&settings, &hosted);
        let running = interruptible(py, start)?.map_err(error::start)?;
        Ok(Self { running: Arc::new(running), process: process::id() })
    }

    /// The address it listens on: host and port.
    fn address(&self) -> (String, u16) {
        let address = self.running.addr();
        (address.ip().to_string(), address.port())
    }

    /// Returns once every model that is to be loaded at start serves.
    fn wait_ready(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<()> {
        let (running, timeout) = (self.here()?, seconds(timeout_seconds)?);
        interruptible(py, move || running.wait_ready(timeout))?.map_err(error::not_ready)
    }

    /// Stops accepting, finishes what is in flight, and returns when every thread has ended.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let running = self.here()?;
        interruptible(py, move || running.stop())
    }

    /// Whether it is of this process, not of one that this was forked from.
    fn is_here(&self) -> bool {
        self.process == process::id()
    }

    /// Whether it still serves, in this process.
    fn is_running(&self) -> bool {
        self.is_here() && self.running.is_running()
    }

    /// Waits until it has stopped, at most `timeout_seconds` (`None`: without limit); says whether it has.
    #[pyo3(signature = (timeout_seconds))]
    fn wait(&self, py: Python<'_>, timeout_seconds: Option<f64>) -> PyResult<bool> {
        let (running, limit) = (self.here()?, timeout_seconds.map(seconds).transpose()?);
        let began = Instant::now();
        loop {
            let left = limit.map_or(POLL, |limit| limit.saturating_sub(began.elapsed()).min(POLL));
            if py.detach(|| running.wait(left)) {
                return Ok(true);
            }
            py.check_signals()?;
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(false);
            }
        }
    }
}
