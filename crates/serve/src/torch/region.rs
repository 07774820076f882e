//! Tensors of bytes side by side in large mappings.
//!
//! A matrix of a few MiB by itself has hardly a whole large page in it. Side by side, nearly all of their memory is in
//! large pages, and who reads them waits less for addresses.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use memmap2::{Advice, MmapMut, MmapRaw};
use tch::{TchError, Tensor};

use super::over::{ScalarType, tensor_over};

/// What is mapped at a time. Only what is written takes memory.
const MAPPING_BYTES: usize = 256 << 20;

/// That of large pages on x86-64 and, with small pages of 4 KiB, on AArch64.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Where tensors begin: at a line of the caches, for whole vectors.
const LINE_BYTES: usize = 64;

/// Memory for tensors that come and go together: it returns to the system with the last of them.
#[derive(Debug, Default)]
pub struct Region(RefCell<Option<Mapping>>);

#[derive(Debug)]
struct Mapping {
    map: Arc<MmapRaw>,
    used: usize,
}

impl Mapping {
    fn of(bytes: usize) -> Result<Self, TchError> {
        let refused = |reason: String| TchError::Shape(format!("{bytes} bytes for weights: {reason}"));
        let room = bytes.max(MAPPING_BYTES).checked_add(LARGE_PAGE_BYTES);
        let room = room.ok_or_else(|| refused("too many".to_owned()))?;
        let map = MmapMut::map_anon(room).map_err(|error| refused(error.to_string()))?;
        // Only advice.
        drop(map.advise(Advice::HugePage));
        let map = Arc::new(MmapRaw::from(map));
        // The system aligns mappings to small pages only.
        let used = map.as_ptr().align_offset(LARGE_PAGE_BYTES);
        Ok(Self { map, used })
    }

    fn has(&self, bytes: usize) -> bool {
        self.map.len().saturating_sub(self.used) >= bytes
    }
}

impl Region {
    /// Zeros `[bytes]`, of unsigned bytes.
    ///
    /// # Errors
    /// When there is no room for them among the process's addresses.
    pub fn take(&self, bytes: usize) -> Result<Tensor, TchError> {
        let mut current = self.0.borrow_mut();
        let mapping = match current.take() {
            Some(mapping) if mapping.has(bytes) => mapping,
            _ => Mapping::of(bytes)?,
        };
        let Mapping { map, used } = current.insert(mapping);
        // SAFETY: the mapping has room for `bytes` from there on.
        let data = unsafe { map.as_mut_ptr().add(*used) };
        *used = (*used + bytes).next_multiple_of(LINE_BYTES).min(map.len());
        let length =
            i64::try_from(bytes).map_err(|_| TchError::Shape(format!("{bytes} bytes are too many")))?;
        let owner = Arc::into_raw(Arc::clone(map)).cast_mut();
        // SAFETY: nobody else is given these bytes of the mapping, which lives until `release` gives its share of it
        // back. Only on error is `release` not promised to run: that leaks the mapping, which is safe.
        unsafe { tensor_over(data.cast(), &[length], ScalarType::BYTE, release, owner.cast()) }
    }
}

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `owner` came from `Arc::into_raw` in `take`, and LibTorch releases a storage once.
    drop(unsafe { Arc::from_raw(owner.cast_const().cast::<MmapRaw>()) });
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn tensors_of_a_region_lie_side_by_side_and_are_zeros_of_their_own() {
        let region = Region::default();
        let mut first = region.take(1000).unwrap();
        let second = region.take(64).unwrap();
        assert_eq!(second.data_ptr() as usize - first.data_ptr() as usize, 1024);
        assert_eq!(first.data_ptr() as usize % LARGE_PAGE_BYTES, 0);
        let _ = first.fill_(7);
        assert_eq!(first.sum(Kind::Int64).int64_value(&[]), 7000);
        assert_eq!(second.sum(Kind::Int64).int64_value(&[]), 0);
    }

    #[test]
    fn a_tensor_outlives_its_region() {
        let region = Region::default();
        let mut kept = region.take(1 << 20).unwrap();
        drop(region.take(1 << 20).unwrap());
        drop(region);
        let _ = kept.fill_(1);
        assert_eq!(kept.sum(Kind::Int64).int64_value(&[]), 1 << 20);
    }

    #[test]
    fn what_is_larger_than_a_mapping_gets_one_of_its_own() {
        let region = Region::default();
        drop(region.take(64).unwrap());
        let large = region.take(MAPPING_BYTES + 1).unwrap();
        assert_eq!(large.int64_value(&[i64::try_from(MAPPING_BYTES).unwrap()]), 0);
    }

    #[test]
    fn more_than_there_are_addresses_is_an_error() {
        let error = Region::default().take(usize::MAX).unwrap_err().to_string();
        assert!(error.contains("too many"), "{error}");
    }
}
