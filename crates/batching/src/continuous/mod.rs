//! Token-level ("continuous") scheduling of language models: every step runs whoever can run.
//!
//! There are no phases. A step has one budget of tokens: every sequence that generates takes one, and what is
//! left goes to prompts, in chunks as large as keeps the step within the time that generating sequences may
//! take for a token. Keys and values lie in fixed-size blocks that sequences share where they begin alike.
//!
//! Invariants, those about absences first:
//! - Nothing here knows a tensor, a text or a clock; token ids are all it sees of a request.
//! - At most one step runs at a time. What is freed meanwhile (a caller left) may be planned for the next one, which
//!   nobody runs before this one has ended.
//! - While a step runs nobody is preempted, and what it computes is found by nobody.
//! - A block that more than one sequence holds, or that the prefix cache knows, is never written.
//! - Every sequence of an admitted request ends exactly once; only one whose caller left ends unsaid.
//! - What was admitted fits the pool alone, so the one that is preempted last always goes on.
//!
//! Code map:
//! - [`block_pool`]: who holds which block, and which are free; [`prefix_cache`]: what full blocks hold
//! - [`sequence`]: requests, and the sequences they become; [`step`]: what the model is asked, what it says
//! - `step_time`: how long a step takes, the only such estimate; `outlook`: how many blocks those that run
//!   will need at most at once
//! - [`scheduler`]: submit, cancel, schedule, plan ahead, commit, expire; [`stats`]: what it did
//!
//! Sources: iteration-level scheduling is Orca's (Yu et al., OSDI 2022), paged blocks vLLM's (Kwon et al.,
//! SOSP 2023), chunks of prompts beside decodes Sarathi's (Agrawal et al., OSDI 2024).

pub mod block_pool;
pub(crate) mod outlook;
pub mod prefix_cache;
pub mod scheduler;
pub mod sequence;
pub mod stats;
pub mod step;
pub(crate) mod step_time;

pub use block_pool::{BlockCounts, BlockId, BlockPool};
pub use prefix_cache::PrefixCache;
pub use scheduler::{Admitted, ContinuousConfig, Refusal, Scheduled, Scheduler};
pub use sequence::{Deadlines, End, Ended, Request, RequestId, SequenceId};
pub use stats::Stats;
pub use step::{StepId, StepOutcome, StepPlan, Work};
