//! `Batcher`: the scheduler behind callers on Python's threads and event loops.
//!
//! Invariants, those about absences first:
//! - No thread is made here. One thread of Python's asks [`Batcher::next`] for batches, calls their
//!   executors and hands the results back, so that tracebacks, debuggers and the interpreter's exit see
//!   nothing unusual.
//! - Nobody waits with the GIL held, and no lock is held while Python code runs.
//! - The answers of a batch are delivered in one hold of the GIL: what happens between the end of a batch
//!   and the emptying of the outbox runs no Python code. Threads are woken once the GIL is free.
//!
//! Code map:
//! - `entrance`: into the queue, or what backpressure says; `executor`: who shares a batch, what results are
//! - `item`: an item and who waits for it: `slot` (a thread), `event_loop` (asyncio), `map`, or a future
//! - `flush`: what a flush waits for; `terms`: isolation, admission, priorities, breaker

mod entrance;
mod event_loop;
mod executor;
mod flush;
mod item;
mod map;
mod slot;
mod terms;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, ThreadId};
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyList;
use trustformers_batching::batcher::Job;
use trustformers_batching::{BatchError, Failure, InstanceId, ModelError, Priority};

use self::entrance::{Backpressure, Entrance, Place, Refusal, configuration};
pub(crate) use self::event_loop::LoopPort;
pub(crate) use self::event_loop::settle;
pub(crate) use self::executor::answers;
use self::executor::{Executor, Executors, failure, name, raised};
use self::flush::Epochs;
pub(crate) use self::item::Answer;
use self::item::{Caller, Item};
use self::map::{Collected, Progress};
use self::slot::Slot;
use self::terms::Terms;
use crate::error;
use crate::interrupt::{POLL, seconds};

/// The one instance: the thread that runs executors.
const INSTANCE: InstanceId = InstanceId(0);

/// A batch that runs.
struct Running {
    job: Job<Item>,
    /// For each input whether its caller still wanted it when the batch started.
    wanted: Vec<bool>,
    started: Instant,
}

/// Whom to wake once the GIL is free.
enum Sleeper {
    Thread(Arc<Slot>),
    Map(Arc<Collected>),
}

impl Sleeper {
    fn wake(&self) {
        match self {
            Sleeper::Thread(slot) => slot.wake(),
            Sleeper::Map(results) => results.wake(),
        }
    }
}

/// What runs in batches what many callers bring one by one.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Batcher {
    entrance: Entrance,
    backpressure: Backpressure,
    executors: Executors,
    epochs: Epochs,
    /// Starts the thread that runs executors, when the first item comes.
    start: Py<PyAny>,
    started: AtomicBool,
    thread: Mutex<Option<Py<PyAny>>>,
    /// That thread, once it asked for a batch: it must not wait for itself.
    worker: OnceLock<ThreadId>,
    running: Mutex<Option<Running>>,
    sleepers: Mutex<Vec<Sleeper>>,
    /// Items that ran at once because the queue was full.
    alone: AtomicU64,
}

/// An item that is on its way, for who may want it back.
#[pyclass(frozen, module = "trustformers_serve._core")]
pub(crate) struct Pending {
    batcher: Py<Batcher>,
    /// Weak, because a flush waits until the item is gone.
    item: Weak<Item>,
}

#[pymethods]
impl Pending {
    /// Takes the item back: it does not run if it has not begun to, and leaves its place in the queue.
    fn cancel(&self) {
        if let Some(item) = self.item.upgrade() {
            self.batcher.get().entrance.cancel(&item);
        }
    }
}

#[pymethods]
impl Batcher {
    #[new]
    #[pyo3(signature = (max_batch, max_wait_seconds, backpressure, max_queue, start, terms=None))]
    fn new(
        max_batch: u32,
        max_wait_seconds: f64,
        backpressure: &str,
        max_queue: u32,
        start: Py<PyAny>,
        terms: Option<Terms>,
    ) -> PyResult<Self> {
        let backpressure = Backpressure::named(backpressure)?;
        let mut config = configuration(max_batch, seconds(max_wait_seconds)?, max_queue);
        if let Some(terms) = terms {
            terms.apply(&mut config, backpressure)?;
        }
        Ok(Self {
            entrance: Entrance::new(config),
            backpressure,
            executors: Executors::default(),
            epochs: Epochs::default(),
            start,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
            worker: OnceLock::new(),
            running: Mutex::new(None),
            sleepers: Mutex::new(Vec::new()),
            alone: AtomicU64::new(0),
        })
    }

    /// Runs `item` in a batch with others and returns its result, or raises what it failed with.
    fn run(this: &Bound<'_, Self>, item: Py<PyAny>, executor: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (py, batcher) = (this.py(), this.get());
        batcher.refuse_worker("run")?;
        let slot = Slot::claim();
        let item = batcher.item(item, executor, Caller::Thread(Arc::clone(&slot)))?;
        if !Self::bring(this, &item)? {
            return batcher.run_alone(py, &item.value, &item.executor);
        }
        let answer = slot.wait(py).inspect_err(|_| batcher.entrance.cancel(&item))?;
        answer.map_or_else(|| Err(error::closed("the batcher was closed")), |answer| answer.into_result(py))
    }

    /// Runs `item` for a `concurrent.futures.Future`; returns once it has its place in the queue. `None`:
    /// the queue is full, and it is to be run alone.
    fn submit(
        this: &Bound<'_, Self>,
        item: Py<PyAny>,
        executor: &Bound<'_, PyAny>,
        future: Py<PyAny>,
    ) -> PyResult<Option<Pending>> {
        let batcher = this.get();
        let item = batcher.item(item, executor, Caller::Future(future))?;
        let entered = match batcher.backpressure {
            Backpressure::Block => Self::bring_waiting(this, &item).map(|()| true),
            _ => Self::bring(this, &item),
        };
        Ok(entered?.then(|| Pending { batcher: this.clone().unbind(), item: Arc::downgrade(&item) }))
    }

    /// Runs `item` for a future of the event loop that `port` leads to. `None`: the queue is full, and it
    /// is to be run alone.
    #[pyo3(signature = (item, executor, future, port, priority=None))]
    fn send(
        this: &Bound<'_, Self>,
        item: Py<PyAny>,
        executor: &Bound<'_, PyAny>,
        future: Py<PyAny>,
        port: Py<LoopPort>,
        priority: Option<&str>,
    ) -> PyResult<Option<Pending>> {
        let batcher = this.get();
        batcher.refuse_worker("arun")?;
        let priority = priority.map_or(Ok(Priority::Normal), terms::priority)?;
        let executor = batcher.executors.of(executor)?;
        let caller = Caller::Loop { port, future };
        let item = Item::new(item, executor, caller, priority, batcher.epochs.current());
        let entered = Self::bring(this, &item)?;
        Ok(entered.then(|| Pending { batcher: this.clone().unbind(), item: Arc::downgrade(&item) }))
    }

    /// Runs `item` in a batch of its own on the calling thread.
    fn alone(&self, py: Python<'_>, item: Py<PyAny>, executor: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let executor = self.executors.of(executor)?;
        self.run_alone(py, &item, &executor)
    }

    /// The results of all `items`, in order. Each waits for a place in the queue, whatever the
    /// backpressure; after a failure no more are brought, and the first is raised, unless exceptions are
    /// wanted among the results. `progress` is called with the number done, at most ten times a second.
    fn map<'py>(
        this: &Bound<'py, Self>,
        items: &Bound<'py, PyAny>,
        executor: &Bound<'py, PyAny>,
        return_exceptions: bool,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (py, batcher) = (this.py(), this.get());
        batcher.refuse_worker("map")?;
        let executor = batcher.executors.of(executor)?;
        let results = Arc::new(Collected::new());
        let mut progress = Progress::new(progress);
        let mut fed = 0;
        for item in items.try_iter()? {
            if results.has_failed() && !return_exceptions {
                break;
            }
            let caller = Caller::Map { results: Arc::clone(&results), index: fed };
            let (item, epoch) = (item?.unbind(), batcher.epochs.current());
            let item = Item::new(item, Arc::clone(&executor), caller, Priority::Normal, epoch);
            Self::bring_waiting(this, &item)?;
            fed += 1;
            py.check_signals()?;
            progress.at(results.done())?;
        }
        results.wait(py, fed, &mut progress)?;
        results.take_list(py, return_exceptions)
    }

    /// Lets what waits run now, and returns when all that was here has been answered.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.refuse_worker("flush")?;
        let done = self.epochs.turn();
        self.entrance.flushes.fetch_add(1, Ordering::AcqRel);
        self.entrance.batcher.flush();
        let waited = loop {
            if py.detach(|| done.wait(POLL)) {
                break Ok(());
            }
            if let Err(interrupted) = py.check_signals() {
                break Err(interrupted);
            }
        };
        self.entrance.flushes.fetch_sub(1, Ordering::AcqRel);
        waited
    }

    /// Items, batches, median and 99th percentile of seconds from call to result, items dropped, and callers
    /// that wait for a place.
    fn metrics(&self) -> (u64, u64, f64, f64, u64, usize) {
        let stats = self.entrance.batcher.inspect(|scheduler, now| scheduler.stats(now));
        let alone = self.alone.load(Ordering::Relaxed);
        (
            stats.requests.completed + stats.requests.failed + alone,
            stats.batches.ended + alone,
            stats.latency_seconds.p50,
            stats.latency_seconds.p99,
            self.entrance.dropped.load(Ordering::Relaxed),
            self.entrance.waiting(),
        )
    }

    /// Takes nothing new. Who waits is still answered, and then the thread ends.
    fn close(&self) {
        self.entrance.close();
    }

    /// Takes nothing new, and answers everybody at once that nothing more will run.
    fn abort(&self, py: Python<'_>) {
        self.entrance.abort();
        self.deliver(py, None);
        let sleepers = std::mem::take(&mut *self.sleepers.lock());
        sleepers.iter().for_each(Sleeper::wake);
    }

    /// The thread that runs executors, if it was started.
    fn thread(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.thread.lock().as_ref().map(|thread| thread.clone_ref(py))
    }

    /// Waits for the next batch: its executor and a new list of its items; `None` once closed and empty.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(Py<PyAny>, Bound<'py, PyList>)>> {
        self.worker.get_or_init(|| thread::current().id());
        loop {
            let sleepers = std::mem::take(&mut *self.sleepers.lock());
            let job = py.detach(|| {
                sleepers.iter().for_each(Sleeper::wake);
                let job = self.entrance.batcher.next(INSTANCE);
                self.entrance.admit_waiting();
                job
            });
            drop(sleepers);
            let Some(job) = job else { return Ok(None) };
            let wanted: Vec<bool> = job.inputs.iter().map(|item| item.starts(py)).collect();
            let kept = job.inputs.iter().zip(&wanted).filter(|&(_, &wanted)| wanted);
            let items = PyList::new(py, kept.map(|(item, _)| &item.value).collect::<Vec<_>>())?;
            // A planned batch is not empty.
            let executor = job.inputs.first().map(|item| item.executor.callable.clone_ref(py));
            let left = items.is_empty();
            *self.running.lock() = Some(Running { job, wanted, started: Instant::now() });
            match executor {
                Some(executor) if !left => return Ok(Some((executor, items))),
                _ => self.finish(py, Ok(Vec::new())),
            }
        }
    }

    /// Ends the batch with what its executor returned.
    fn complete(&self, py: Python<'_>, results: &Bound<'_, PyAny>) {
        let Some((executor, count)) = self.running_executor(py) else { return };
        // The same results would come of running it again.
        let answers = answers(executor.bind(py), results, count).map_err(Blame::Results);
        self.finish(py, answers);
    }

    /// Ends the batch with what its executor raised.
    fn fail(&self, py: Python<'_>, error: Py<PyAny>) {
        let Some((executor, _)) = self.running_executor(py) else { return };
        let message = raised(executor.bind(py), error.bind(py));
        self.finish(py, Err(Blame::Raised(message, error)));
    }
}

/// What failed a batch, and the words for it.
enum Blame {
    /// An exception.
    Raised(String, Py<PyAny>),
    /// No list, or one of another length.
    Results(String),
}

impl Blame {
    fn error(&self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Blame::Raised(message, cause) => failure(py, message, Some(cause)),
            Blame::Results(message) => failure(py, message, None),
        }
    }
}

fn closed(py: Python<'_>) -> Py<PyAny> {
    error::closed("the batcher was closed before the item was done").into_value(py).into_any()
}

impl Batcher {
    fn item(&self, item: Py<PyAny>, executor: &Bound<'_, PyAny>, caller: Caller) -> PyResult<Arc<Item>> {
        let executor = self.executors.of(executor)?;
        Ok(Item::new(item, executor, caller, Priority::Normal, self.epochs.current()))
    }

    /// # Errors
    /// `ExecutorError` on the thread that runs executors: it would wait for itself.
    fn refuse_worker(&self, method: &str) -> PyResult<()> {
        match self.worker.get() {
            Some(&worker) if worker == thread::current().id() => Err(error::executor(format!(
                "`{method}` was called from inside an executor of the same batcher, where it would wait for itself"
            ))),
            _ => Ok(()),
        }
    }

    /// Starts the thread that runs executors, if nobody has.
    fn ensure_started(this: &Bound<'_, Self>) -> PyResult<()> {
        let batcher = this.get();
        if batcher.started.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        match batcher.start.call1(this.py(), (this,)) {
            Ok(thread) => *batcher.thread.lock() = Some(thread),
            Err(error) => {
                batcher.started.store(false, Ordering::Release);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Brings an item as the backpressure says; false where it is to be run alone.
    fn bring(this: &Bound<'_, Self>, item: &Arc<Item>) -> PyResult<bool> {
        let batcher = this.get();
        if !batcher.started.load(Ordering::Acquire) {
            Self::ensure_started(this)?;
        }
        let waits = batcher.backpressure == Backpressure::Block;
        match batcher.entrance.enter(item, waits, None) {
            Ok(_) => Ok(true),
            Err(Refusal::Closed) => Err(error::closed("the batcher is closed")),
            Err(Refusal::Rejected(rejection)) => Err(error::rejected(this.py(), &rejection)),
            Err(Refusal::Full) if batcher.backpressure == Backpressure::Passthrough => Ok(false),
            Err(Refusal::Full) => {
                batcher.entrance.dropped.fetch_add(1, Ordering::Relaxed);
                let limit =
                    batcher.entrance.batcher.inspect(|scheduler, _| scheduler.config().max_queue_size);
                Err(error::queue_full(format!("the queue is full: {limit} items are waiting")))
            }
        }
    }

    /// Brings an item, and returns when it has its place in the queue.
    fn bring_waiting(this: &Bound<'_, Self>, item: &Arc<Item>) -> PyResult<()> {
        let (py, batcher) = (this.py(), this.get());
        if !batcher.started.load(Ordering::Acquire) {
            Self::ensure_started(this)?;
        }
        // The executor's thread would wait for a batch that only it can run.
        let waits = batcher.refuse_worker("submit");
        let gate = waits.is_ok().then(Slot::claim);
        match batcher.entrance.enter(item, gate.is_some(), gate.as_ref()) {
            Ok(Place::Queued) => {
                gate.into_iter().for_each(Slot::release);
                Ok(())
            }
            Ok(Place::Waiting) => match gate {
                Some(gate) => gate.wait(py).map(drop).inspect_err(|_| batcher.entrance.cancel(item)),
                None => Ok(()),
            },
            Err(Refusal::Closed) => Err(error::closed("the batcher is closed")),
            Err(Refusal::Rejected(rejection)) => Err(error::rejected(py, &rejection)),
            Err(Refusal::Full) => waits,
        }
    }

    fn run_alone(&self, py: Python<'_>, item: &Py<PyAny>, executor: &Executor) -> PyResult<Py<PyAny>> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        let callable = executor.callable.bind(py);
        let blame = match callable.call1((PyList::new(py, [item])?,)) {
            Ok(results) => match answers(callable, &results, 1) {
                Ok(mut answers) => match answers.pop() {
                    Some(answer) => return answer.into_result(py),
                    None => Blame::Results(format!("{} returned nothing", name(callable))),
                },
                Err(message) => Blame::Results(message),
            },
            Err(error) => {
                let error = error.into_value(py).into_any();
                Blame::Raised(raised(callable, error.bind(py)), error)
            }
        };
        Answer::Error(blame.error(py)).into_result(py)
    }

    /// The executor of the batch that runs, and how many items it was given.
    fn running_executor(&self, py: Python<'_>) -> Option<(Py<PyAny>, usize)> {
        let running = self.running.lock();
        let running = running.as_ref()?;
        let executor = running.job.inputs.first()?.executor.callable.clone_ref(py);
        Some((executor, running.wanted.iter().filter(|&&wanted| wanted).count()))
    }

    /// Ends the batch that runs, and tells its callers; threads among them are woken by `next`.
    fn finish(&self, py: Python<'_>, answers: Result<Vec<Answer>, Blame>) {
        let Some(Running { job, wanted, started }) = self.running.lock().take() else { return };
        let busy = started.elapsed();
        let (results, blame) = match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                // Those who left get what nobody will look at, so that the others keep their places.
                let of = |wanted: bool| wanted.then(|| answers.next()).flatten();
                let unwanted = || Answer::Result(py.None());
                (Ok(wanted.into_iter().map(of).map(|of| Ok(of.unwrap_or_else(unwanted))).collect()), None)
            }
            Err(blame) => {
                let results = match &blame {
                    Blame::Raised(message, _) => Err(BatchError::Failed(ModelError(message.clone()))),
                    // Results of another number are those of no batch.
                    Blame::Results(_) => Ok(Vec::new()),
                };
                (results, Some(blame))
            }
        };
        self.entrance.batcher.complete(INSTANCE, job, results, busy, None);
        self.deliver(py, blame.as_ref());
    }

    /// Tells everybody in the outbox how their items ended.
    fn deliver(&self, py: Python<'_>, blame: Option<&Blame>) {
        let ended = std::mem::take(&mut *self.entrance.outbox.lock());
        let mut sleepers = Vec::with_capacity(ended.len());
        let mut ports = Vec::new();
        for (item, result) in ended {
            let answer = match result {
                Ok(answer) => answer,
                Err(Failure::Model(error)) => {
                    Answer::Error(blame.map_or_else(|| failure(py, &error.0, None), |blame| blame.error(py)))
                }
                Err(_) => Answer::Error(closed(py)),
            };
            sleepers.extend(self.answer(py, &item, answer, &mut ports));
        }
        self.sleepers.lock().append(&mut sleepers);
        for port in ports {
            LoopPort::call(port.bind(py));
        }
    }

    /// Tells one caller; returns who is to be woken for it, or adds the event loop that is to be called.
    fn answer(
        &self,
        py: Python<'_>,
        item: &Item,
        answer: Answer,
        ports: &mut Vec<Py<LoopPort>>,
    ) -> Option<Sleeper> {
        match &item.caller {
            Caller::Thread(slot) => {
                slot.put(answer);
                Some(Sleeper::Thread(Arc::clone(slot)))
            }
            Caller::Map { results, index } => {
                results.put(*index, answer).then(|| Sleeper::Map(Arc::clone(results)))
            }
            Caller::Future(future) => {
                // Fails where its holder cancelled or set it meanwhile: then nobody waits.
                drop(settle(future.bind(py), answer));
                None
            }
            Caller::Loop { port, future } => {
                if port.get().leave(future.clone_ref(py), answer) {
                    ports.push(port.clone_ref(py));
                }
                None
            }
        }
    }
}
