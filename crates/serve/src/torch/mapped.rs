//! Tensors that read a mapped file in place.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use tch::{Kind, TchError, Tensor};

use super::over::{ScalarType, tensor_over};

/// A file in memory, read on demand and dropped again by the kernel when memory is short.
#[derive(Debug, Clone)]
pub struct MappedFile {
    map: Arc<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`. The file must not be changed in place while it is mapped; replace it
    /// by renaming instead.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a private mapping; that nobody truncates a model's file in place is documented.
        let map = unsafe { MmapOptions::new().map_copy_read_only(&file) }?;
        Ok(Self { map: Arc::new(map) })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A CPU tensor over the bytes from `offset` on, which keeps the mapping alive. Its memory is
    /// read-only: an operation in place on it ends the process. Bytes that are not aligned for
    /// `kind` are copied.
    ///
    /// # Errors
    /// When the file ends before the tensor does.
    pub fn tensor(&self, offset: usize, shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
        let element = ScalarType::of(kind)?;
        let elements: i64 = shape.iter().product();
        let length = usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(kind.elt_size_in_bytes());
        let bytes = offset
            .checked_add(length)
            .and_then(|end| self.map.get(offset..end))
            .ok_or_else(|| TchError::Shape(format!("{shape:?} at byte {offset} is outside the file")))?;
        if bytes.as_ptr().align_offset(kind.elt_size_in_bytes()) != 0 {
            return Tensor::f_from_data_size(bytes, shape, kind);
        }
        let owner = Arc::into_raw(Arc::clone(&self.map));
        // SAFETY: the bytes hold `elements` of `kind`, aligned, and live until `release` gives back
        // the reference that `owner` is. Only on error is `release` not promised to run: that leaks
        // one reference to a mapping, which is safe.
        unsafe {
            tensor_over(bytes.as_ptr().cast_mut().cast(), shape, element, release, owner.cast_mut().cast())
        }
    }

    /// Drops the pages read so far from this process's memory; they are read again when touched.
    pub fn forget_pages(&self) {
        // SAFETY: nothing ever wrote to this private mapping, so its pages come back from the file
        // as they were.
        // Only advice: that the kernel may refuse it costs memory and nothing else.
        drop(unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) });
    }
}

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `owner` came from `Arc::into_raw` in `tensor`, and LibTorch releases a storage once.
    drop(unsafe { Arc::from_raw(owner.cast_const().cast::<Mmap>()) });
}
