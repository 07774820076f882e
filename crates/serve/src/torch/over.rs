//! Tensors over memory that somebody else owns.

use std::ffi::{c_char, c_int, c_void};

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use super::guard::tensor_or_error;

unsafe extern "C" {
    fn tfs_tensor_over(
        data: *mut c_void,
        sizes: *const i64,
        dimensions: usize,
        kind: c_int,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        error: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// A CPU tensor over `data`. `release` is called with `owner` once nobody holds the tensor; only on error it is not
/// promised to be.
///
/// # Safety
/// `data` must hold as many elements of that type as `shape` has, aligned for them, until `release` is called, which
/// must be able to free `owner` on any thread.
pub(super) unsafe fn tensor_over(
    data: *mut c_void,
    shape: &[i64],
    kind: ScalarType,
    release: extern "C" fn(*mut c_void),
    owner: *mut c_void,
) -> Result<Tensor, TchError> {
    // SAFETY: the caller promises the memory, and the shim answers a tensor of its own, or null and a text.
    unsafe {
        tensor_or_error(|error, capacity| {
            tfs_tensor_over(data, shape.as_ptr(), shape.len(), kind.0, release, owner, error, capacity)
        })
    }
}

/// An element type as LibTorch counts them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScalarType(pub(super) c_int);

impl ScalarType {
    /// Unsigned bytes.
    pub(super) const BYTE: Self = Self(0);

    /// The number of `kind` in c10/core/ScalarType.h; tch keeps its own table to itself.
    pub(super) fn of(kind: Kind) -> Result<Self, TchError> {
        match kind {
            Kind::Half => Ok(Self(5)),
            Kind::Float => Ok(Self(6)),
            Kind::BFloat16 => Ok(Self(15)),
            other => Err(TchError::Kind(format!("{other:?} is no type of weights"))),
        }
    }
}
