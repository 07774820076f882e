//! Which device a model runs on, and how many threads a run may use.

use std::ffi::c_char;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device, TchError};

use super::guard::done_or_error;
use super::shim;
use crate::config::DeviceSpec;

unsafe extern "C" {
    fn tfs_team_start(threads: i64, error: *mut c_char, capacity: usize) -> bool;
    fn tfs_team_end();
}

/// A device that was asked for and is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// CUDA cannot be used at all.
    #[error("device \"cuda:{index}\" was asked for, but {reason}")]
    NoCuda {
        /// The device's number.
        index: usize,
        /// Why CUDA cannot be used.
        reason: String,
    },
    /// CUDA can be used, with fewer devices.
    #[error("device \"cuda:{index}\" was asked for, but this machine has {count}, from cuda:0")]
    NoSuchIndex {
        /// The device's number.
        index: usize,
        /// How many there are.
        count: usize,
    },
}

/// The device that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// The first CUDA device when there is one, else the CPU.
    Auto,
    /// The CPU, whatever else there is.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl From<DeviceSpec> for Requested {
    fn from(spec: DeviceSpec) -> Self {
        match spec {
            DeviceSpec::Auto => Self::Auto,
            DeviceSpec::Cpu => Self::Cpu,
            DeviceSpec::Cuda(index) => Self::Cuda(index),
        }
    }
}

/// The device to use for what was asked.
///
/// Unless only the CPU is asked for, this loads LibTorch's CUDA half where an NVIDIA driver is. ATen
/// notes at its first use that there is none, so every device must be selected before any model is loaded.
///
/// # Errors
/// When a CUDA device is asked for and cannot be used.
pub fn select(requested: Requested) -> Result<Device, DeviceError> {
    match (requested, requested != Requested::Cpu && cuda().is_ok()) {
        (Requested::Cpu, _) | (Requested::Auto, false) => Ok(Device::Cpu),
        (Requested::Auto, true) => Ok(if device_count() > 0 { Device::Cuda(0) } else { Device::Cpu }),
        (Requested::Cuda(index), _) => {
            cuda().as_ref().map_err(|reason| DeviceError::NoCuda { index, reason: reason.clone() })?;
            match device_count() {
                0 => Err(DeviceError::NoCuda {
                    index,
                    reason: "its driver is too old for this LibTorch, or shows no device".to_owned(),
                }),
                count if index >= count => Err(DeviceError::NoSuchIndex { index, count }),
                _ => Ok(Device::Cuda(index)),
            }
        }
    }
}

/// The device's name in configuration and answers.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Sets how many threads LibTorch uses for operators called from this thread, and ends its team.
///
/// Each calling thread has its own team of workers, so the sum over instances is what must stay
/// within the cores.
pub fn set_threads(threads: usize) {
    static INTEROP: Once = Once::new();
    // Only `torch.jit.fork` uses these; their pool would have as many threads as there are cores.
    INTEROP.call_once(shim::limit_interop_threads);
    // A thread's first operator takes over the number that any thread set last. Asking first gets that
    // over with; set before, this thread's own number would be lost.
    let _ = tch::get_num_threads();
    // SAFETY: takes no pointer; waits for threads that are asleep.
    unsafe { tfs_team_end() };
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Gives the kernels called from this thread helpers of their own, `threads` with it, and leaves LibTorch's operators
/// one thread. Helpers of LibTorch look for work for some milliseconds before they sleep, or sleep at once when the
/// process has more of them than cores; these do for as long as kernels of a step lie apart.
///
/// # Errors
/// When there are no threads to be had.
pub fn start_team(threads: usize) -> Result<(), TchError> {
    let threads = i64::try_from(threads).unwrap_or(i64::MAX);
    // SAFETY: the call takes no pointer but the error's.
    done_or_error(|error, capacity| unsafe { tfs_team_start(threads, error, capacity) })
}

fn device_count() -> usize {
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}

/// LibTorch's CUDA half, loaded once; or why it cannot be.
fn cuda() -> &'static Result<Library, String> {
    static CUDA: OnceLock<Result<Library, String>> = OnceLock::new();
    CUDA.get_or_init(|| {
        if std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|devices| matches!(devices.trim(), "" | "-1")) {
            return Err("CUDA_VISIBLE_DEVICES hides every device".to_owned());
        }
        // Loading doubles the time to start and triples its memory (118 to 347 MB), for nothing here.
        if !has_driver() {
            return Err("this machine has no NVIDIA driver".to_owned());
        }
        let folder = libtorch_folder().ok_or("the folder of libtorch_cpu.so cannot be found")?;
        let path = folder.join("libtorch_cuda.so");
        if !path.exists() {
            return Err(format!("LibTorch in {} was built without CUDA", folder.display()));
        }
        // A driver without a working library is a broken installation, which "auto" would hide.
        load(&path).inspect_err(|reason| tracing::warn!(%reason, "CUDA cannot be used"))
    })
}

fn load(path: &Path) -> Result<Library, String> {
    // SAFETY: LibTorch's own library, next to the half that is already loaded: its initialisers
    // register CUDA's operators and touch nothing of ours. Global, because libtorch_cuda_linalg.so
    // and others are loaded later and look for its symbols.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| format!("{} cannot be loaded: {error}", path.display()))
}

fn has_driver() -> bool {
    // SAFETY: the driver's library initialises nothing before its cuInit is called.
    Path::new("/dev/nvidiactl").exists() || unsafe { Library::new("libcuda.so.1") }.is_ok()
}

/// Where the libtorch_cpu.so of this process lies.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        line.find('/').map(|at| &line[at..]).filter(|path| path.ends_with("/libtorch_cpu.so"))
    })?;
    Path::new(path).parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_is_found_where_its_libraries_are() {
        tch::set_num_threads(1); // something of libtorch_cpu.so, so that it is linked
        assert!(libtorch_folder().unwrap().join("libc10.so").exists());
    }

    #[test]
    fn without_a_usable_gpu_auto_is_the_cpu_and_cuda_says_why_not() {
        if select(Requested::Auto) != Ok(Device::Cpu) {
            return assert_eq!(select(Requested::Auto), Ok(Device::Cuda(0)));
        }
        let error = select(Requested::Cuda(0)).unwrap_err().to_string();
        assert!(error.starts_with("device \"cuda:0\" was asked for, but "), "{error}");
    }

    #[test]
    fn a_device_beyond_the_last_one_is_refused() {
        let error = select(Requested::Cuda(4000)).unwrap_err().to_string();
        assert!(error.starts_with("device \"cuda:4000\" was asked for, but "), "{error}");
    }

    #[test]
    fn each_thread_has_its_own_number_of_threads() {
        set_threads(2);
        std::thread::spawn(|| set_threads(1)).join().unwrap();
        assert_eq!(tch::get_num_threads(), 2);
    }
}
