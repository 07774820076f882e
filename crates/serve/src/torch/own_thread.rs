//! Work whose threads end with it.

use std::panic::resume_unwind;
use std::thread;

/// Runs `work` on a thread of its own and waits for it; its panic becomes the caller's.
///
/// libgomp gives each thread that computes in parallel helpers of its own, which live as long as that thread. While a
/// process has more of them than cores, all sleep as soon as a loop ends and are woken for the next, and a decoder's
/// step of a hundred loops takes a fifth longer. So what is computed once is not computed on a thread that stays, such
/// as those of a runtime.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // A join, as the end of a scope does not wait for helpers.
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
