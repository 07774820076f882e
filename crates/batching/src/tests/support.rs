//! What the tests of the batcher share: a clock set by hand, an observer that remembers, models on a lead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::batcher::BatchRecord;
use crate::replay::Event;
use crate::time::{Clock, MonotonicClock, Time};
use crate::{
    BatchResults, Batcher, ClientId, Failure, InstanceId, Model, ModelError, Observer, Outcome, Priority,
    Reply, SchedulerConfig, ShapeKey, Submission,
};

/// How long a test waits for an event before it fails; reached only by a bug.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Waits until `holds`, which another thread brings about and no channel tells of.
pub(super) fn until(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "it never came to hold");
        std::thread::yield_now();
    }
}

pub(super) type Answer = Result<u64, Failure>;
pub(super) type Results = BatchResults<u64>;

pub(super) fn eager(max_batch_size: u32) -> SchedulerConfig {
    SchedulerConfig { max_batch_size, max_wait: HOUR, max_queue_size: 10_000, ..SchedulerConfig::default() }
}

#[derive(Default)]
pub(super) struct ManualClock(AtomicU64);

impl ManualClock {
    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// One ended batch: size, cost, waits, completed.
pub(super) type Ended = (usize, u64, Vec<Duration>, bool);

#[derive(Default)]
pub(super) struct Memory {
    pub(super) started: Mutex<Vec<InstanceId>>,
    pub(super) batches: Mutex<Vec<Ended>>,
    pub(super) events: Mutex<Vec<Event>>,
}

impl Observer for Memory {
    fn batch_started(&self, instance: InstanceId) {
        self.started.lock().unwrap().push(instance);
    }

    fn batch_ended(&self, record: &BatchRecord<'_>) {
        let ended = (record.size, record.cost, record.waits.to_vec(), record.outcome == Outcome::Completed);
        self.batches.lock().unwrap().push(ended);
    }

    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

/// A batcher on the machine's clock.
pub(super) fn batcher(config: SchedulerConfig, instances: u32) -> (Arc<Batcher<u64, u64>>, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let clock = Arc::new(MonotonicClock::default());
    (
        Arc::new(Batcher::new(
            SchedulerConfig { instances, ..config },
            None,
            clock,
            Arc::clone(&memory) as _,
            true,
        )),
        memory,
    )
}

/// A request for `input` that is answered with `reply`.
pub(super) fn request(input: u64, reply: Reply<u64>) -> Submission<u64, u64> {
    Submission {
        input: Arc::new(input),
        client: ClientId(0),
        cost: 1,
        seq_len: 0,
        bytes: 0,
        shape: ShapeKey(0),
        priority: Priority::Normal,
        timeout: None,
        reply,
    }
}

/// Where answers arrive, each with its request's input.
pub(super) struct Inbox {
    sender: Sender<(u64, Answer)>,
    receiver: Receiver<(u64, Answer)>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }

    pub(super) fn request(&self, input: u64) -> Submission<u64, u64> {
        let sender = self.sender.clone();
        request(input, Box::new(move |answer| sender.send((input, answer)).unwrap()))
    }

    pub(super) fn requests(&self, inputs: impl IntoIterator<Item = u64>) -> Vec<Submission<u64, u64>> {
        inputs.into_iter().map(|input| self.request(input)).collect()
    }

    /// The next answer.
    pub(super) fn next(&self) -> (u64, Answer) {
        self.receiver.recv_timeout(PATIENCE).expect("no answer came")
    }

    /// The next `count` answers, by input.
    pub(super) fn take(&self, count: usize) -> Vec<(u64, Answer)> {
        let mut answers: Vec<_> = (0..count).map(|_| self.next()).collect();
        answers.sort_by_key(|&(input, _)| input);
        answers
    }

    /// Every answer that is to come; the requests must have ended.
    pub(super) fn rest(self) -> Vec<(u64, Answer)> {
        drop(self.sender);
        std::iter::from_fn(|| match self.receiver.recv_timeout(PATIENCE) {
            Ok(answer) => Some(answer),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("a reply is still held"),
        })
        .collect()
    }
}

/// A model on a lead: it says what it was given, and returns when and what the test says.
pub(super) struct Led {
    given: Sender<Vec<u64>>,
    orders: Receiver<Results>,
}

/// The other end of [`Led`].
pub(super) struct Lead {
    given: Receiver<Vec<u64>>,
    orders: Sender<Results>,
}

pub(super) fn led() -> (Led, Lead) {
    let (given, was_given) = channel();
    let (order, orders) = channel();
    (Led { given, orders }, Lead { given: was_given, orders: order })
}

impl Lead {
    /// Waits until the model has a batch.
    pub(super) fn given(&self) -> Vec<u64> {
        self.given.recv_timeout(PATIENCE).expect("no batch came")
    }

    /// Lets the model return.
    pub(super) fn finish(&self, results: Results) {
        self.orders.send(results).unwrap();
    }

    /// The batches given and not yet looked at; the instance must have ended.
    pub(super) fn rest(self) -> Vec<Vec<u64>> {
        drop(self.orders);
        self.given.iter().collect()
    }
}

impl Model for Led {
    type Input = u64;
    type Output = u64;

    fn run(&mut self, inputs: &[Arc<u64>]) -> Results {
        self.given.send(inputs.iter().map(|input| **input).collect()).unwrap();
        self.orders.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(ModelError("left alone".to_owned()).into()))
    }
}

/// A model that is a function.
pub(super) struct Plain<F>(pub(super) F);

impl<F: FnMut(&[u64]) -> Results + Send> Model for Plain<F> {
    type Input = u64;
    type Output = u64;

    fn run(&mut self, inputs: &[Arc<u64>]) -> Results {
        let inputs: Vec<_> = inputs.iter().map(|input| **input).collect();
        (self.0)(&inputs)
    }
}

/// Ten times each input.
pub(super) fn tenfold(inputs: &[u64]) -> Results {
    Ok(inputs.iter().map(|input| Ok(input * 10)).collect())
}
