//! C++ exceptions as Rust errors.

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

/// Room for the text of an exception, without its backtrace.
const CAPACITY: usize = 2048;

/// Runs `call` with a buffer for an error's text, which it writes when it answers `false`.
pub(super) fn done_or_error(call: impl FnOnce(*mut c_char, usize) -> bool) -> Result<(), TchError> {
    let mut error = [0u8; CAPACITY];
    if call(error.as_mut_ptr().cast(), CAPACITY) { Ok(()) } else { Err(thrown(&error)) }
}

/// Runs `call` with a buffer for an error's text, and takes over the tensor it answers.
///
/// # Safety
/// `call` must answer a tensor nobody else owns, or null after writing a text to the buffer.
pub(super) unsafe fn tensor_or_error(
    call: impl FnOnce(*mut c_char, usize) -> *mut C_tensor,
) -> Result<Tensor, TchError> {
    let mut error = [0u8; CAPACITY];
    let tensor = call(error.as_mut_ptr().cast(), CAPACITY);
    if tensor.is_null() {
        return Err(thrown(&error));
    }
    // SAFETY: the caller promises a tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

fn thrown(error: &[u8]) -> TchError {
    let text = CStr::from_bytes_until_nul(error).unwrap_or_default();
    TchError::Torch(text.to_string_lossy().into_owned())
}
