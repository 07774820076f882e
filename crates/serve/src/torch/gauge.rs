//! What batches allocate, and what it looks like when they cannot.

use std::marker::PhantomData;
use std::sync::Once;

use tch::Device;

unsafe extern "C" {
    fn tfs_memory_install();
    fn tfs_memory_is_counted() -> bool;
    fn tfs_memory_enter();
    fn tfs_memory_leave() -> i64;
    fn tfs_memory_fail_above(bytes: i64);
    fn tfs_device_memory_enter(device: i32) -> i64;
    fn tfs_device_memory_peak(device: i32) -> i64;
    fn tfs_device_memory_free(device: i32) -> i64;
}

/// Makes LibTorch's CPU allocator count for [`Meter`]s, once for the process. Called when a model loads.
pub fn count_allocations() {
    static ONCE: Once = Once::new();
    // SAFETY: called once. LibTorch reads its pointer to the allocator without a lock, and either value
    // of it works: blocks of both are freed by the deleter they were made with.
    ONCE.call_once(|| unsafe { tfs_memory_install() });
}

/// Counts what a batch has LibTorch allocate while it lives, in bytes. Not the memory that MKL and oneDNN
/// keep for themselves, nor that of `torch.jit.fork`'s threads.
///
/// On the CPU what its own thread allocates; on a GPU, by the allocator's own statistics, what all batches on
/// that device allocate meanwhile.
#[derive(Debug)]
pub struct Meter {
    what: Metered,
    /// The count belongs to the thread.
    _not_send: PhantomData<*mut ()>,
}

#[derive(Debug)]
enum Metered {
    Nothing,
    /// What this thread allocates.
    Thread,
    /// What is allocated on a GPU, above what there was.
    Device {
        index: i32,
        before: i64,
    },
}

impl Meter {
    /// Starts to count what a batch on `device` allocates. A thread has one at a time.
    #[must_use]
    pub fn start(device: Device) -> Self {
        let what = match device {
            // SAFETY: reads a pointer that is written before any model runs.
            Device::Cpu if unsafe { tfs_memory_is_counted() } => {
                // SAFETY: registers this thread under a lock; `drop` on this same thread (not Send) ends it.
                unsafe { tfs_memory_enter() }
                Metered::Thread
            }
            Device::Cuda(index) => {
                let index = i32::try_from(index).unwrap_or(i32::MAX);
                // SAFETY: asks the device's allocator, which locks itself.
                match unsafe { tfs_device_memory_enter(index) } {
                    before @ 0.. => Metered::Device { index, before },
                    _ => Metered::Nothing,
                }
            }
            _ => Metered::Nothing,
        };
        Self { what, _not_send: PhantomData }
    }

    /// The most bytes at once since the start, above what there was then; `None` where nothing counts.
    pub fn stop(mut self) -> Option<u64> {
        self.end()
    }

    fn end(&mut self) -> Option<u64> {
        let bytes = match std::mem::replace(&mut self.what, Metered::Nothing) {
            Metered::Nothing => return None,
            // SAFETY: this thread entered and has not left.
            Metered::Thread => unsafe { tfs_memory_leave() },
            // SAFETY: asks the device's allocator, which locks itself.
            Metered::Device { index, before } => (unsafe { tfs_device_memory_peak(index) }) - before,
        };
        Some(u64::try_from(bytes).unwrap_or(0))
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes that a GPU has free; `None` for the CPU, and for a GPU that is not there.
pub fn free_memory(device: Device) -> Option<u64> {
    let Device::Cuda(index) = device else { return None };
    let index = i32::try_from(index).ok()?;
    // SAFETY: takes a number; what is no device is answered with -1.
    u64::try_from(unsafe { tfs_device_memory_free(index) }).ok()
}

/// For tests of what happens without memory: an allocation that would bring a metered batch above `bytes`
/// fails as it does when the system has no more. `None` ends it.
pub fn fail_above(bytes: Option<u64>) {
    let bytes = bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // SAFETY: stores a number.
    unsafe { tfs_memory_fail_above(bytes) }
}

/// What allocators say that have no more memory. Exceptions lose their class on the way out of a script's
/// interpreter and of tch, so the words are what is left to tell them by.
const OUT_OF_MEMORY: [&str; 5] = [
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "std::bad_alloc",
];

/// Whether LibTorch's error `text` says that memory could not be had.
pub fn is_out_of_memory(text: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    const MIB: i64 = 1 << 20;

    fn tensor(bytes: i64) -> Tensor {
        Tensor::f_empty([bytes], (Kind::Uint8, Device::Cpu)).unwrap()
    }

    /// The peak of `work`, in whole MiB.
    fn peak(work: impl FnOnce()) -> u64 {
        count_allocations();
        let meter = Meter::start(Device::Cpu);
        work();
        (meter.stop().unwrap() + (1 << 19)) >> 20
    }

    #[test]
    fn the_peak_is_what_lives_at_once() {
        let work = || {
            drop(tensor(2 * MIB));
            let three = tensor(3 * MIB);
            drop(tensor(MIB));
            drop(three);
            drop(tensor(2 * MIB));
        };
        assert_eq!(peak(work), 4);
        assert_eq!(peak(|| {}), 0, "each starts anew");
    }

    #[test]
    fn what_there_was_before_does_not_count_and_freeing_it_makes_room() {
        count_allocations();
        let before = tensor(4 * MIB);
        let mut kept = None;
        assert_eq!(peak(|| kept = Some(tensor(2 * MIB))), 2);
        let work = || {
            drop(before);
            drop(tensor(5 * MIB));
        };
        assert_eq!(peak(work), 1);
        drop(kept);
    }

    #[test]
    fn blocks_freed_by_another_thread_leave_its_count_alone() {
        count_allocations();
        let made = tensor(3 * MIB);
        std::thread::spawn(move || drop(made)).join().unwrap();
        let work = || {
            let tensors = std::thread::spawn(|| tensor(8 * MIB)).join().unwrap();
            drop(tensor(MIB));
            drop(tensors);
        };
        assert_eq!(peak(work), 1);
    }

    #[test]
    fn threads_count_apart() {
        let peaks: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=4u32)
                .map(|size| {
                    scope.spawn(move || {
                        let once = || peak(|| drop([tensor(i64::from(size) * MIB), tensor(MIB)]));
                        (0..200).map(|_| once()).max().unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(peaks, [2, 3, 4, 5]);
    }

    #[test]
    fn a_gpu_that_is_not_there_has_no_figures() {
        assert_eq!(Meter::start(Device::Cuda(0)).stop(), None);
    }

    #[test]
    fn only_words_of_an_allocator_are_a_want_of_memory() {
        assert!(is_out_of_memory("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you"));
        assert!(is_out_of_memory("CUDA out of memory. Tried to allocate 20.00 GiB."));
        assert!(is_out_of_memory("std::bad_alloc"));
        assert!(!is_out_of_memory("The size of tensor a (2) must match the size of tensor b (3)"));
        assert!(!is_out_of_memory("RuntimeError: the memory of an elephant"));
    }
}
