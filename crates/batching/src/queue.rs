//! Waiting entries: one ordered group a shape, and totals for admission.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::entry::{Entry, ShapeKey, Ticket, Urgency};
use crate::time::Time;

/// The waiting entries of one shape; never empty while the queue holds it.
#[derive(Debug, Default)]
pub struct Group {
    by_urgency: BTreeMap<Urgency, Entry>,
    /// Arrival order, which priorities and deadlines hide from `by_urgency`: windows count from it.
    by_arrival: BTreeSet<(Time, Ticket)>,
    cost: u64,
}

impl Group {
    /// Entries waiting.
    pub fn len(&self) -> usize {
        self.by_urgency.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.by_urgency.is_empty()
    }

    /// The sum of the entries' costs.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// When the longest-waiting entry came; [`Time::MAX`] for an empty group.
    pub fn oldest_arrival(&self) -> Time {
        self.by_arrival.first().map_or(Time::MAX, |&(arrived, _)| arrived)
    }

    /// The urgency of the entry that leaves first; `None` for an empty group.
    pub fn head(&self) -> Option<&Urgency> {
        self.by_urgency.first_key_value().map(|(urgency, _)| urgency)
    }

    fn insert(&mut self, entry: Entry) {
        self.cost += u64::from(entry.cost);
        self.by_arrival.insert((entry.arrived, entry.ticket));
        self.by_urgency.insert(entry.urgency(), entry);
    }

    fn remove(&mut self, urgency: &Urgency) -> Option<Entry> {
        let entry = self.by_urgency.remove(urgency)?;
        self.cost -= u64::from(entry.cost);
        self.by_arrival.remove(&(entry.arrived, entry.ticket));
        Some(entry)
    }
}

/// All waiting entries of one model.
#[derive(Debug, Default)]
pub struct Queue {
    groups: HashMap<ShapeKey, Group>,
    places: HashMap<Ticket, (ShapeKey, Urgency)>,
    cost: u64,
}

impl Queue {
    /// Entries waiting, over all shapes.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The sum of the waiting entries' costs.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Groups with their shapes, in no order.
    pub fn groups(&self) -> impl Iterator<Item = (ShapeKey, &Group)> {
        self.groups.iter().map(|(&shape, group)| (shape, group))
    }

    /// Adds an entry whose ticket is not in the queue.
    pub fn push(&mut self, entry: Entry) {
        self.cost += u64::from(entry.cost);
        self.places.insert(entry.ticket, (entry.shape, entry.urgency()));
        self.groups.entry(entry.shape).or_default().insert(entry);
    }

    /// Takes one entry out, wherever it stands.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let (shape, urgency) = self.places.remove(&ticket)?;
        let group = self.groups.get_mut(&shape)?;
        let entry = group.remove(&urgency)?;
        if group.is_empty() {
            self.groups.remove(&shape);
        }
        self.cost -= u64::from(entry.cost);
        Some(entry)
    }

    /// Takes the most urgent entries of `shape`, in order, while both limits hold.
    ///
    /// It stops at the first that does not fit rather than pass it over: a later one must not overtake it.
    pub fn take(&mut self, shape: ShapeKey, max_entries: usize, max_cost: u64) -> Vec<Entry> {
        let mut taken = Vec::new();
        let Some(group) = self.groups.get_mut(&shape) else { return taken };
        let mut cost = 0;
        while taken.len() < max_entries {
            let Some(first) = group.by_urgency.first_entry() else { break };
            if cost + u64::from(first.get().cost) > max_cost {
                break;
            }
            let urgency = *first.key();
            let Some(entry) = group.remove(&urgency) else { break };
            cost += u64::from(entry.cost);
            self.places.remove(&entry.ticket);
            taken.push(entry);
        }
        if group.is_empty() {
            self.groups.remove(&shape);
        }
        self.cost -= cost;
        taken
    }

    #[cfg(test)]
    pub(crate) fn holds_nothing(&self) -> bool {
        self.groups.is_empty() && self.places.is_empty() && self.cost == 0
    }
}
