//! The batcher driven by hand: no thread but the test's, and a clock that only the test moves.

use std::sync::Arc;
use std::time::Duration;

use super::support::{HOUR, Inbox, ManualClock, Memory, eager, request, tenfold};
use crate::queue::Total;
use crate::replay::{Event, replay};
use crate::{
    Batcher, ClientId, Dispatch, Failure, InstanceId, ModelError, Priority, Rejection, SchedulerConfig,
    ShapeKey, Submission, Ticket, Verdict,
};

const INSTANCE: InstanceId = InstanceId(0);
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    batcher: Batcher<u64, u64>,
    clock: Arc<ManualClock>,
    memory: Arc<Memory>,
    inbox: Inbox,
}

fn bench(config: SchedulerConfig) -> Bench {
    let clock = Arc::new(ManualClock::default());
    let memory = Arc::new(Memory::default());
    let batcher = Batcher::new(
        SchedulerConfig { instances: 2, ..config },
        None,
        Arc::clone(&clock) as _,
        Arc::clone(&memory) as _,
        true,
    );
    Bench { batcher, clock, memory, inbox: Inbox::new() }
}

impl Bench {
    fn submit(&self, input: u64, timeout: Option<Duration>) -> Ticket {
        let submission = Submission { timeout, ..self.inbox.request(input) };
        self.batcher.submit([submission]).remove(0).unwrap()
    }

    /// The next batch; it must be there, or the test would hang.
    fn job(&self) -> crate::batcher::Job<u64> {
        self.batcher.next(INSTANCE).unwrap()
    }
}

fn inputs(job: &crate::batcher::Job<u64>) -> Vec<u64> {
    job.inputs.iter().map(|input| **input).collect()
}

#[test]
fn a_request_expires_in_the_queue_and_another_while_it_runs() {
    let bench = bench(eager(1));
    bench.submit(1, Some(2 * SECOND));
    bench.submit(2, Some(SECOND));
    bench.submit(3, Some(3 * SECOND));
    let running = bench.job();
    assert_eq!(inputs(&running), [2], "the earliest deadline first");

    bench.clock.advance(2 * SECOND);
    assert!(bench.batcher.expire(), "the timer goes on");
    assert_eq!(bench.inbox.take(2), [(1, Err(Failure::ExpiredInQueue)), (2, Err(Failure::ExpiredRunning))]);

    bench.batcher.complete(INSTANCE, running, tenfold(&[2]), SECOND, None);
    let last = bench.job();
    assert_eq!(inputs(&last), [3], "the expired one never runs");
    bench.batcher.complete(INSTANCE, last, tenfold(&[3]), SECOND, None);
    assert!(bench.batcher.remembers_nothing());
    assert_eq!(bench.inbox.rest(), [(3, Ok(30))]);
}

#[test]
fn an_instance_that_asks_for_work_answers_what_is_due() {
    let bench = bench(eager(8));
    bench.submit(1, Some(SECOND));
    bench.submit(2, None);
    bench.clock.advance(SECOND);
    assert_eq!(inputs(&bench.job()), [2]);
    assert_eq!(bench.inbox.next(), (1, Err(Failure::ExpiredInQueue)));
}

#[test]
fn who_does_not_wait_gets_a_batch_only_where_one_can_start_at_once() {
    let bench = bench(SchedulerConfig { dispatch: Dispatch::Window, max_wait: SECOND, ..eager(2) });
    assert!(bench.batcher.try_next(INSTANCE).is_none(), "nothing waits");
    bench.submit(1, Some(SECOND / 2));
    assert!(bench.batcher.try_next(INSTANCE).is_none(), "the window is open");
    bench.clock.advance(SECOND / 2);
    assert!(bench.batcher.try_next(INSTANCE).is_none());
    assert_eq!(bench.inbox.next(), (1, Err(Failure::ExpiredInQueue)), "what is due is answered all the same");
    bench.submit(2, None);
    bench.submit(3, None);
    let job = bench.batcher.try_next(INSTANCE).unwrap();
    assert_eq!(inputs(&job), [2, 3]);
    assert!(bench.batcher.try_next(INSTANCE).is_none());
    bench.batcher.complete(INSTANCE, job, tenfold(&[2, 3]), SECOND, None);
    assert!(bench.batcher.remembers_nothing());
}

#[test]
fn an_instance_that_asks_for_work_answers_whom_it_gives_up() {
    let bench = bench(SchedulerConfig { dispatch: Dispatch::Window, max_wait: Duration::ZERO, ..eager(8) });
    for batch in 0..8 {
        bench.submit(100 + batch, None);
        let job = bench.job();
        if batch == 7 {
            bench.submit(1, Some(5 * SECOND));
            bench.submit(2, Some(100 * SECOND));
        }
        bench.batcher.complete(INSTANCE, job, tenfold(&[100 + batch]), 10 * SECOND, None);
        assert_eq!(bench.inbox.next(), (100 + batch, Ok(10 * (100 + batch))));
    }
    assert_eq!(inputs(&bench.job()), [2], "a batch takes ten seconds");
    assert_eq!(bench.inbox.next(), (1, Err(Failure::GivenUp)));
    let log = std::mem::take(&mut *bench.memory.events.lock().unwrap());
    let Some(Event::Plan { verdicts, .. }) = log.last() else { panic!("{:?}", log.last()) };
    assert_eq!(verdicts[..], [(Ticket(8), Verdict::GivenUp)]);
    assert!(replay(log).is_ok());
}

#[test]
fn what_would_be_refused_whatever_it_is_can_be_refused_before_it_is_made_ready() {
    let bench = bench(SchedulerConfig { max_queue_size: 1, ..eager(8) });
    let refuse = || bench.batcher.refuse_early(2, ClientId(7), Priority::High, SECOND);
    assert_eq!(refuse(), None);
    bench.submit(1, None);
    assert_eq!(refuse(), Some(Rejection::QueueFull { limit: 1 }));
    assert_eq!(bench.batcher.inspect(|scheduler, now| scheduler.stats(now).rejected["queue_full"]), 2);
    assert_eq!(inputs(&bench.job()), [1]);
    assert_eq!(refuse(), None);
    assert!(replay(std::mem::take(&mut *bench.memory.events.lock().unwrap())).is_ok());
}

#[test]
fn the_timer_and_the_instances_end_with_the_last_request_of_a_closed_batcher() {
    let bench = bench(eager(8));
    bench.submit(1, None);
    bench.submit(2, Some(SECOND));
    bench.batcher.close();
    let job = bench.job();
    assert_eq!(inputs(&job), [2, 1]);
    assert!(bench.batcher.next(INSTANCE).is_none(), "nothing waits");
    bench.clock.advance(SECOND);
    assert!(bench.batcher.expire(), "two is answered, one still runs");
    bench.batcher.complete(INSTANCE, job, tenfold(&[2, 1]), SECOND, None);
    assert!(!bench.batcher.expire());
    assert!(bench.batcher.remembers_nothing());
    assert_eq!(bench.inbox.rest(), [(2, Err(Failure::ExpiredRunning)), (1, Ok(10))]);
}

#[test]
fn results_reach_their_own_callers_though_one_left_and_one_expired() {
    let bench = bench(eager(8));
    bench.submit(1, None);
    let left = bench.submit(2, None);
    bench.submit(3, None);
    bench.submit(4, Some(SECOND));
    bench.submit(5, None);
    let job = bench.job();
    assert_eq!(inputs(&job), [4, 1, 2, 3, 5]);
    assert!(!bench.batcher.cancel(left), "it runs already");
    bench.clock.advance(SECOND);
    bench.batcher.expire();
    let mut results = tenfold(&[4, 1, 2, 3, 5]).unwrap();
    results[3] = Err(ModelError("three is bad".to_owned()));
    bench.batcher.complete(INSTANCE, job, Ok(results), SECOND, None);
    assert!(bench.batcher.remembers_nothing());
    let bad = Failure::Model(ModelError("three is bad".to_owned()));
    assert_eq!(
        bench.inbox.rest(),
        [(4, Err(Failure::ExpiredRunning)), (1, Ok(10)), (3, Err(bad)), (5, Ok(50))]
    );
}

#[test]
fn too_few_or_too_many_results_fail_the_whole_batch() {
    for (returned, count) in [(vec![1], "1"), (vec![1, 2, 3], "3"), (vec![], "0")] {
        let bench = bench(eager(8));
        bench.submit(1, None);
        bench.submit(2, None);
        let job = bench.job();
        bench.batcher.complete(INSTANCE, job, tenfold(&returned), SECOND, None);
        let text = format!("the model returned {count} results for a batch of 2");
        let failure = Err(Failure::Model(ModelError(text)));
        assert_eq!(bench.inbox.take(2), [(1, failure.clone()), (2, failure)]);
        assert!(!bench.memory.batches.lock().unwrap()[0].3, "it counts as failed");
    }
}

#[test]
fn a_refused_request_leaves_the_others_of_its_call_in() {
    let bench = bench(SchedulerConfig { max_queue_size: 2, ..eager(8) });
    let answers = bench.batcher.submit(bench.inbox.requests(1..=3));
    assert_eq!(answers, [Ok(Ticket(0)), Ok(Ticket(1)), Err(Rejection::QueueFull { limit: 2 })]);
    assert_eq!(bench.batcher.queued(), Total { entries: 2, cost: 2, bytes: 0 });
    assert_eq!(inputs(&bench.job()), [1, 2]);
}

#[test]
fn what_a_caller_brings_may_use_the_batcher_while_it_is_submitted_or_refused() {
    struct AsksWhenDropped(Arc<Batcher<u64, u64>>);
    impl Drop for AsksWhenDropped {
        fn drop(&mut self) {
            assert_eq!(self.0.queued(), Total { entries: 0, cost: 0, bytes: 0 });
        }
    }
    let bench = bench(SchedulerConfig { max_queue_size: 0, ..eager(8) });
    let batcher = Arc::new(bench.batcher);
    let asks = AsksWhenDropped(Arc::clone(&batcher));
    let mut submission = Some(request(1, Box::new(move |_| drop(asks))));
    let lazy = std::iter::from_fn(|| {
        assert_eq!(batcher.queued(), Total { entries: 0, cost: 0, bytes: 0 });
        submission.take()
    });
    assert_eq!(batcher.submit(lazy), [Err(Rejection::QueueFull { limit: 0 })]);
}

#[test]
fn cost_shape_and_priority_reach_the_scheduler() {
    let bench = bench(SchedulerConfig { max_batch_cost: Some(10), ..eager(8) });
    let with = |input, cost, shape, priority| Submission {
        cost,
        shape: ShapeKey(shape),
        priority,
        ..bench.inbox.request(input)
    };
    let answers = bench.batcher.submit([
        with(1, 6, 0, Priority::Normal),
        with(2, 5, 0, Priority::Normal),
        with(3, 1, 1, Priority::High),
        with(4, 11, 0, Priority::Normal),
        with(5, 4, 0, Priority::Normal),
    ]);
    assert_eq!(answers[3], Err(Rejection::NeverFits { cost: 11, limit: 10 }));
    assert_eq!(bench.batcher.queued(), Total { entries: 4, cost: 16, bytes: 0 });
    let batches: Vec<_> = (0..3).map(|_| inputs(&bench.job())).collect();
    assert_eq!(batches, [vec![3], vec![1], vec![2, 5]]);
}

#[test]
fn an_ended_batch_is_reported_with_its_size_cost_and_waits() {
    let bench = bench(eager(8));
    bench.batcher.submit([Submission { cost: 7, ..bench.inbox.request(1) }]);
    bench.clock.advance(2 * SECOND);
    bench.submit(2, None);
    bench.clock.advance(SECOND);
    let job = bench.job();
    bench.batcher.complete(INSTANCE, job, tenfold(&[1, 2]), 4 * SECOND, None);
    assert_eq!(*bench.memory.batches.lock().unwrap(), [(2, 8, vec![3 * SECOND, SECOND], true)]);
    bench.batcher.submit([Submission { cost: 7, ..bench.inbox.request(3) }, bench.inbox.request(4)]);
    assert_eq!(bench.batcher.predicted_drain(), Some(2 * SECOND), "4 s a batch of two, two instances");
}

#[test]
fn an_aborted_batcher_answers_all_at_once_and_runs_nothing_more() {
    let bench = bench(eager(1));
    bench.submit(1, Some(HOUR));
    bench.submit(2, None);
    let running = bench.job();
    bench.batcher.abort();
    assert_eq!(bench.inbox.take(2), [(1, Err(Failure::ClosedRunning)), (2, Err(Failure::ClosedInQueue))]);
    assert!(bench.batcher.next(INSTANCE).is_none());
    assert!(!bench.batcher.expire(), "the timer ends");
    bench.batcher.complete(INSTANCE, running, tenfold(&[1]), SECOND, None);
    assert_eq!(bench.batcher.submit(bench.inbox.requests([3])), [Err(Rejection::Draining)]);
    assert!(bench.batcher.remembers_nothing());
    assert_eq!(bench.inbox.rest(), []);
}

#[test]
fn failures_say_what_happened() {
    let texts = [
        (Failure::ExpiredInQueue, "the deadline passed while the request was queued"),
        (Failure::GivenUp, "the deadline of the queued request could not be met any more"),
        (Failure::ExpiredRunning, "the deadline passed while the model ran"),
        (Failure::Model(ModelError("no such word".to_owned())), "no such word"),
        (Failure::ClosedInQueue, "the server stopped before the request ran"),
        (Failure::ClosedRunning, "the server stopped while the model ran"),
    ];
    for (failure, text) in texts {
        assert_eq!(failure.to_string(), text);
    }
}

#[test]
fn every_call_is_logged_with_its_answer_and_replays() {
    let bench = bench(SchedulerConfig { dispatch: Dispatch::Window, max_wait: SECOND, ..eager(2) });
    bench.submit(1, Some(SECOND));
    bench.submit(2, None);
    let job = bench.job();
    bench.clock.advance(SECOND);
    bench.batcher.expire();
    bench.batcher.complete(INSTANCE, job, tenfold(&[1, 2]), SECOND, None);
    let cancelled = bench.submit(3, None);
    bench.batcher.cancel(cancelled);
    bench.batcher.cancel(cancelled);
    bench.batcher.flush();
    bench.batcher.close();
    bench.batcher.close();
    bench.batcher.submit(bench.inbox.requests([4]));

    let log = std::mem::take(&mut *bench.memory.events.lock().unwrap());
    let told = |event: &Event| match event {
        Event::Start { .. } => "start".to_owned(),
        Event::Submit { rejection, .. } => format!("submit {}", rejection.is_none()),
        Event::Plan { batch, .. } => {
            format!("plan {}", batch.as_ref().map_or(0, |(_, tickets)| tickets.len()))
        }
        Event::Expire { verdicts, .. } => format!("expire {verdicts:?}"),
        Event::Complete { verdicts, .. } => format!("complete {verdicts:?}"),
        Event::Cancel { ticket, .. } => format!("cancel {}", ticket.0),
        Event::Flush { .. } => "flush".to_owned(),
        Event::Drain => "drain".to_owned(),
        Event::ResetBreaker => "reset".to_owned(),
    };
    let expected = [
        "start".to_owned(),
        "submit true".to_owned(),
        "submit true".to_owned(),
        "plan 2".to_owned(),
        format!("expire {:?}", [(Ticket(0), Verdict::ExpiredRunning)]),
        format!("complete {:?}", [(Ticket(1), Verdict::Completed)]),
        "submit true".to_owned(),
        "cancel 2".to_owned(),
        "flush".to_owned(),
        "drain".to_owned(),
        "submit false".to_owned(),
    ];
    assert_eq!(log.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(replay(log).unwrap().batches, 1);
}
