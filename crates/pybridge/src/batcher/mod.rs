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
//! - `entrance`: into the queue, or what backpressure says; `ending`: out of a batch, and back to who waits
//! - `executor`: who shares a batch, what results are
//! - `item`: an item and who waits for it: `slot` (a thread), `event_loop` (asyncio), `map`, or a future
//! - `circle`: executors that would wait for themselves
//! - `flush`: what a flush waits for; `terms`: isolation, admission, priorities, breaker

mod circle;
mod ending;
mod entrance;
mod event_loop;
mod executor;
mod flush;
mod item;
mod map;
mod slot;
mod terms;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyList;
use trustformers_batching::batcher::Job;
use trustformers_batching::stats::Histogram;
use trustformers_batching::{InstanceId, Priority};

use self::circle::{Circle, Waiting};
use self::ending::{Blame, Sleeper};
use self::entrance::{Backpressure, Entrance, Place, Refusal, configuration};
pub(crate) use self::event_loop::{LoopPort, settle};
pub(crate) use self::executor::answers;
use self::executor::{Executor, Executors, name, raised};
use self::flush::Epochs;
pub(crate) use self::item::Answer;
use self::item::{Caller, Item};
use self::map::{Collected, Progress};
use self::slot::Slot;
pub(crate) use self::slot::set_main_thread;
use self::terms::Terms;
use crate::error;
use crate::interrupt::{POLL, seconds};

/// The one instance: the thread that runs executors.
const INSTANCE: InstanceId = InstanceId(0);

/// Latencies are told apart up to so many bits of nanoseconds: three days.
const LATENCY_BITS: u32 = 48;

/// A batch that runs.
struct Running {
    job: Job<Item>,
    /// For each input whether its caller still wanted it when the batch started.
    wanted: Vec<bool>,
    started: Instant,
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
    /// Where that thread must not wait for itself.
    place: Arc<circle::Place>,
    running: Mutex<Option<Running>>,
    /// A batch that was taken where the last one ended, by whom it is not for.
    left: Mutex<Option<Job<Item>>>,
    /// The executor of the last batch.
    last: AtomicU64,
    sleepers: Mutex<Vec<Sleeper>>,
    /// Nanoseconds from call to result.
    latencies: Mutex<Histogram>,
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
            place: Arc::default(),
            running: Mutex::new(None),
            left: Mutex::new(None),
            last: AtomicU64::new(u64::MAX),
            sleepers: Mutex::new(Vec::new()),
            latencies: Mutex::new(Histogram::new(LATENCY_BITS)),
            alone: AtomicU64::new(0),
        })
    }

    /// Runs `item` in a batch with others and returns its result, or raises what it failed with.
    fn run(this: &Bound<'_, Self>, item: Py<PyAny>, executor: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (py, batcher) = (this.py(), this.get());
        let waiting = batcher.wait("run")?;
        Self::ensure_started(this)?;
        let slot = Slot::claim();
        let item = batcher.item(item, executor, Caller::Thread(Arc::clone(&slot)))?;
        if !Self::bring(py, batcher, &item)? {
            let (value, executor) = (item.value.clone_ref(py), Arc::clone(&item.executor));
            // No flush waits for what runs alone, and its thread for nobody.
            drop((item, waiting));
            return batcher.run_alone(py, &value, &executor);
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
        let (py, batcher) = (this.py(), this.get());
        Self::ensure_started(this)?;
        let item = batcher.item(item, executor, Caller::Future(future))?;
        let entered = match batcher.backpressure {
            Backpressure::Block => Self::bring_waiting(py, batcher, &item).map(|()| true),
            _ => Self::bring(py, batcher, &item),
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
        drop(batcher.wait("arun")?);
        Self::ensure_started(this)?;
        let priority = priority.map_or(Ok(Priority::Normal), terms::priority)?;
        let executor = batcher.executors.of(executor)?;
        let caller = Caller::Loop { port, future };
        let item = Item::new(item, executor, caller, priority, batcher.epochs.current());
        let entered = Self::bring(this.py(), batcher, &item)?;
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
        let _waiting = batcher.wait("map")?;
        Self::ensure_started(this)?;
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
            Self::bring_waiting(py, batcher, &item)?;
            fed += 1;
            py.check_signals()?;
            progress.at(results.done())?;
        }
        results.wait(py, fed, &mut progress)?;
        results.take_list(py, return_exceptions)
    }

    /// Lets what waits run now, and returns when all that was here has been answered.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let _waiting = self.wait("flush")?;
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
        let (p50, p99) = {
            let latencies = self.latencies.lock();
            (latencies.quantile(0.5) * 1e-9, latencies.quantile(0.99) * 1e-9)
        };
        (
            stats.requests.completed + stats.requests.failed + alone,
            stats.batches.ended + alone,
            p50,
            p99,
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
        self.deliver(py, None, None);
        let sleepers = std::mem::take(&mut *self.sleepers.lock());
        sleepers.iter().for_each(Sleeper::wake);
    }

    /// The thread that runs executors, if it was started.
    fn thread(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.thread.lock().as_ref().map(|thread| thread.clone_ref(py))
    }

    /// Waits for the next batch: its executor and a new list of its items; `None` once closed and empty.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(Py<PyAny>, Bound<'py, PyList>)>> {
        self.place.work();
        loop {
            let sleepers = std::mem::take(&mut *self.sleepers.lock());
            let left = self.left.lock().take();
            let job = py.detach(|| {
                sleepers.iter().for_each(Sleeper::wake);
                let job = left.or_else(|| self.entrance.batcher.next(INSTANCE));
                self.entrance.admit_waiting();
                job
            });
            drop(sleepers);
            let Some(job) = job else { return Ok(None) };
            // A planned batch is not empty.
            let executor = job.inputs.first().map(|item| item.executor.callable.clone_ref(py));
            if let (Some(executor), Some(items)) = (executor, self.begin(py, job)?) {
                return Ok(Some((executor, items)));
            }
        }
    }

    /// The items of the next batch, if it can start at once and is of the same executor as the last. For who
    /// ran that elsewhere than on the thread, which waits meanwhile: `next` has what is not taken here.
    fn try_next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        loop {
            let Some(job) = self.entrance.batcher.try_next(INSTANCE) else { return Ok(None) };
            self.entrance.admit_waiting();
            let executor = job.inputs.first().map(|item| item.executor.number);
            if executor != Some(self.last.load(Ordering::Relaxed)) {
                *self.left.lock() = Some(job);
                return Ok(None);
            }
            if let Some(items) = self.begin(py, job)? {
                return Ok(Some(items));
            }
        }
    }

    /// Ends the batch with what its executor returned. `here` is where answers for the running event loop
    /// land, which are handed on at once.
    #[pyo3(signature = (results, here=None))]
    fn complete(&self, py: Python<'_>, results: &Bound<'_, PyAny>, here: Option<&Bound<'_, LoopPort>>) {
        let Some((executor, count)) = self.running_executor(py) else { return };
        // The same results would come of running it again.
        let answers = answers(executor.bind(py), results, count).map_err(Blame::Results);
        self.finish(py, answers, here);
    }

    /// Ends the batch with what its executor raised.
    fn fail(&self, py: Python<'_>, error: Py<PyAny>) {
        let Some((executor, _)) = self.running_executor(py) else { return };
        let message = raised(executor.bind(py), error.bind(py));
        self.finish(py, Err(Blame::Raised(message, error)), None);
    }
}

impl Batcher {
    fn item(&self, item: Py<PyAny>, executor: &Bound<'_, PyAny>, caller: Caller) -> PyResult<Arc<Item>> {
        let executor = self.executors.of(executor)?;
        Ok(Item::new(item, executor, caller, Priority::Normal, self.epochs.current()))
    }

    /// Notes that the calling thread waits for this batcher, until what is returned is dropped.
    ///
    /// # Errors
    /// `ExecutorError` inside an executor that this batcher runs or waits for: it would wait for itself.
    fn wait(&self, method: &str) -> PyResult<Waiting> {
        self.place.wait().map_err(|circle| {
            let executor = match circle {
                Circle::Own => "of the same batcher",
                Circle::Others => "that this batcher waits for",
            };
            error::executor(format!(
                "`{method}` was called from inside an executor {executor}, where it would wait for itself"
            ))
        })
    }

    /// Starts the thread that runs executors, if nobody has. Before an item is made: meanwhile other threads
    /// run, of which one may wait for all items that there are.
    fn ensure_started(this: &Bound<'_, Self>) -> PyResult<()> {
        let batcher = this.get();
        if batcher.started.load(Ordering::Acquire) || batcher.started.swap(true, Ordering::AcqRel) {
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
    fn bring(py: Python<'_>, batcher: &Self, item: &Arc<Item>) -> PyResult<bool> {
        let waits = batcher.backpressure == Backpressure::Block;
        match batcher.entrance.enter(item, waits, None) {
            Ok(_) => Ok(true),
            Err(Refusal::Closed) => Err(error::closed("the batcher is closed")),
            Err(Refusal::Rejected(rejection)) => Err(error::rejected(py, &rejection)),
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
    fn bring_waiting(py: Python<'_>, batcher: &Self, item: &Arc<Item>) -> PyResult<()> {
        // The executor's thread would wait for a batch that only it can run.
        let waits = batcher.wait("submit");
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
            Err(Refusal::Full) => waits.map(drop),
        }
    }

    fn run_alone(&self, py: Python<'_>, item: &Py<PyAny>, executor: &Executor) -> PyResult<Py<PyAny>> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        let (callable, came) = (executor.callable.bind(py), Instant::now());
        let returned = callable.call1((PyList::new(py, [item])?,));
        self.took(std::iter::once(came));
        let blame = match returned {
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

    /// Begins a batch: a new list of its items. `None` where nobody wants it any more.
    fn begin<'py>(&self, py: Python<'py>, job: Job<Item>) -> PyResult<Option<Bound<'py, PyList>>> {
        let wanted: Vec<bool> = job.inputs.iter().map(|item| item.starts(py)).collect();
        let kept = job.inputs.iter().zip(&wanted).filter(|&(_, &wanted)| wanted);
        let items = PyList::new(py, kept.map(|(item, _)| &item.value).collect::<Vec<_>>())?;
        let executor = job.inputs.first().map_or(u64::MAX, |item| item.executor.number);
        self.last.store(executor, Ordering::Relaxed);
        *self.running.lock() = Some(Running { job, wanted, started: Instant::now() });
        if items.is_empty() {
            self.finish(py, Ok(Vec::new()), None);
            return Ok(None);
        }
        Ok(Some(items))
    }

    /// The executor of the batch that runs, and how many items it was given.
    fn running_executor(&self, py: Python<'_>) -> Option<(Py<PyAny>, usize)> {
        let running = self.running.lock();
        let running = running.as_ref()?;
        let executor = running.job.inputs.first()?.executor.callable.clone_ref(py);
        Some((executor, running.wanted.iter().filter(|&&wanted| wanted).count()))
    }
}
