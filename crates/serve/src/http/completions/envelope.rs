//! What OpenAI's replies and their parts say of themselves, whatever they are replies to.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::options::Options;
use super::texts::Usage;
use crate::http::event_stream::Events;

/// What all that is said in reply to one request has in common.
pub(super) struct Envelope {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// Which texts have begun.
    begun: Vec<bool>,
}

/// A reply, or a part of one.
#[derive(Serialize)]
pub(super) struct Reply<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl Envelope {
    /// Of a reply that is made now.
    pub(super) fn new(id: String, model: &str, options: &Options) -> Self {
        Self {
            id,
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            model: model.to_owned(),
            include_usage: options.include_usage,
            begun: Vec::new(),
        }
    }

    /// Puts choices into it.
    pub(super) fn around<T>(
        &self,
        object: &'static str,
        choices: Vec<T>,
        usage: Option<Usage>,
    ) -> Reply<'_, T> {
        Reply { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }

    /// Ends a stream with its usage, where that was asked for.
    pub(super) fn end(&self, object: &'static str, usage: Usage, events: &mut Events) {
        if self.include_usage {
            events.push(&self.around(object, Vec::<()>::new(), Some(usage)));
        }
    }

    /// Whether a text has begun.
    pub(super) fn has_begun(&self, index: usize) -> bool {
        self.begun.get(index).is_some_and(|begun| *begun)
    }

    /// Marks a text as begun; whether it had not.
    pub(super) fn begins(&mut self, index: usize) -> bool {
        if self.begun.len() <= index {
            self.begun.resize(index + 1, false);
        }
        !std::mem::replace(&mut self.begun[index], true)
    }
}
