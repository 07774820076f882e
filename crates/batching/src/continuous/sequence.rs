//! Requests, and the sequences of tokens they become.

use super::block_pool::BlockId;
use super::prefix_cache::{ChainHash, Parent};
use crate::entry::{ClientId, Priority};
use crate::time::Time;

/// Names one admitted request; issued in submission order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one sequence of a request (a request with n = 2 has two); issued in submission order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens that each sequence generates; at least one.
    pub max_tokens: u32,
    /// Sequences that go on from the prompt, each on its own; at least one.
    pub sequences: u32,
    /// First in the order of those that wait, and last to be preempted.
    pub priority: Priority,
    /// Whom it came from: inside a priority, clients take turns.
    pub client: ClientId,
    /// Requests share cached blocks only with those of the same salt.
    pub salt: Option<u64>,
    /// Whether the logits of every token of the prompt are wanted: none of it is then shared from the cache, as they
    /// have to be computed.
    pub scores_prompt: bool,
    /// When it is given up.
    pub deadlines: Deadlines,
}

/// When a request is given up; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadlines {
    /// It must have begun to run.
    pub queue: Option<Time>,
    /// Its first token must have been drawn.
    pub first_token: Option<Time>,
    /// All of it must have ended.
    pub total: Option<Time>,
}

impl Deadlines {
    /// The first of them; `None` without any.
    pub fn soonest(&self) -> Option<Time> {
        [self.queue, self.first_token, self.total].into_iter().flatten().min()
    }
}

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// The engine said so with its last token.
    Stopped,
    /// It generated as many tokens as it may.
    Length,
    /// The engine reported that it failed.
    Failed,
    /// Its queue deadline passed before it ran.
    ExpiredInQueue,
    /// The deadline of its first token passed before that was drawn.
    ExpiredFirstToken,
    /// The deadline of the whole request passed.
    ExpiredTotal,
}

impl End {
    /// Every end, in the order of the variants.
    pub const ALL: [End; 6] = [
        End::Stopped,
        End::Length,
        End::Failed,
        End::ExpiredInQueue,
        End::ExpiredFirstToken,
        End::ExpiredTotal,
    ];

    /// How, in a word; part of the metrics' interface.
    pub const fn name(self) -> &'static str {
        match self {
            End::Stopped => "stopped",
            End::Length => "length",
            End::Failed => "failed",
            End::ExpiredInQueue => "expired_in_queue",
            End::ExpiredFirstToken => "expired_first_token",
            End::ExpiredTotal => "expired_total",
        }
    }
}

/// A sequence that ended; said once of each, unless its caller left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Whose sequence it was.
    pub request: RequestId,
    /// Which.
    pub sequence: SequenceId,
    /// How.
    pub end: End,
    /// Whether it was the last of its request.
    pub last: bool,
    /// Tokens of the request's prompt that were found in the prefix cache, when it first ran.
    pub cached_tokens: u32,
}

/// Blocks of `block_size` that `tokens` tokens lie in.
pub(super) fn blocks_for(tokens: u64, block_size: u32) -> u64 {
    tokens.div_ceil(u64::from(block_size))
}

/// Tokens whose keys and values a sequence holds when it ends: the last one is drawn and never fed.
pub(super) fn most_fed(prompt: usize, max_tokens: u32) -> u64 {
    prompt as u64 + u64::from(max_tokens) - 1
}

/// Where a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the queue, for its first step.
    Waiting,
    /// It has a place in steps, and blocks once it was in one.
    Running,
    /// It lost its place and its blocks at this instant, and waits for others.
    Preempted(Time),
}

/// A sequence that waits, runs or was preempted; a fork is one from its first token on.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) request: RequestId,
    pub(super) state: State,
    /// The prompt, and what was generated.
    pub(super) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// How many of the prompt's, from the first, need no logits, or none again; all where none are wanted.
    pub(super) scored: usize,
    /// How many of them lie in the KV cache.
    pub(super) computed: usize,
    /// Where they lie.
    pub(super) blocks: Vec<BlockId>,
    /// The hashes of full blocks, as far as they were asked for; kept over a preemption.
    pub(super) chain: Vec<ChainHash>,
    /// How many of its blocks, from the first, the prefix cache knows.
    pub(super) known: usize,
    /// How many of its blocks, from the first, were another's when it began.
    pub(super) shared: usize,
    pub(super) salt: Option<u64>,
    pub(super) max_tokens: u32,
    /// Sequences that will begin where its prompt ends.
    pub(super) forks: u32,
    /// Its request's.
    pub(super) priority: Priority,
    /// What protects it, while it runs, from being preempted: its priority, or more if it waited long.
    pub(super) rank: Priority,
    /// Tokens that it feeds in the step that runs.
    pub(super) fed: usize,
    /// Tokens that it feeds in the step that is being planned.
    pub(super) planned: usize,
    /// Whether it was ever preempted.
    pub(super) resumed: bool,
}

impl Sequence {
    /// Position of the first token that the step after the one that runs may feed.
    pub(super) fn start(&self) -> usize {
        self.computed + self.fed
    }

    /// Whether the step that runs draws a token for it.
    pub(super) fn draws(&self) -> bool {
        self.fed > 0 && self.start() == self.tokens.len()
    }

    /// Tokens for the step after the one that runs, the one that this draws included; at least one while it lives.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() + usize::from(self.draws()) - self.start()
    }

    /// Whether the step that runs is its last, or lets others begin with it: it is not known to go on as it is.
    pub(super) fn is_open(&self) -> bool {
        self.draws() && (self.allowed() == 1 || self.forks > 0)
    }

    /// Whether feeding one token gives the next.
    pub(super) fn decodes(&self) -> bool {
        self.pending() == 1
    }

    pub(super) fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt) as u32
    }

    /// Tokens that it may still generate.
    pub(super) fn allowed(&self) -> u32 {
        self.max_tokens - self.generated()
    }

    /// Whether the tokens before position `end` may be another's work: not where their logits are wanted.
    pub(super) fn may_share(&self, end: usize) -> bool {
        self.scored == self.prompt || end <= self.scored
    }

    /// Sequences that it stands for: itself, and those that begin where its prompt ends.
    pub(super) fn places(&self) -> u32 {
        1 + self.forks
    }

    /// The hash of full block `index`.
    pub(super) fn hash(&mut self, index: usize, block_size: usize) -> ChainHash {
        while self.chain.len() <= index {
            let last = self.chain.last().copied().unwrap_or_else(|| ChainHash::root(self.salt));
            let start = self.chain.len() * block_size;
            self.chain.push(last.then(&self.tokens[start..start + block_size]));
        }
        self.chain[index]
    }

    /// What comes before block `index`.
    pub(super) fn parent(&self, index: usize) -> Parent {
        index.checked_sub(1).map_or(Parent::Root(self.salt), |last| Parent::Block(self.blocks[last]))
    }
}
