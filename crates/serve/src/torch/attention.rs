//! Attention over sequences packed one after another.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::guard::tensor_or_error;

unsafe extern "C" {
    fn tfs_packed_attention(
        qkv: *const C_tensor,
        heads: i64,
        lengths: *const i64,
        sequences: usize,
        error: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// Bidirectional scaled dot-product attention within each sequence.
///
/// `qkv` is `[rows, 3 * hidden]`, queries, keys and values side by side; the first `lengths[0]` rows
/// are the first sequence, and so on. Answers `[rows, hidden]`, zero in rows beyond the last sequence.
///
/// # Errors
/// When the lengths add up to more than `rows`, or `hidden` does not divide into `heads`.
pub fn packed_attention(qkv: &Tensor, heads: i64, lengths: &[i64]) -> Result<Tensor, TchError> {
    // SAFETY: `qkv` and `lengths` outlive the call, which answers a new tensor.
    unsafe {
        tensor_or_error(|error, capacity| {
            tfs_packed_attention(qkv.as_ptr(), heads, lengths.as_ptr(), lengths.len(), error, capacity)
        })
    }
}
