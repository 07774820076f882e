//! What the scheduler decides, in virtual time: one tick is one nanosecond.

use std::time::Duration;

use crate::replay::{Divergence, Event, Replayed, replay};
use crate::{
    BatchId, BatchReport, Dispatch, Entry, InstanceId, Mode, Next, Outcome, PaddingStrategy, Priority,
    Rejection, Scheduler, SchedulerConfig, ShapeKey, Ticket, Time, Verdict,
};

const INSTANCE: InstanceId = InstanceId(0);
const WAIT: u64 = 50;

fn config(mode: Mode, dispatch: Dispatch) -> SchedulerConfig {
    SchedulerConfig {
        mode,
        dispatch,
        max_batch_size: 4,
        max_wait: Duration::from_nanos(WAIT),
        max_queue_size: 100,
        ..SchedulerConfig::default()
    }
}

fn eager() -> SchedulerConfig {
    config(Mode::Dynamic, Dispatch::Eager)
}

fn window() -> SchedulerConfig {
    config(Mode::Dynamic, Dispatch::Window)
}

fn fixed() -> SchedulerConfig {
    config(Mode::Fixed, Dispatch::Window)
}

fn at(tick: u64) -> Time {
    Time::from_nanos(tick)
}

fn entry(ticket: u64, arrived: u64) -> Entry {
    Entry { ticket: Ticket(ticket), cost: 1, arrived: at(arrived), ..Entry::default() }
}

fn urgent(ticket: u64, priority: Priority, deadline: Option<u64>) -> Entry {
    Entry { priority, deadline: deadline.map(at), ..entry(ticket, 0) }
}

/// A scheduler to which `entries` were submitted as they arrived.
fn with(config: SchedulerConfig, entries: impl IntoIterator<Item = Entry>) -> Scheduler {
    let mut scheduler = Scheduler::new(config);
    for entry in entries {
        scheduler.submit(entry.arrived, entry).unwrap();
    }
    scheduler
}

/// The tickets of the batch that a free instance is given; what else it is told fails the test.
fn run(scheduler: &mut Scheduler, tick: u64) -> (BatchId, Vec<u64>) {
    match scheduler.plan(at(tick), INSTANCE, u64::MAX).next {
        Next::Run(batch) => (batch.id, batch.entries.iter().map(|entry| entry.ticket.0).collect()),
        next => panic!("no batch at {tick}: {next:?}"),
    }
}

fn next(scheduler: &mut Scheduler, tick: u64) -> Next {
    scheduler.plan(at(tick), INSTANCE, u64::MAX).next
}

fn report(completed: bool, busy: u64) -> BatchReport {
    let outcome = if completed { Outcome::Completed } else { Outcome::Failed };
    BatchReport { outcome, busy: Duration::from_nanos(busy), peak_bytes: None }
}

#[test]
fn eager_never_waits_while_something_is_queued() {
    let mut scheduler = with(eager(), [entry(0, 7)]);
    assert_eq!(run(&mut scheduler, 7).1, [0]);
    assert_eq!(next(&mut scheduler, 7), Next::Idle);
}

#[test]
fn eager_takes_all_that_waits_up_to_the_limit() {
    let mut scheduler = with(eager(), (0..6).map(|ticket| entry(ticket, 0)));
    assert_eq!(run(&mut scheduler, 0).1, [0, 1, 2, 3]);
    assert_eq!(run(&mut scheduler, 0).1, [4, 5]);
}

#[test]
fn a_window_ends_max_wait_after_its_first_arrival_and_not_before() {
    for config in [window(), fixed()] {
        let mut scheduler = with(config, [entry(0, 10), entry(1, 30)]);
        assert_eq!(next(&mut scheduler, 30), Next::WaitUntil(at(10 + WAIT)));
        assert_eq!(next(&mut scheduler, 9 + WAIT), Next::WaitUntil(at(10 + WAIT)));
        assert_eq!(run(&mut scheduler, 10 + WAIT).1, [0, 1]);
    }
}

#[test]
fn a_window_leaves_half_of_the_time_until_a_deadline_to_the_model() {
    for config in [window(), fixed()] {
        let due = |tick| Entry { deadline: Some(at(tick)), ..entry(1, 10) };
        let mut scheduler = with(config.clone(), [entry(0, 0), due(30)]);
        assert_eq!(next(&mut scheduler, 10), Next::WaitUntil(at(15)), "from the first arrival");
        assert_eq!(run(&mut scheduler, 15).1, [1, 0]);
        let mut scheduler = with(config, [entry(0, 0), due(10 + 2 * WAIT)]);
        assert_eq!(next(&mut scheduler, 10), Next::WaitUntil(at(WAIT)));
    }
}

#[test]
fn a_window_counts_from_the_first_arrival_though_a_later_one_is_more_urgent() {
    let high = Entry { arrived: at(20), ..urgent(1, Priority::High, None) };
    let mut scheduler = with(window(), [entry(0, 0), high]);
    assert_eq!(next(&mut scheduler, 20), Next::WaitUntil(at(WAIT)));
    assert_eq!(run(&mut scheduler, WAIT).1, [1, 0]);
}

#[test]
fn a_cancelled_first_arrival_takes_its_window_with_it() {
    let mut scheduler = with(window(), [entry(0, 0), entry(1, 20)]);
    assert!(scheduler.cancel(at(25), Ticket(0)));
    assert_eq!(next(&mut scheduler, 25), Next::WaitUntil(at(20 + WAIT)));
}

#[test]
fn what_is_flushed_leaves_at_once_and_what_comes_later_waits_its_window() {
    for config in [window(), fixed()] {
        let mut scheduler = with(config, (0..5).map(|ticket| entry(ticket, ticket)));
        scheduler.flush(at(10));
        scheduler.submit(at(11), entry(5, 11)).unwrap();
        assert_eq!(run(&mut scheduler, 12).1, [0, 1, 2, 3]);
        assert_eq!(run(&mut scheduler, 12).1, [4, 5], "in the company of who came later");
        scheduler.submit(at(13), entry(6, 13)).unwrap();
        assert_eq!(next(&mut scheduler, 13), Next::WaitUntil(at(13 + WAIT)));
    }
}

#[test]
fn in_a_window_only_a_full_batch_or_a_deadline_hastens() {
    for config in [window(), fixed()] {
        let mut scheduler = with(config, (0..3).map(|ticket| entry(ticket, 0)));
        assert!(!scheduler.take_hastened());
        scheduler.submit(at(1), entry(3, 1)).unwrap();
        assert!(scheduler.take_hastened(), "a full batch");
        assert!(!scheduler.take_hastened(), "told once");
        assert_eq!(run(&mut scheduler, 1).1.len(), 4);
        scheduler.submit(at(2), Entry { deadline: Some(at(9)), ..entry(4, 2) }).unwrap();
        assert!(scheduler.take_hastened(), "a deadline");
    }
    let mut scheduler = with(eager(), [entry(0, 0)]);
    assert!(scheduler.take_hastened(), "each arrival is asked about again");
}

#[test]
fn a_full_batch_does_not_wait_for_its_window() {
    for config in [window(), fixed()] {
        let mut scheduler = with(config, (0..3).map(|ticket| entry(ticket, 0)));
        assert_eq!(next(&mut scheduler, 1), Next::WaitUntil(at(WAIT)));
        scheduler.submit(at(2), entry(3, 2)).unwrap();
        assert_eq!(run(&mut scheduler, 2).1, [0, 1, 2, 3]);
    }
}

#[test]
fn a_batch_that_is_full_by_cost_does_not_wait_for_its_window() {
    for config in [window(), fixed()] {
        let config = SchedulerConfig { max_batch_cost: Some(10), ..config };
        let costly = |ticket, cost| Entry { cost, ..entry(ticket, 0) };
        let mut scheduler = with(config, [costly(0, 9)]);
        assert_eq!(next(&mut scheduler, 0), Next::WaitUntil(at(WAIT)));
        scheduler.submit(at(0), costly(1, 1)).unwrap();
        assert_eq!(run(&mut scheduler, 0).1, [0, 1]);
    }
}

#[test]
fn fixed_mode_waits_for_a_full_batch_even_when_told_to_be_eager() {
    let mut scheduler = with(config(Mode::Fixed, Dispatch::Eager), [entry(0, 0)]);
    assert_eq!(next(&mut scheduler, 0), Next::WaitUntil(at(WAIT)));
}

#[test]
fn shapes_never_mix() {
    let shaped = |ticket, shape| Entry { shape: ShapeKey(shape), ..entry(ticket, 0) };
    let mut scheduler = with(eager(), [shaped(0, 1), shaped(1, 2), shaped(2, 1), shaped(3, 2)]);
    assert_eq!(run(&mut scheduler, 0).1, [0, 2]);
    assert_eq!(run(&mut scheduler, 0).1, [1, 3]);
}

#[test]
fn shapes_do_not_fill_each_others_batches() {
    let shaped = |ticket, shape| Entry { shape: ShapeKey(shape), ..entry(ticket, ticket) };
    let mut scheduler = with(window(), [shaped(0, 1), shaped(1, 2), shaped(2, 1), shaped(3, 2)]);
    assert_eq!(next(&mut scheduler, 3), Next::WaitUntil(at(WAIT)));
    assert_eq!(run(&mut scheduler, WAIT).1, [0, 2]);
    assert_eq!(next(&mut scheduler, WAIT), Next::WaitUntil(at(1 + WAIT)));
}

#[test]
fn the_shape_with_the_most_urgent_entry_leaves_first() {
    let high = Entry { shape: ShapeKey(2), ..urgent(1, Priority::High, None) };
    let mut scheduler = with(eager(), [entry(0, 0), high]);
    assert_eq!(run(&mut scheduler, 0).1, [1]);
}

#[test]
fn a_shape_whose_window_is_open_does_not_hold_up_one_whose_window_ended() {
    let high = Entry { shape: ShapeKey(2), arrived: at(40), ..urgent(1, Priority::High, None) };
    let mut scheduler = with(window(), [entry(0, 0), high]);
    assert_eq!(run(&mut scheduler, WAIT).1, [0]);
}

#[test]
fn a_batch_stays_within_its_cost() {
    let costly = |ticket, cost| Entry { cost, ..entry(ticket, 0) };
    let config = SchedulerConfig { max_batch_cost: Some(10), ..eager() };
    let mut scheduler = with(config, [costly(0, 6), costly(1, 4), costly(2, 10), costly(3, 1)]);
    assert_eq!(run(&mut scheduler, 0).1, [0, 1]);
    assert_eq!(run(&mut scheduler, 0).1, [2]);
    assert_eq!(run(&mut scheduler, 0).1, [3]);
}

#[test]
fn a_cheap_entry_does_not_overtake_a_costly_one_of_its_shape() {
    let costly = |ticket, cost| Entry { cost, ..entry(ticket, 0) };
    let config = SchedulerConfig { max_batch_cost: Some(10), ..eager() };
    let mut scheduler = with(config, [costly(0, 6), costly(1, 5), costly(2, 1)]);
    assert_eq!(run(&mut scheduler, 0).1, [0]);
    assert_eq!(run(&mut scheduler, 0).1, [1, 2]);
}

#[test]
fn entries_leave_by_priority_then_deadline_then_arrival() {
    let mut scheduler = with(
        SchedulerConfig { max_batch_size: 8, ..eager() },
        [
            urgent(0, Priority::Low, Some(100)),
            urgent(1, Priority::Normal, None),
            urgent(2, Priority::Normal, Some(300)),
            urgent(3, Priority::Normal, Some(200)),
            urgent(4, Priority::Normal, Some(200)),
            urgent(5, Priority::Critical, None),
            urgent(6, Priority::High, Some(900)),
        ],
    );
    assert_eq!(run(&mut scheduler, 0).1, [5, 6, 3, 4, 2, 1, 0]);
}

#[test]
fn the_queue_is_bounded_in_entries_and_frees_a_place_when_one_leaves() {
    let config = SchedulerConfig { max_queue_size: 2, max_batch_size: 1, ..eager() };
    let mut scheduler = with(config, [entry(0, 0), entry(1, 0)]);
    assert_eq!(scheduler.submit(at(0), entry(2, 0)), Err(Rejection::QueueFull { limit: 2 }));
    assert_eq!(scheduler.queued().entries, 2);
    run(&mut scheduler, 0);
    assert_eq!(scheduler.submit(at(0), entry(3, 0)), Ok(()));
    assert!(scheduler.cancel(at(0), Ticket(3)));
    assert_eq!(scheduler.submit(at(0), entry(4, 0)), Ok(()));
}

#[test]
fn the_queue_is_bounded_in_cost_and_frees_it_when_an_entry_leaves() {
    let costly = |ticket, cost| Entry { cost, ..entry(ticket, 0) };
    let config = SchedulerConfig { max_queue_cost: Some(10), max_batch_size: 1, ..eager() };
    let mut scheduler = with(config, [costly(0, 6), costly(1, 4)]);
    assert_eq!(scheduler.queued().cost, 10);
    let full = Rejection::QueueCostFull { cost: 1, queued: 10, limit: 10 };
    assert_eq!(scheduler.submit(at(0), costly(2, 1)), Err(full));
    run(&mut scheduler, 0);
    assert_eq!(scheduler.queued().cost, 4);
    assert_eq!(scheduler.submit(at(0), costly(3, 6)), Ok(()));
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let costly = |cost| Entry { cost, ..entry(0, 0) };
    for (batch, queue) in [(Some(8), Some(20)), (Some(8), None), (Some(20), Some(8)), (None, Some(8))] {
        let config = SchedulerConfig { max_batch_cost: batch, max_queue_cost: queue, ..eager() };
        let mut scheduler = Scheduler::new(config);
        assert_eq!(scheduler.submit(at(0), costly(9)), Err(Rejection::NeverFits { cost: 9, limit: 8 }));
        assert_eq!(scheduler.submit(at(0), costly(8)), Ok(()));
    }
}

#[test]
fn a_deadline_that_has_passed_is_refused() {
    let mut scheduler = Scheduler::new(eager());
    let due = |tick| urgent(0, Priority::Normal, Some(tick));
    assert_eq!(scheduler.submit(at(5), due(4)), Err(Rejection::DeadlinePassed));
    assert_eq!(scheduler.submit(at(5), due(5)), Err(Rejection::DeadlinePassed));
    assert_eq!(scheduler.submit(at(5), due(6)), Ok(()));
}

#[test]
fn rejections_say_what_the_bound_is() {
    let texts = [
        (Rejection::QueueFull { limit: 7 }, "the queue is full: 7 requests are waiting"),
        (
            Rejection::QueueCostFull { cost: 3, queued: 8, limit: 10 },
            "the queue is full: 8 of at most 10 tokens are waiting, 3 more do not fit",
        ),
        (
            Rejection::NeverFits { cost: 11, limit: 10 },
            "the request has 11 tokens, more than the 10 that ever fit",
        ),
        (Rejection::DeadlinePassed, "the deadline had passed when the request was submitted"),
        (Rejection::Draining, "the model is being unloaded"),
    ];
    for (rejection, text) in texts {
        assert_eq!(rejection.to_string(), text);
    }
}

#[test]
fn a_refused_entry_leaves_no_trace() {
    let mut scheduler = Scheduler::new(SchedulerConfig { max_queue_size: 0, ..eager() });
    scheduler.submit(at(0), urgent(0, Priority::Normal, Some(5))).unwrap_err();
    assert!(scheduler.remembers_nothing());
}

#[test]
fn a_queued_entry_expires_at_its_deadline_and_never_runs() {
    let mut scheduler = with(window(), [urgent(0, Priority::Normal, Some(20)), entry(1, 0)]);
    assert_eq!(scheduler.expire(at(19)), (vec![], Some(at(20))));
    assert_eq!(scheduler.expire(at(20)), (vec![(Ticket(0), Verdict::ExpiredInQueue)], None));
    assert_eq!(run(&mut scheduler, WAIT).1, [1]);
}

#[test]
fn planning_expires_what_is_due_instead_of_running_it() {
    let mut scheduler = with(eager(), [urgent(0, Priority::Normal, Some(20))]);
    let planned = scheduler.plan(at(20), INSTANCE, u64::MAX);
    assert_eq!(planned.resolved, [(Ticket(0), Verdict::ExpiredInQueue)]);
    assert_eq!(planned.next, Next::Idle);
    assert!(scheduler.remembers_nothing());
}

#[test]
fn a_running_entry_expires_at_its_deadline_and_gets_no_second_verdict() {
    let mut scheduler = with(eager(), [urgent(0, Priority::Normal, Some(20)), entry(1, 0)]);
    let (batch, _) = run(&mut scheduler, 0);
    assert_eq!(scheduler.next_deadline(), Some(at(20)));
    assert_eq!(scheduler.expire(at(20)).0, [(Ticket(0), Verdict::ExpiredRunning)]);
    assert_eq!(scheduler.complete(at(21), batch, report(true, 21)), [(Ticket(1), Verdict::Completed)]);
    assert!(scheduler.remembers_nothing());
}

#[test]
fn a_deadline_at_the_end_of_time_is_no_deadline() {
    assert_eq!(at(1) + Duration::MAX, Time::MAX);
    let mut scheduler = with(eager(), [Entry { deadline: Some(Time::MAX), ..entry(0, 0) }, entry(1, 0)]);
    assert_eq!(run(&mut scheduler, 0).1, [0, 1]);
}

#[test]
fn a_cancelled_queued_entry_never_runs() {
    let mut scheduler = with(eager(), [urgent(0, Priority::Normal, Some(9)), entry(1, 0)]);
    assert!(scheduler.cancel(at(0), Ticket(0)));
    assert!(!scheduler.cancel(at(0), Ticket(0)));
    assert_eq!(scheduler.next_deadline(), None);
    assert_eq!(run(&mut scheduler, 0).1, [1]);
}

#[test]
fn a_cancelled_running_entry_gets_no_verdict() {
    let mut scheduler = with(eager(), [entry(0, 0), entry(1, 0)]);
    let (batch, _) = run(&mut scheduler, 0);
    assert!(!scheduler.cancel(at(1), Ticket(0)), "it was no longer queued");
    assert_eq!(scheduler.complete(at(2), batch, report(true, 2)), [(Ticket(1), Verdict::Completed)]);
    assert!(!scheduler.cancel(at(3), Ticket(1)), "it had ended");
    assert!(scheduler.remembers_nothing());
}

#[test]
fn every_entry_of_a_failed_batch_fails_in_the_batchs_order() {
    let mut scheduler = with(eager(), [entry(0, 0), urgent(1, Priority::High, None)]);
    let (batch, _) = run(&mut scheduler, 0);
    assert_eq!(
        scheduler.complete(at(1), batch, report(false, 1)),
        [(Ticket(1), Verdict::Failed), (Ticket(0), Verdict::Failed)]
    );
    assert_eq!(scheduler.complete(at(1), batch, report(true, 1)), [], "a batch ends once");
}

#[test]
fn a_drain_refuses_new_work_and_runs_what_waits_without_waiting_for_company() {
    for config in [window(), fixed()] {
        let mut scheduler = with(config, [entry(0, 0)]);
        scheduler.drain();
        assert_eq!(scheduler.submit(at(1), entry(1, 1)), Err(Rejection::Draining));
        assert_eq!(run(&mut scheduler, 1).1, [0]);
        assert_eq!(next(&mut scheduler, 1), Next::Idle);
    }
}

#[test]
fn a_drain_is_predicted_from_the_cost_of_recent_batches() {
    for (instances, drain) in [(1, 800), (2, 400)] {
        let config = SchedulerConfig { instances, ..eager() };
        let mut scheduler = with(config, (0..4).map(|ticket| entry(ticket, 0)));
        assert_eq!(scheduler.predicted_drain(at(0)), None, "nothing has run yet");
        let (batch, _) = run(&mut scheduler, 0);
        scheduler.complete(at(400), batch, report(true, 400));
        assert_eq!(scheduler.predicted_drain(at(400)), Some(Duration::ZERO));
        for ticket in 4..12 {
            scheduler.submit(at(400), entry(ticket, 400)).unwrap();
        }
        assert_eq!(scheduler.predicted_drain(at(400)), Some(Duration::from_nanos(drain)));
    }
}

#[test]
fn a_drain_counts_what_a_running_batch_still_needs() {
    let mut scheduler = with(eager(), (0..12).map(|ticket| entry(ticket, 0)));
    let (batch, _) = run(&mut scheduler, 0);
    scheduler.complete(at(400), batch, report(true, 400));
    run(&mut scheduler, 400);
    assert_eq!(scheduler.predicted_drain(at(500)), Some(Duration::from_nanos(300 + 400)));
}

fn start() -> Event {
    Event::Start { config: eager() }
}

fn submitted(ticket: u64) -> Event {
    Event::Submit { now: at(0), entry: entry(ticket, 0), rejection: None }
}

fn planned(batch: u64, tickets: &[u64]) -> Event {
    let tickets = tickets.iter().map(|&ticket| Ticket(ticket)).collect();
    let batch = Some((BatchId(batch), tickets));
    Event::Plan { now: at(0), instance: INSTANCE, free: u64::MAX, batch, verdicts: Vec::new() }
}

#[test]
fn a_log_replays_to_the_same_batches() {
    let log = [start(), submitted(0), submitted(1), planned(0, &[0, 1])];
    assert_eq!(replay(log), Ok(Replayed { events: 4, batches: 1 }));
}

#[test]
fn a_log_that_was_appended_to_replays_each_run_on_its_own() {
    let run = || [start(), submitted(0), planned(0, &[0])];
    assert_eq!(replay(run().into_iter().chain(run())), Ok(Replayed { events: 6, batches: 2 }));
}

#[test]
fn a_log_whose_batch_was_changed_diverges_there() {
    let divergence = replay([start(), submitted(0), submitted(1), planned(0, &[1, 0])]).unwrap_err();
    assert!(matches!(divergence, Divergence::Differs { index: 3, .. }), "{divergence}");
    assert!(divergence.to_string().starts_with("event 3 differs: the log has Plan {"), "{divergence}");
}

#[test]
fn a_log_without_its_start_is_refused() {
    assert_eq!(replay([submitted(0)]), Err(Divergence::NoStart));
    assert_eq!(replay([]), Err(Divergence::NoStart));
}

#[test]
fn a_split_batch_gives_the_places_that_are_left_to_less_urgent_entries_that_are_not_longer() {
    let mut config = eager();
    config.buckets.strategy = PaddingStrategy::Dynamic;
    let of =
        |ticket, priority, length| Entry { cost: length, seq_len: length, ..urgent(ticket, priority, None) };
    let entries = [
        of(0, Priority::Normal, 7),
        of(1, Priority::Critical, 9),
        of(2, Priority::Normal, 5),
        of(3, Priority::Low, 2),
    ];
    let mut scheduler = with(config.clone(), entries.clone());
    assert_eq!(run(&mut scheduler, 0).1, [1, 0, 2, 3]);
    // A longer one of normal priority is not overtaken by one of low priority.
    let longer = of(4, Priority::Normal, 30);
    let mut scheduler = with(config, entries.into_iter().chain([longer]));
    assert_eq!(run(&mut scheduler, 0).1, [1, 0, 2]);
}
