//! What a program submits, and what it gets.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trustformers_batching::Priority;

use crate::backend::Output;
use crate::tensor::HostTensor;

/// Names a request within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    /// A name that no other request of this process has.
    #[allow(clippy::new_without_default)] // a default that differs each time would surprise
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What the model reads.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestInput {
    /// For a model that reads text.
    Text {
        /// The text.
        text: String,
        /// Most tokens of it, special tokens included; the rest is cut off. `None`: the model's own limit.
        max_length: Option<usize>,
    },
    /// For a model that reads text: token ids, special tokens included.
    Tokens(Vec<u32>),
    /// For a model that reads tensors: one a declared input, without the batch dimension.
    Tensors(Vec<HostTensor>),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Comes back with the response.
    pub id: RequestId,
    /// What the model reads.
    pub input: RequestInput,
    /// Who goes first.
    pub priority: Priority,
    /// The response's latency counts from here.
    pub submitted_at: Instant,
    /// It is answered or has failed by then. `None`: whenever it is done.
    pub deadline: Option<Instant>,
    /// Comes back with the response; the service does not read it.
    pub metadata: HashMap<String, String>,
}

impl Default for Request {
    /// An empty text.
    fn default() -> Self {
        Self {
            id: RequestId::new(),
            input: RequestInput::Text { text: String::new(), max_length: None },
            priority: Priority::Normal,
            submitted_at: Instant::now(),
            deadline: None,
            metadata: HashMap::new(),
        }
    }
}

/// What the model made of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The request's.
    pub id: RequestId,
    /// One tensor a declared output; for a text model its embedding (`f32`, one dimension).
    pub output: Output,
    /// From [`Request::submitted_at`] until now.
    pub latency: Duration,
    /// The request's.
    pub metadata: HashMap<String, String>,
}
