//! The memory of models that come and go: what is freed returns to the system.

use parking_lot::Mutex;

unsafe extern "C" {
    fn tfs_keep_freed_memory(keep: bool);
    fn tfs_return_freed_memory();
}

/// How many models are loading or unloading in this process. Of the process and not of a server, as what it
/// decides is the process's too: how its `malloc` treats large blocks.
static TURNING: Mutex<usize> = Mutex::new(0);

/// A model is loading or unloading while it lives. At its end, which takes some milliseconds, what the
/// process's allocators keep of freed memory goes back to the system.
///
/// Meanwhile, weights get mappings of their own, which end when they are freed; what a running model computes
/// does too, which is slower. Otherwise blocks that a model frees are kept for its next batch.
#[derive(Debug)]
pub struct Turnover(());

impl Turnover {
    /// Begins one; several may overlap.
    #[must_use]
    pub fn begin() -> Self {
        let mut turning = TURNING.lock();
        *turning += 1;
        if *turning == 1 {
            // SAFETY: takes no pointer; sets numbers under the lock of glibc's allocator.
            unsafe { tfs_keep_freed_memory(false) };
        }
        Self(())
    }
}

impl Drop for Turnover {
    fn drop(&mut self) {
        // SAFETY: takes no pointer; the allocators lock what they look at.
        unsafe { tfs_return_freed_memory() };
        let mut turning = TURNING.lock();
        *turning -= 1;
        if *turning == 0 {
            // SAFETY: as in `begin`.
            unsafe { tfs_keep_freed_memory(true) };
        }
    }
}
