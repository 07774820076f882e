//! The scheduler and a model inside a Rust program, without HTTP.
//!
//! ```no_run
//! use std::time::Instant;
//! use trustformers_serve::{BatchingConfig, DynamicBatchingService, Priority, Request, RequestId, RequestInput};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let service = DynamicBatchingService::new(BatchingConfig { max_batch_size: 32, ..Default::default() });
//! service.start().await?;
//! let request = Request {
//!     id: RequestId::new(),
//!     input: RequestInput::Text { text: "Hello, world!".to_owned(), max_length: Some(100) },
//!     priority: Priority::Normal,
//!     submitted_at: Instant::now(),
//!     deadline: None,
//!     metadata: Default::default(),
//! };
//! let response = service.submit_request(request).await?;
//! println!("{} numbers", response.output[0].elements());
//! # Ok(())
//! # }
//! ```

mod config;
mod request;
mod stats;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trustformers_batching::batcher::BatchRecord;
use trustformers_batching::replay::Event;
use trustformers_batching::{
    Batcher, ClientId, Failure, InstanceId, Instances, ModelError, MonotonicClock, Observer, Rejection,
    Scheduler, Submission, Ticket, Time,
};

pub use self::config::{Backpressure, BatchingConfig, BatchingMode, DynamicBatchConfig};
pub use self::request::{Request, RequestId, RequestInput, Response};
pub use self::stats::{MetricsSummary, ServiceStats};
use crate::backend::encoder::{self, EncoderOptions};
use crate::backend::{DynModel, Input, Loaded, Output, Signature};
use crate::config::{Settings, cache_folders};
use crate::registry::{Size, shape_key};
use crate::torch::device::{self, Requested};

/// Why a request has no response, or the service did not start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServiceError {
    /// `start` has not ended yet, or `stop` was called.
    #[error("the service is not running")]
    NotRunning,
    /// `start` was called before.
    #[error("the service was started before")]
    AlreadyStarted,
    /// The model cannot be loaded, or not with this configuration.
    #[error("the model cannot be loaded: {0}")]
    Load(String),
    /// The request does not fit the model.
    #[error("the request does not fit the model: {0}")]
    Input(String),
    /// The request was not admitted.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The request was admitted and failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Batches the requests of a program for one model.
pub struct DynamicBatchingService {
    config: BatchingConfig,
    state: Mutex<State>,
}

enum State {
    /// With a model, or with none for the built-in encoder.
    New(Option<Loaded>),
    Starting,
    Running(Arc<Running>),
    Stopped,
}

struct Running {
    signature: Signature,
    batcher: Arc<Batcher<Input, Output>>,
    instances: Instances<Input, Output>,
    /// Told of each batch that leaves the queue.
    space: Arc<Notify>,
    backpressure: Backpressure,
    /// The instance that [`Backpressure::Passthrough`] runs on.
    spare: Option<Mutex<DynModel>>,
}

impl DynamicBatchingService {
    /// A service of the built-in encoder, MiniLM, whose files `python -m trustformers_serve.builtin` makes.
    pub fn new(config: BatchingConfig) -> Self {
        Self { config, state: Mutex::new(State::New(None)) }
    }

    /// A service of another model, as the loaders of [`crate::backend`] return it, or made by hand of
    /// anything that implements [`trustformers_batching::Model`].
    pub fn with_model(config: BatchingConfig, model: Loaded) -> Self {
        Self { config, state: Mutex::new(State::New(Some(model))) }
    }

    /// Loads the model, if it is the built-in one, and starts its instances.
    ///
    /// # Errors
    /// When it was started before, or the model cannot be loaded.
    pub async fn start(&self) -> Result<(), ServiceError> {
        let model = {
            let mut state = self.state.lock();
            match std::mem::replace(&mut *state, State::Starting) {
                State::New(model) => model,
                before => {
                    *state = before;
                    return Err(ServiceError::AlreadyStarted);
                }
            }
        };
        let config = self.config.clone();
        let started = tokio::task::spawn_blocking(move || {
            let model = match model {
                Some(model) => model,
                None => builtin_encoder(&config).map_err(ServiceError::Load)?,
            };
            Running::start(&config, model)
        });
        let started = started.await.unwrap_or_else(|error| Err(ServiceError::Load(error.to_string())));
        let mut state = self.state.lock();
        match started {
            Ok(running) => {
                *state = State::Running(Arc::new(running));
                Ok(())
            }
            Err(error) => {
                *state = State::Stopped;
                Err(error)
            }
        }
    }

    /// Runs a request in a batch with others. Dropped before it is done, the request never runs if it
    /// still waits.
    ///
    /// # Errors
    /// When the service does not run, or the request does not fit, is refused, expires or fails.
    pub async fn submit_request(&self, request: Request) -> Result<Response, ServiceError> {
        let running = self.running()?;
        let Request { id, input, priority, submitted_at, deadline, metadata } = request;
        let input = Arc::new(running.read(input)?);
        let output = running.run(&input, priority, deadline).await?;
        Ok(Response { id, output, latency: submitted_at.elapsed(), metadata })
    }

    /// What the service did since it was started; zeros while it does not run.
    pub async fn get_stats(&self) -> ServiceStats {
        match self.running() {
            Ok(running) => running.batcher.inspect(ServiceStats::of),
            Err(_) => ServiceStats::of(&Scheduler::new(self.config.scheduler(1)), Time::ZERO),
        }
    }

    /// Takes no more requests, lets what waits run, and ends the threads.
    pub async fn stop(&self) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Stopped);
        if let State::Running(running) = before {
            // Fails only if draining panicked, which leaves nothing more to do.
            drop(tokio::task::spawn_blocking(move || running.instances.drain()).await);
        }
    }

    fn running(&self) -> Result<Arc<Running>, ServiceError> {
        match &*self.state.lock() {
            State::Running(running) => Ok(Arc::clone(running)),
            _ => Err(ServiceError::NotRunning),
        }
    }
}

impl Running {
    fn start(config: &BatchingConfig, model: Loaded) -> Result<Self, ServiceError> {
        let Loaded { signature, instances: mut models } = model;
        let mut spare = None;
        if config.backpressure == Backpressure::Passthrough {
            if models.len() < 2 {
                let error = "backpressure `Passthrough` needs a second instance";
                return Err(ServiceError::Load(error.to_owned()));
            }
            spare = models.pop().map(Mutex::new);
        }
        let space = Arc::new(Notify::new());
        let batcher = Arc::new(Batcher::new(
            config.scheduler(models.len()),
            None,
            Arc::new(MonotonicClock::default()),
            Arc::new(Space(Arc::clone(&space))),
            false,
        ));
        let instances = Instances::spawn("service", Arc::clone(&batcher), models)
            .map_err(|error| ServiceError::Load(error.to_string()))?;
        Ok(Self { signature, batcher, instances, space, backpressure: config.backpressure, spare })
    }

    fn read(&self, input: RequestInput) -> Result<Input, ServiceError> {
        let wrong = |error: String| ServiceError::Input(error);
        match (&self.signature, input) {
            (Signature::Text { tokenizer, .. }, RequestInput::Text { text, max_length }) => {
                let ids = match max_length {
                    Some(most) => tokenizer.encode_at_most(&text, most),
                    None => tokenizer.encode(&text),
                };
                ids.map(Input::Tokens).map_err(|error| wrong(error.to_string()))
            }
            (Signature::Text { tokenizer, .. }, RequestInput::Tokens(ids)) => {
                tokenizer.check_ids(&ids).map_err(|error| wrong(error.to_string()))?;
                Ok(Input::Tokens(ids))
            }
            (Signature::Tensors { inputs, .. }, RequestInput::Tensors(tensors)) => {
                if tensors.len() != inputs.len() {
                    return Err(wrong(format!("it has {} tensors of {}", tensors.len(), inputs.len())));
                }
                for (spec, tensor) in inputs.iter().zip(&tensors) {
                    spec.check(tensor).map_err(wrong)?;
                }
                Ok(Input::Tensors(tensors))
            }
            (Signature::Text { .. }, _) => Err(wrong("this model reads text".to_owned())),
            (Signature::Tensors { .. }, _) => Err(wrong("this model reads tensors".to_owned())),
        }
    }

    async fn run(
        &self,
        input: &Arc<Input>,
        priority: trustformers_batching::Priority,
        deadline: Option<Instant>,
    ) -> Result<Output, ServiceError> {
        let lengths = self.signature.lengths();
        let Size { cost, seq_len } = Size::of(input, lengths);
        loop {
            let mut space = std::pin::pin!(self.space.notified());
            // Before submitting, so that a place that is freed meanwhile is not missed.
            space.as_mut().enable();
            let (sender, answer) = oneshot::channel();
            let submission = Submission {
                input: Arc::clone(input),
                client: ClientId::default(),
                cost,
                seq_len,
                bytes: 0,
                shape: shape_key(input, lengths),
                priority,
                timeout: deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
                // Fails where the caller has left.
                reply: Box::new(move |result| drop(sender.send(result))),
            };
            let refused = match self.batcher.submit([submission]).pop() {
                Some(Ok(ticket)) => {
                    let mut left = CancelOnDrop { running: self, ticket: Some(ticket) };
                    let result = answer.await;
                    left.ticket = None;
                    return Ok(result.unwrap_or(Err(Failure::ClosedRunning))?);
                }
                Some(Err(rejection)) => rejection,
                None => return Err(ServiceError::NotRunning),
            };
            let full = matches!(
                refused,
                Rejection::QueueFull { .. }
                    | Rejection::QueueCostFull { .. }
                    | Rejection::QueueBytesFull { .. }
                    | Rejection::Overloaded { .. }
            );
            match (self.backpressure, &self.spare) {
                (Backpressure::Block, _) if full => wait(space, deadline).await?,
                (Backpressure::Passthrough, Some(model)) if full => {
                    let inputs = [Arc::clone(input)];
                    let results = tokio::task::block_in_place(|| model.lock().run(&inputs));
                    let results = results.map_err(|error| ModelError(error.to_string()));
                    let result = results.and_then(|mut results| {
                        results
                            .pop()
                            .unwrap_or_else(|| Err(ModelError("the model returned nothing".to_owned())))
                    });
                    return Ok(result.map_err(Failure::Model)?);
                }
                _ => return Err(refused.into()),
            }
        }
    }
}

/// Waits for a place in the queue.
async fn wait(space: impl Future<Output = ()>, deadline: Option<Instant>) -> Result<(), ServiceError> {
    match deadline {
        None => space.await,
        Some(at) => tokio::time::timeout_at(at.into(), space)
            .await
            .map_err(|_| ServiceError::Rejected(Rejection::DeadlinePassed))?,
    }
    Ok(())
}

/// MiniLM from where the built-in models are.
fn builtin_encoder(config: &BatchingConfig) -> Result<Loaded, String> {
    let settings = Settings::load(None, cache_folders(), &[]).map_err(|error| error.to_string())?;
    let path = settings.builtin_models.join("minilm");
    if !path.exists() {
        let path = path.display();
        return Err(format!(
            "{path} is not there: `python -m trustformers_serve.builtin` makes the built-in models"
        ));
    }
    let instances = config.instances.max(1);
    let options = EncoderOptions {
        path,
        device: device::select(Requested::Auto).map_err(|error| error.to_string())?,
        instances,
        threads: (settings.device.threads / instances).max(1),
        warmup: 1,
        warmup_batch_size: config.max_batch_size,
        max_length: None,
        truncation: true,
    };
    encoder::load(&options).map_err(|error| error.to_string())
}

struct CancelOnDrop<'a> {
    running: &'a Running,
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.running.batcher.cancel(ticket);
        }
    }
}

/// Tells those who wait for a place that there may be one.
struct Space(Arc<Notify>);

impl Observer for Space {
    fn batch_started(&self, _instance: InstanceId) {
        self.0.notify_waiters();
    }

    fn batch_ended(&self, _record: &BatchRecord<'_>) {
        self.0.notify_waiters();
    }

    fn event(&self, _event: Event) {}
}
