//! Who must not wait for whom: bounds on ageing, priorities and clients' shares, over random overloads.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use crate::queue::OVERDUE_SHARE;
use crate::{
    ClientId, Entry, InstanceId, Next, Priority, Scheduler, SchedulerConfig, ShapeKey, Ticket, Time,
};

const AGEING: u64 = 20;

/// What arrives before one batch leaves: how much time passes, and who comes.
type Turn = (u64, Vec<(Priority, u64, u64)>);

fn turns(shapes: u64) -> impl Strategy<Value = Vec<Turn>> {
    let priorities =
        prop::sample::select(vec![Priority::Critical, Priority::High, Priority::High, Priority::Low]);
    let arrivals = prop::collection::vec((priorities, 0_u64..3, 0..shapes), 0..6);
    prop::collection::vec((0_u64..4, arrivals), 1..80)
}

/// The batches of an overload, each entry with how many places had been given before its own.
struct Overload {
    scheduler: Scheduler,
    waiting: BTreeMap<Ticket, Entry>,
    /// Of each overdue entry: the places given, and the overdue before it, when it became that.
    overdue: BTreeMap<Ticket, (u64, u64)>,
    places: u64,
    tickets: u64,
    now: Time,
}

impl Overload {
    fn new(batch: u32) -> Self {
        let scheduler = Scheduler::new(SchedulerConfig {
            max_batch_size: batch,
            max_wait: Duration::ZERO,
            ageing: Some(Duration::from_nanos(AGEING)),
            ..SchedulerConfig::default()
        });
        let (waiting, overdue) = (BTreeMap::new(), BTreeMap::new());
        Self { scheduler, waiting, overdue, places: 0, tickets: 0, now: Time::ZERO }
    }

    fn is_late(&self, entry: &Entry) -> bool {
        self.now.since(entry.arrived) >= Duration::from_nanos(AGEING)
    }

    /// Time passes, entries come, and one batch leaves, which is returned.
    fn turn(&mut self, (ticks, arrivals): &Turn) -> Vec<Entry> {
        self.now = self.now + Duration::from_nanos(*ticks);
        for &(priority, client, shape) in arrivals {
            let entry = Entry {
                ticket: Ticket(self.tickets),
                client: ClientId(client),
                shape: ShapeKey(shape),
                cost: 1,
                priority,
                arrived: self.now,
                ..Entry::default()
            };
            self.tickets += 1;
            self.scheduler.submit(self.now, entry.clone()).unwrap();
            self.waiting.insert(entry.ticket, entry);
        }
        let late: Vec<_> = self.waiting.values().filter(|entry| self.is_late(entry)).collect();
        for (before, entry) in late.into_iter().enumerate() {
            self.overdue.entry(entry.ticket).or_insert((self.places, before as u64));
        }
        match self.scheduler.plan(self.now, InstanceId(0), u64::MAX).next {
            Next::Run(batch) => {
                for entry in &batch.entries {
                    self.waiting.remove(&entry.ticket);
                }
                batch.entries
            }
            _ => Vec::new(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_overdue_entry_leaves_within_its_places(turns in turns(3), batch in 1_u32..20, shapes in 1_u64..4) {
        let mut world = Overload::new(batch);
        // A batch under way is filled before a place goes to another shape.
        let each = u64::from(OVERDUE_SHARE) + if shapes > 1 { u64::from(batch) } else { 0 };
        // Once nobody comes, the rest must leave as soon.
        for (ticks, arrivals) in turns.into_iter().chain(vec![(1, Vec::new()); 400]) {
            let arrivals = arrivals.into_iter().map(|(priority, client, shape)| (priority, client, shape % shapes));
            for entry in world.turn(&(ticks, arrivals.collect())) {
                world.places += 1;
                if let Some((since, before)) = world.overdue.remove(&entry.ticket) {
                    let given = world.places - since;
                    prop_assert!(given <= each * (before + 1), "#{} waited for {given} places", entry.ticket.0);
                }
            }
        }
        prop_assert!(world.waiting.is_empty());
    }

    #[test]
    fn a_lower_priority_leaves_before_a_higher_one_only_when_overdue(turns in turns(2), batch in 1_u32..20) {
        let mut world = Overload::new(batch);
        for turn in &turns {
            let left = world.turn(turn);
            for (place, entry) in left.iter().enumerate() {
                let behind = left[place + 1..].iter().chain(world.waiting.values());
                let passed = behind
                    .filter(|other| other.shape == entry.shape && other.priority > entry.priority)
                    .count();
                prop_assert!(passed == 0 || world.is_late(entry), "#{} passed {passed}", entry.ticket.0);
            }
        }
    }

    #[test]
    fn the_service_of_two_backlogged_clients_differs_by_one_request_at_most(
        costs in prop::collection::vec(prop::collection::vec(0_u32..20, 1..60), 2..5),
        batch in 1_u32..9,
    ) {
        let mut scheduler = Scheduler::new(SchedulerConfig { max_batch_size: batch, ..SchedulerConfig::default() });
        let mut ticket = 0;
        for (client, costs) in costs.iter().enumerate() {
            for &cost in costs {
                let client = ClientId(client as u64);
                let entry = Entry { ticket: Ticket(ticket), client, cost, ..Entry::default() };
                scheduler.submit(Time::ZERO, entry).unwrap();
                ticket += 1;
            }
        }
        let dearest = u64::from(costs.iter().flatten().copied().max().unwrap_or(0).max(1));
        let mut had: Vec<_> = costs.iter().map(|costs| (0_u64, costs.len())).collect();
        while let Next::Run(batch) = scheduler.plan(Time::ZERO, InstanceId(0), u64::MAX).next {
            for entry in batch.entries {
                let (service, left) = &mut had[entry.client.0 as usize];
                (*service, *left) = (*service + u64::from(entry.cost.max(1)), *left - 1);
                let backlogged = || had.iter().filter(|(_, left)| *left > 0).map(|(service, _)| *service);
                let apart = backlogged().max().unwrap_or(0) - backlogged().min().unwrap_or(0);
                prop_assert!(apart <= dearest, "{apart} apart: {had:?}");
            }
        }
    }
}
