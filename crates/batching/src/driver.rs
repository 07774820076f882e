//! An instance's loop (plan, run, complete), and the timer that answers expired requests.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, yield_now};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::batcher::Batcher;
use crate::entry::InstanceId;

/// The model's own words about why it failed, on one input or on a whole batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(pub String);

/// Why a model has no result for any input of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It failed: run in halves, if asked to, the inputs that are not to blame get their results.
    #[error(transparent)]
    Failed(#[from] ModelError),
    /// It could not get the memory for the batch: run in halves, with smaller batches from now on.
    #[error(transparent)]
    OutOfMemory(ModelError),
}

/// What a model makes of a batch: one result an input, in order. `Err` fails the whole batch, an `Err`
/// inside fails its item alone.
pub type BatchResults<O> = Result<Vec<Result<O, ModelError>>, BatchError>;

/// Anything that turns a batch of inputs into as many outputs.
///
/// One instance is used by one thread only; it is made on that thread or sent to it.
pub trait Model: Send {
    /// What a request brings.
    type Input: Send + Sync + 'static;
    /// What its caller gets.
    type Output: Send + 'static;

    /// Runs a batch.
    fn run(&mut self, inputs: &[Arc<Self::Input>]) -> BatchResults<Self::Output>;

    /// Runs a batch of inputs that have lengths, each padded to `length`, which is not less than any.
    fn run_padded(&mut self, inputs: &[Arc<Self::Input>], length: u32) -> BatchResults<Self::Output> {
        let _ = length;
        self.run(inputs)
    }

    /// The most bytes that the last batch had allocated at once; `None` where nothing counts them.
    fn peak_bytes(&mut self) -> Option<u64> {
        None
    }
}

impl<M: Model + ?Sized> Model for Box<M> {
    type Input = M::Input;
    type Output = M::Output;

    fn run(&mut self, inputs: &[Arc<Self::Input>]) -> BatchResults<Self::Output> {
        (**self).run(inputs)
    }

    fn run_padded(&mut self, inputs: &[Arc<Self::Input>], length: u32) -> BatchResults<Self::Output> {
        (**self).run_padded(inputs, length)
    }

    fn peak_bytes(&mut self) -> Option<u64> {
        (**self).peak_bytes()
    }
}

/// The threads of one batcher: one an instance, and the timer.
///
/// Dropped without [`Instances::drain`], it aborts the batcher and leaves the threads to end by themselves.
pub struct Instances<I: Send + Sync + 'static, O: Send + 'static> {
    batcher: Arc<Batcher<I, O>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<I: Send + Sync + 'static, O: Send + 'static> Instances<I, O> {
    /// Starts one thread a model, named after `name`, and the timer.
    pub fn spawn<M>(name: &str, batcher: Arc<Batcher<I, O>>, models: Vec<M>) -> io::Result<Self>
    where
        M: Model<Input = I, Output = O> + 'static,
    {
        let instances = Self { batcher, threads: Mutex::new(Vec::new()) };
        for (index, model) in models.into_iter().enumerate() {
            let instance = InstanceId(u32::try_from(index).unwrap_or(u32::MAX));
            let batcher = Arc::clone(&instances.batcher);
            instances.start(format!("{name}:{index}"), move || run_instance(&batcher, instance, model))?;
        }
        let batcher = Arc::clone(&instances.batcher);
        instances.start(format!("{name}:timer"), move || while batcher.expire() {})?;
        Ok(instances)
    }

    fn start(&self, name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = Builder::new().name(name).spawn(body)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Closes the batcher, lets what is queued run, and waits for the threads to end.
    pub fn drain(&self) {
        self.batcher.close();
        // Held while joining, so that a second caller waits too.
        for thread in self.threads.lock().drain(..) {
            // A model's panic is caught in the loop, so a join can only fail if the loop itself is wrong.
            drop(thread.join());
        }
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Drop for Instances<I, O> {
    fn drop(&mut self) {
        self.batcher.abort();
    }
}

fn run_instance<M: Model>(batcher: &Batcher<M::Input, M::Output>, instance: InstanceId, mut model: M) {
    while let Some(job) = batcher.next(instance) {
        let started = Instant::now();
        let run = || match job.padded_len {
            0 => model.run(&job.inputs),
            length => model.run_padded(&job.inputs, length),
        };
        let results = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            Err(ModelError(format!("the model panicked: {}", panic_text(&*panic))).into())
        });
        let busy = started.elapsed();
        batcher.complete(instance, job, results, busy, model.peak_bytes());
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// How long a free instance looks out for work before it sleeps: waking an idle core took 50 µs where it
/// was measured, more than a small model runs, and callers who wait for an answer soon send the next.
const LOOKOUT: Duration = Duration::from_micros(100);

/// Waits until `called`, or for a short while; leaves the core to whoever else wants it.
pub(crate) fn look_out(called: impl Fn() -> bool) {
    let since = Instant::now();
    while !called() && since.elapsed() < LOOKOUT {
        yield_now();
    }
}
