//! What the scheduler knows of a request: never its payload.

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Names one admitted request; issued in submission order, so a smaller ticket came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
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

/// Entries that may share a batch: those of one shape, and of one bucket where lengths are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GroupKey {
    /// The entries' shape.
    pub shape: ShapeKey,
    /// The greatest length in the group; 0: any.
    pub bound: u32,
}

/// Names whom a request came from, for fair sharing; 0 for a caller without a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

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

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// Most urgent first.
    pub const DESCENDING: [Priority; Priority::COUNT] =
        [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    /// Its name in requests, settings and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
            Priority::Critical => "critical",
        }
    }
}

/// A request as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// The caller's name for it in every later call; unique among live entries.
    pub ticket: Ticket,
    /// Whom it came from: inside a priority, clients take turns.
    pub client: ClientId,
    /// What it adds to a batch's cost: tokens, or 1 where a request is one item.
    pub cost: u32,
    /// Its length where the model pads a batch to its longest; 0 where nothing is padded.
    pub seq_len: u32,
    /// Bytes of its payload while it waits.
    pub bytes: u64,
    /// Keeps inputs apart that cannot be stacked.
    pub shape: ShapeKey,
    /// First in the queue's order.
    pub priority: Priority,
    /// Last in the queue's order, after the clients' turns; past it the entry is answered as expired.
    /// `None`: never.
    pub deadline: Option<Time>,
    /// When it was submitted; its batching window counts from here.
    pub arrived: Time,
}

impl Entry {
    /// When it must have ended; [`Time::MAX`] for never.
    pub fn due(&self) -> Time {
        self.deadline.unwrap_or(Time::MAX)
    }
}
