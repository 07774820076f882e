//! What the scheduler knows of a request: never its payload.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Names one admitted request; issued in submission order, so a smaller ticket came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);

/// Names one planned batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub u64);

/// Names one instance of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

/// Entries share a batch only when their keys are equal: equal keys mean inputs that can be stacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShapeKey(pub u64);

/// Entries that may share a batch: equal shape key and equal length bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GroupKey {
    /// Keeps inputs apart that cannot be stacked.
    pub shape: ShapeKey,
    /// The longest sequence of the length bucket, in tokens; 0: any length.
    pub bound: u32,
}

/// How urgent a request is; a higher one leaves before a lower one of the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Work that can wait for everything else.
    Low,
    /// What a request has that says nothing.
    #[default]
    Normal,
    /// Before normal work.
    High,
    /// Before everything else.
    Critical,
}

/// A request as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The caller's name for it in every later call; unique among live entries.
    pub ticket: Ticket,
    /// What it adds to a batch's cost: tokens, or 1 where a request is one item.
    pub cost: u32,
    /// Keeps inputs apart that cannot be stacked.
    pub shape: ShapeKey,
    /// First in the queue's order.
    pub priority: Priority,
    /// Second in the queue's order; past it the entry is answered as expired. `None`: never.
    pub deadline: Option<Time>,
    /// When it was submitted; its batching window counts from here.
    pub arrived: Time,
}

/// The order in which entries of one shape leave: priority, then earliest deadline, then first come.
pub type Urgency = (Reverse<Priority>, Time, Ticket);

impl Entry {
    /// Its place in the order; a smaller urgency leaves first.
    pub fn urgency(&self) -> Urgency {
        (Reverse(self.priority), self.deadline.unwrap_or(Time::MAX), self.ticket)
    }
}
