//! Instances on real threads. Nothing sleeps: models wait for the test, the test waits for events.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::support::{HOUR, Inbox, PATIENCE, Plain, Results, batcher, eager, led, request, tenfold, until};
use crate::{Dispatch, Failure, InstanceId, Instances, ModelError, SchedulerConfig, Submission};

const SOON: Duration = Duration::from_millis(2);

fn failed(text: &str) -> Result<u64, Failure> {
    Err(Failure::Model(ModelError(text.to_owned())))
}

#[test]
fn one_call_puts_every_instance_to_work() {
    let (batcher, _) = batcher(eager(1), 3);
    let (models, leads): (Vec<_>, Vec<_>) = (0..3).map(|_| led()).unzip();
    let instances = Instances::spawn("m", Arc::clone(&batcher), models).unwrap();
    let inbox = Inbox::new();
    // All must be waiting: one that is still starting would find its batch unwoken.
    until(|| batcher.waiting_instances() == 3);
    batcher.submit(inbox.requests(1..=3));
    // None returns until all three have a batch.
    let mut given: Vec<_> = leads.iter().flat_map(|lead| lead.given()).collect();
    given.sort_unstable();
    assert_eq!(given, [1, 2, 3]);
    for lead in &leads {
        lead.finish(Ok(vec![Ok(7)]));
    }
    assert_eq!(inbox.take(3), [(1, Ok(7)), (2, Ok(7)), (3, Ok(7))]);
    instances.drain();
}

#[test]
fn calls_that_follow_each_other_put_every_instance_to_work() {
    let (batcher, _) = batcher(eager(8), 3);
    let (models, leads): (Vec<_>, Vec<_>) = (0..3).map(|_| led()).unzip();
    let instances = Instances::spawn("m", Arc::clone(&batcher), models).unwrap();
    let inbox = Inbox::new();
    until(|| batcher.waiting_instances() == 3);
    // Shapes of their own, so that no two share a batch however the threads run.
    for input in 1..=3 {
        batcher.submit([Submission { shape: crate::ShapeKey(input), ..inbox.request(input) }]);
    }
    let mut given: Vec<_> = leads.iter().flat_map(|lead| lead.given()).collect();
    given.sort_unstable();
    assert_eq!(given, [1, 2, 3]);
    drop(leads);
    inbox.take(3);
    instances.drain();
}

#[test]
fn what_comes_while_a_batch_runs_makes_the_next_batch() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1]));
    assert_eq!(lead.given(), [1]);
    for input in 2..=4 {
        batcher.submit(inbox.requests([input]));
    }
    lead.finish(tenfold(&[1]));
    assert_eq!(lead.given(), [2, 3, 4]);
    lead.finish(tenfold(&[2, 3, 4]));
    assert_eq!(inbox.take(4), [(1, Ok(10)), (2, Ok(20)), (3, Ok(30)), (4, Ok(40))]);
    instances.drain();
}

#[test]
fn one_who_waits_for_a_window_is_woken_by_a_full_batch_and_by_a_flush() {
    let config = SchedulerConfig { dispatch: Dispatch::Window, max_wait: HOUR, ..eager(4) };
    let (batcher, _) = batcher(config, 1);
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![Plain(tenfold)]).unwrap();
    let inbox = Inbox::new();
    for input in 1..=3 {
        until(|| batcher.waiting_instances() == 1);
        batcher.submit(inbox.requests([input]));
    }
    until(|| batcher.waiting_instances() == 1);
    batcher.submit(inbox.requests([4]));
    assert_eq!(inbox.take(4).len(), 4);
    batcher.submit(inbox.requests([5]));
    until(|| batcher.waiting_instances() == 1);
    batcher.flush();
    assert_eq!(inbox.take(1), [(5, Ok(50))]);
    instances.drain();
}

#[test]
fn a_window_ends_though_nobody_joins() {
    let config = SchedulerConfig { dispatch: Dispatch::Window, max_wait: SOON, ..eager(8) };
    let (batcher, _) = batcher(config, 2);
    let instances =
        Instances::spawn("m", Arc::clone(&batcher), vec![Plain(tenfold), Plain(tenfold)]).unwrap();
    let inbox = Inbox::new();
    for input in 0..20 {
        batcher.submit(inbox.requests([input]));
        assert_eq!(inbox.next(), (input, Ok(input * 10)));
    }
    instances.drain();
}

#[test]
fn an_instance_that_waits_for_a_window_is_woken_by_the_request_that_fills_the_batch() {
    let (batcher, _) = batcher(SchedulerConfig { dispatch: Dispatch::Window, ..eager(2) }, 1);
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![Plain(tenfold)]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1]));
    batcher.submit(inbox.requests([2]));
    assert_eq!(inbox.take(2), [(1, Ok(10)), (2, Ok(20))]);
    instances.drain();
}

#[test]
fn a_model_that_panics_answers_everyone_and_goes_on() {
    let (batcher, memory) = batcher(eager(8), 1);
    let model = Plain(|inputs: &[u64]| -> Results {
        match inputs[0] {
            1 => panic!("a plain text"),
            2 => panic!("a made text: {}", inputs.len()),
            4 => std::panic::panic_any(4_u64),
            _ => tenfold(inputs),
        }
    });
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    let rounds = [
        (vec![1], failed("the model panicked: a plain text")),
        (vec![2, 3], failed("the model panicked: a made text: 2")),
        (vec![4], failed("the model panicked: no message")),
        (vec![5], Ok(50)),
    ];
    for (inputs, answer) in rounds {
        batcher.submit(inbox.requests(inputs.clone()));
        let expected: Vec<_> = inputs.iter().map(|&input| (input, answer.clone())).collect();
        assert_eq!(inbox.take(inputs.len()), expected);
    }
    instances.drain();
    let completed: Vec<_> = memory.batches.lock().unwrap().iter().map(|batch| batch.3).collect();
    assert_eq!(completed, [false, false, false, true]);
    assert!(batcher.remembers_nothing());
}

#[test]
fn a_batch_that_fails_tells_everyone_the_models_words_and_the_next_one_runs() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1, 2]));
    assert_eq!(lead.given(), [1, 2]);
    lead.finish(Err(ModelError("out of memory".to_owned()).into()));
    assert_eq!(inbox.take(2), [(1, failed("out of memory")), (2, failed("out of memory"))]);
    batcher.submit(inbox.requests([3]));
    lead.given();
    lead.finish(tenfold(&[3]));
    assert_eq!(inbox.next(), (3, Ok(30)));
    instances.drain();
}

#[test]
fn a_request_that_fails_alone_leaves_the_others_their_results() {
    let (batcher, _) = batcher(eager(8), 1);
    let model = Plain(|inputs: &[u64]| -> Results {
        let odd = |input: &u64| {
            if input % 2 == 1 { Err(ModelError(format!("{input} is odd"))) } else { Ok(*input) }
        };
        Ok(inputs.iter().map(odd).collect())
    });
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1, 2, 3]));
    assert_eq!(inbox.take(3), [(1, failed("1 is odd")), (2, Ok(2)), (3, failed("3 is odd"))]);
    instances.drain();
}

#[test]
fn a_reply_that_panics_costs_nobody_else_an_answer() {
    let (batcher, _) = batcher(eager(8), 1);
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![Plain(tenfold)]).unwrap();
    let inbox = Inbox::new();
    let rude = request(1, Box::new(|_| panic!("a bug of the caller")));
    batcher.submit([rude, inbox.request(2)]);
    assert_eq!(inbox.next(), (2, Ok(20)));
    batcher.submit(inbox.requests([3]));
    assert_eq!(inbox.next(), (3, Ok(30)));
    instances.drain();
}

#[test]
fn cancelled_while_queued_never_reaches_the_model_and_cancelled_while_running_is_not_answered() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    let running = batcher.submit(inbox.requests([1])).remove(0).unwrap();
    assert_eq!(lead.given(), [1]);
    let queued = batcher.submit(inbox.requests([2, 3, 4]));
    assert!(batcher.cancel(queued[1].clone().unwrap()));
    assert!(!batcher.cancel(running));
    lead.finish(tenfold(&[1]));
    assert_eq!(lead.given(), [2, 4]);
    lead.finish(tenfold(&[2, 4]));
    instances.drain();
    assert_eq!(lead.rest(), Vec::<Vec<u64>>::new());
    assert_eq!(inbox.rest(), [(2, Ok(20)), (4, Ok(40))]);
    assert!(batcher.remembers_nothing());
}

#[test]
fn requests_expire_while_every_instance_is_busy() {
    let (batcher, _) = batcher(eager(1), 2);
    let (models, leads): (Vec<_>, Vec<_>) = (0..2).map(|_| led()).unzip();
    let instances = Instances::spawn("m", Arc::clone(&batcher), models).unwrap();
    let inbox = Inbox::new();
    // The timer now waits for an hour: only the nearer deadlines below can shorten that.
    batcher.submit([1, 2].map(|input| Submission { timeout: Some(HOUR), ..inbox.request(input) }));
    leads.iter().for_each(|lead| drop(lead.given()));
    for input in 3..6 {
        batcher.submit([Submission { timeout: Some(SOON), ..inbox.request(input) }]);
        assert_eq!(inbox.next(), (input, Err(Failure::ExpiredInQueue)));
    }
    leads.iter().for_each(|lead| lead.finish(tenfold(&[1])));
    assert_eq!(inbox.take(2), [(1, Ok(10)), (2, Ok(10))]);
    instances.drain();
    assert!(leads.into_iter().all(|lead| lead.rest().is_empty()), "an expired request ran");
}

#[test]
fn a_running_request_expires_and_is_not_answered_again() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    // The deadline is short, and yet the model must have the request before it: retried until it has.
    let mut input = 0;
    loop {
        input += 1;
        batcher.submit([Submission { timeout: Some(SOON * 10), ..inbox.request(input) }]);
        match inbox.next() {
            (_, Err(Failure::ExpiredRunning)) => break,
            (_, answer) => assert_eq!(answer, Err(Failure::ExpiredInQueue)),
        }
    }
    assert_eq!(lead.given(), [input]);
    lead.finish(tenfold(&[input]));
    instances.drain();
    assert_eq!(inbox.rest(), []);
    assert!(batcher.remembers_nothing());
}

#[test]
fn a_drain_finishes_what_is_queued_without_waiting_for_its_window_and_ends_all_threads() {
    let (batcher, _) = batcher(SchedulerConfig { dispatch: Dispatch::Window, ..eager(8) }, 3);
    let models = vec![Plain(tenfold), Plain(tenfold), Plain(tenfold)];
    let instances = Instances::spawn("m", Arc::clone(&batcher), models).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests(0..5));
    instances.drain();
    assert_eq!(inbox.rest(), (0..5).map(|input| (input, Ok(input * 10))).collect::<Vec<_>>());
    drop(instances);
    assert_eq!(Arc::strong_count(&batcher), 1, "a thread still holds the batcher");
    assert!(batcher.remembers_nothing());
}

#[test]
fn a_batcher_with_nothing_to_do_drains() {
    let (batcher, _) = batcher(eager(8), 2);
    let instances = Instances::spawn("m", batcher, vec![Plain(tenfold), Plain(tenfold)]).unwrap();
    instances.drain();
    instances.drain();
}

#[test]
fn every_drain_waits_for_the_threads_to_end() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1]));
    lead.given();
    let (ended, has_ended) = channel();
    let early = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                instances.drain();
                ended.send(()).unwrap();
            });
        }
        // A drain that returned early would say so here; no time proves that it never does.
        let early = has_ended.recv_timeout(Duration::from_millis(50));
        lead.finish(tenfold(&[1]));
        early
    });
    assert_eq!(early, Err(RecvTimeoutError::Timeout));
    assert_eq!(has_ended.try_iter().count(), 2);
}

#[test]
fn an_abort_answers_the_running_and_the_queued_and_starts_nothing_more() {
    let (batcher, _) = batcher(eager(1), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1, 2, 3]));
    lead.given();
    batcher.abort();
    let (ran, waited) = (Failure::ClosedRunning, Failure::ClosedInQueue);
    assert_eq!(inbox.take(3), [(1, Err(ran)), (2, Err(waited.clone())), (3, Err(waited))]);
    lead.finish(tenfold(&[1]));
    instances.drain();
    assert_eq!(lead.rest(), Vec::<Vec<u64>>::new());
}

#[test]
fn a_batch_is_seen_when_it_begins_and_again_when_it_ends() {
    let (batcher, memory) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![model]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1]));
    lead.given();
    assert_eq!(*memory.started.lock().unwrap(), [InstanceId(0)]);
    assert_eq!(memory.batches.lock().unwrap().len(), 0);
    lead.finish(tenfold(&[1]));
    assert_eq!(inbox.next(), (1, Ok(10)));
    assert_eq!(memory.batches.lock().unwrap().len(), 1);
    instances.drain();
}

#[test]
fn dropped_instances_answer_their_callers_and_end() {
    let (batcher, _) = batcher(eager(8), 1);
    let (model, lead) = led();
    let instances: Instances<u64, u64> =
        Instances::spawn("m", Arc::clone(&batcher), vec![Box::new(model) as Box<Boxed>]).unwrap();
    let inbox = Inbox::new();
    batcher.submit(inbox.requests([1]));
    lead.given();
    drop(instances);
    assert_eq!(inbox.next(), (1, Err(Failure::ClosedRunning)));
    // The model goes with its thread, and its end of the channel with the model.
    assert_eq!(lead.rest(), Vec::<Vec<u64>>::new());
}

type Boxed = dyn crate::Model<Input = u64, Output = u64>;

#[test]
fn a_batch_is_counted_before_its_callers_are_answered() {
    let (batcher, memory) = batcher(eager(8), 1);
    let instances = Instances::spawn("m", Arc::clone(&batcher), vec![Plain(tenfold)]).unwrap();
    let (counted, was_counted) = channel();
    let reply = move |_| counted.send(memory.batches.lock().unwrap().len()).unwrap();
    batcher.submit([request(1, Box::new(reply))]);
    assert_eq!(was_counted.recv_timeout(PATIENCE), Ok(1));
    instances.drain();
}

#[test]
fn threads_are_named_after_the_model_and_the_instance() {
    let (batcher, _) = batcher(eager(1), 1);
    let (name, names) = channel();
    let model = Plain(move |inputs: &[u64]| -> Results {
        name.send(thread::current().name().map(str::to_owned)).unwrap();
        tenfold(inputs)
    });
    let instances = Instances::spawn("mlp-1", Arc::clone(&batcher), vec![model]).unwrap();
    batcher.submit(Inbox::new().requests([1]));
    assert_eq!(names.recv_timeout(PATIENCE).unwrap().as_deref(), Some("mlp-1:0"));
    instances.drain();
}
