//! Models that the program around the server runs.
//!
//! The server reads a request as far as its items, queues them, and counts, words and limits them as those of
//! any other model. What an item means only its [`Host`] knows, which takes calls from the queue on threads of
//! its own, and answers each with a document in the form that its client reads.

mod call;
mod feed;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use trustformers_batching::Batcher;

pub use self::call::{Answer, Call, Document};
pub use self::feed::{Feed, Full, Stream};
pub(crate) use self::feed::{Next, feed};

/// Calls that wait to be taken, one by one, and that run.
pub type Calls = Batcher<Call, Answer>;

/// A model that the program around the server runs.
pub trait Host: Send + Sync + 'static {
    /// What it reads and writes, for those who ask.
    fn interface(&self) -> &Interface;

    /// How many calls may run at once; instances of [`Calls`] are numbered below it.
    fn concurrency(&self) -> u32;

    /// Begins to take calls, until `calls` is closed and empty.
    ///
    /// # Errors
    /// Why it cannot.
    fn start(&self, calls: Arc<Calls>) -> Result<Box<dyn Crew>, String>;
}

/// Who takes calls.
pub trait Crew: Send + Sync {
    /// Nothing new comes: who rests is to look and end.
    fn close(&self);

    /// Waits until nobody does any more.
    fn join(&self);
}

/// What a model reads and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// What kind of model it is, in one word.
    pub format: &'static str,
    /// The JSON schema of each input, by name: of several, an item is an object.
    pub inputs: Vec<(String, Value)>,
    /// The JSON schema of the result, or of one piece of it.
    pub output: Value,
    /// Whether the result comes piece by piece.
    pub streaming: bool,
    /// Whether it may read the body around an item instead, with fields of its own there.
    pub reads_body: bool,
}

/// A hosted model with the name that clients know it by.
#[derive(Clone)]
pub struct Hosted {
    /// The model's name.
    pub name: String,
    /// The version's.
    pub version: String,
    /// Who runs it.
    pub host: Arc<dyn Host>,
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hosted({} {})", self.name, self.version)
    }
}
