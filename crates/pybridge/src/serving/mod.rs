//! `HostedModel`: a Python function behind the server's routes.
//!
//! Invariants, those about absences first:
//! - No thread of the server waits for the GIL: a call waits in the queue as bytes, and becomes Python values
//!   on the thread that runs its function, in the same hold of the GIL.
//! - Nobody waits with the GIL held, and no lock is held while Python code runs, but for the writing of a
//!   piece, whose lock nobody else wants.
//! - Functions run on daemon threads of Python's, as executors do ([`crate::batcher`]).
//!
//! Code map:
//! - `worker`: a thread that takes calls; `crew`: how many do at once
//! - `landing`: calls of coroutine functions, on their way to an event loop
//! - `ending`: what Python returned or raised, as the queue is told it
//! - `decode`, `encode`: documents to Python values and back

mod crew;
mod decode;
mod encode;
mod ending;
mod landing;
mod worker;

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use trustformers_serve::hosted::{self, Calls, Host, Hosted, Interface};

use self::crew::Crew;
use self::landing::Landing;
pub(crate) use self::landing::{AsyncCall, Port};
pub(crate) use self::worker::Worker;

/// A Python function as a model that a server may have.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct HostedModel {
    model: Hosted,
}

impl HostedModel {
    pub(crate) fn model(&self) -> Hosted {
        self.model.clone()
    }
}

#[pymethods]
impl HostedModel {
    /// `inputs` and `output` are JSON schemas as texts. At most `most` calls run at once: on threads, which
    /// `start` starts each with a `Worker`, or `on_loop`: then `start` is given a `Port`, once.
    #[new]
    #[pyo3(signature = (name, version, inputs, output, streaming, reads_body, most, on_loop, start))]
    #[allow(clippy::too_many_arguments)] // one call, from Python, by name
    fn new(
        name: String,
        version: String,
        inputs: Vec<(String, String)>,
        output: &str,
        streaming: bool,
        reads_body: bool,
        most: u32,
        on_loop: bool,
        start: Py<PyAny>,
    ) -> PyResult<Self> {
        let schema =
            |text: &str| serde_json::from_str(text).map_err(|error| PyValueError::new_err(error.to_string()));
        let inputs = inputs.into_iter().map(|(name, text)| Ok((name, schema(&text)?)));
        let inputs = inputs.collect::<PyResult<_>>()?;
        let output = schema(output)?;
        let interface = Interface { format: "python", inputs, output, streaming, reads_body };
        let label: Arc<str> = name.as_str().into();
        let host = Arc::new(Function { interface, label, most: most.max(1), on_loop, start });
        Ok(Self { model: Hosted { name, version, host } })
    }
}

struct Function {
    interface: Interface,
    label: Arc<str>,
    most: u32,
    on_loop: bool,
    start: Py<PyAny>,
}

impl Host for Function {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn concurrency(&self) -> u32 {
        self.most
    }

    fn start(&self, calls: Arc<Calls>) -> Result<Box<dyn hosted::Crew>, String> {
        if self.on_loop {
            let landing = Landing::new(calls, Arc::clone(&self.label), self.most);
            let landing = landing.map_err(|error| error.to_string())?;
            let port = Port(Arc::clone(&landing));
            Python::attach(|py| self.start.call1(py, (port,)).map(drop))
                .map_err(|error| error.to_string())?;
            landing.take_calls().map_err(|error| error.to_string())?;
            return Ok(Box::new(landing::Handle(landing)));
        }
        let crew = Arc::new(Crew::new(Arc::clone(&calls), self.most));
        let started = Python::attach(|py| Worker::start_wanted(py, &calls, &crew, &self.label, &self.start));
        started.map_err(|error| error.to_string())?;
        Ok(Box::new(crew::Handle(crew)))
    }
}
