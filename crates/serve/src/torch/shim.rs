//! Safe faces of the C++ shim.

use std::ffi::c_void;
use std::marker::PhantomData;

unsafe extern "C" {
    fn tfs_inference_mode_enter() -> *mut c_void;
    fn tfs_inference_mode_leave(guard: *mut c_void);
    fn tfs_limit_interop_threads();
}

/// Gives `torch.jit.fork` one thread in this process, unless its pool has started already.
pub(super) fn limit_interop_threads() {
    // SAFETY: sets a number under LibTorch's own lock, and catches its exception.
    unsafe { tfs_limit_interop_threads() }
}

/// While it lives, its thread's tensors record no history and no versions: `c10::InferenceMode`.
#[derive(Debug)]
pub struct InferenceMode {
    guard: *mut c_void,
    /// The mode is thread-local, so the guard must be dropped on its own thread.
    _not_send: PhantomData<*mut ()>,
}

impl InferenceMode {
    /// Enters inference mode on this thread.
    #[must_use]
    pub fn enter() -> Self {
        // SAFETY: allocates a guard and touches thread-local state only.
        Self { guard: unsafe { tfs_inference_mode_enter() }, _not_send: PhantomData }
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: `guard` came from `enter` on this same thread (not Send) and is freed once.
        unsafe { tfs_inference_mode_leave(self.guard) }
    }
}

/// Ends the process at once, for a program that has nothing left to do: LibTorch's static destructors
/// take about a second. Output that is still buffered is lost.
pub fn exit_now(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: i32) -> !;
    }
    // SAFETY: takes no pointer, runs no code of the process, never returns.
    unsafe { _exit(i32::from(code)) }
}
