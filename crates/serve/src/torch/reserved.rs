//! Tensors of zeros that take memory only as they are written.

use std::ffi::c_void;

use memmap2::{Advice, MmapMut};
use tch::{Kind, TchError, Tensor};

use super::over::{ScalarType, tensor_over};

/// Zeros in host memory, of which the system gives a page when it is first touched.
///
/// # Errors
/// When there is no room for it among the process's addresses.
pub fn zeros(shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    let refused = |reason: String| TchError::Shape(format!("zeros of {shape:?}: {reason}"));
    let element = ScalarType::of(kind)?;
    let elements = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(usize::try_from(size).ok()?));
    let bytes = elements.and_then(|elements| elements.checked_mul(kind.elt_size_in_bytes()));
    let bytes = bytes.ok_or_else(|| refused("too many".to_owned()))?;
    let mut map = MmapMut::map_anon(bytes.max(1)).map_err(|error| refused(error.to_string()))?;
    // Attention reads far apart: with large pages it waits less for addresses. Only advice.
    drop(map.advise(Advice::HugePage));
    let data = map.as_mut_ptr();
    let owner = Box::into_raw(Box::new(map));
    // SAFETY: the mapping holds as many elements, aligned to pages, and lives until `release` gives it back. Only on
    // error is `release` not promised to run: that leaks a mapping of which no page was touched, which is safe.
    unsafe { tensor_over(data.cast(), shape, element, release, owner.cast()) }
}

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `owner` came from `Box::into_raw` in `zeros`, and LibTorch releases a storage once.
    drop(unsafe { Box::from_raw(owner.cast::<MmapMut>()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn zeros_take_memory_as_they_are_written() {
        let before = resident();
        let tensor = zeros(&[1 << 20, 256], Kind::Float).unwrap();
        assert!(resident() < before + (64 << 20), "a gigabyte was only reserved");
        assert_eq!(tensor.double_value(&[1 << 19, 3]), 0.0);
        let _ = tensor.select(0, 5).fill_(2.0);
        assert_eq!(tensor.double_value(&[5, 255]), 2.0);
    }

    #[test]
    fn more_than_there_are_addresses_is_an_error() {
        let error = zeros(&[i64::MAX, 8], Kind::Float).unwrap_err().to_string();
        assert!(error.contains("too many"), "{error}");
    }
}
