//! TorchScript modules, frozen for inference.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::{self, NonNull};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

#[repr(C)]
struct CModule {
    _opaque: [u8; 0],
}

#[repr(C)]
struct COutputs {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn tfs_module_load(path: *const c_char, device: c_int, error: *mut *mut c_char) -> *mut CModule;
    fn tfs_module_free(module: *mut CModule);
    fn tfs_module_is_stateless(module: *const CModule) -> bool;
    fn tfs_module_arguments(module: *const CModule, required: *mut usize, total: *mut usize) -> *mut c_char;
    fn tfs_module_forward(
        module: *const CModule,
        inputs: *const *const C_tensor,
        count: usize,
        error: *mut *mut c_char,
    ) -> *mut COutputs;
    fn tfs_outputs_count(outputs: *const COutputs) -> usize;
    fn tfs_outputs_take(outputs: *mut COutputs, index: usize) -> *mut C_tensor;
    fn tfs_outputs_name(outputs: *const COutputs, index: usize) -> *const c_char;
    fn tfs_outputs_free(outputs: *mut COutputs);
    fn tfs_text_free(text: *mut c_char);
}

/// A module's own words about why it cannot be read or run, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModuleError(pub String);

/// The arguments of a module's `forward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// How many have no default.
    pub required: usize,
    /// How many there are.
    pub total: usize,
    /// Their names, those with a default in brackets.
    pub names: String,
}

/// What `forward` answered.
#[derive(Debug)]
pub struct Outputs {
    /// The tensors, in order.
    pub tensors: Vec<Tensor>,
    /// One a tensor where `forward` answered a dictionary, else empty.
    pub names: Vec<String>,
}

/// A `torch.jit` module in evaluation mode, frozen where it can be.
#[derive(Debug)]
pub struct Module {
    module: NonNull<CModule>,
}

// SAFETY: LibTorch's interpreter keeps the state of a run on the stack of its caller, and guards the
// graph executor's plans by a mutex, so threads may share a module; one that writes its own
// attributes is the caller's to keep apart (`is_stateless`).
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Reads the file at `path` onto `device`.
    ///
    /// # Errors
    /// LibTorch's reason why it cannot be read.
    pub fn load(path: &Path, device: Device) -> Result<Self, ModuleError> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| ModuleError("the path holds a zero byte".to_owned()))?;
        let device = match device {
            Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
            _ => -1,
        };
        let mut error = ptr::null_mut();
        // SAFETY: `path` is a C string that outlives the call; a failure leaves a text in `error`.
        let module = unsafe { tfs_module_load(path.as_ptr(), device, &raw mut error) };
        NonNull::new(module).map(|module| Self { module }).ok_or_else(|| {
            // SAFETY: null was answered, so `error` holds a text that is ours.
            unsafe { taken_error(error) }
        })
    }

    /// Whether no run can change it, so that several threads may run it at once.
    pub fn is_stateless(&self) -> bool {
        // SAFETY: `module` is alive.
        unsafe { tfs_module_is_stateless(self.module.as_ptr()) }
    }

    /// What its `forward` takes.
    pub fn arguments(&self) -> Arguments {
        let (mut required, mut total) = (0, 0);
        // SAFETY: `module` is alive; the text answered is ours.
        let names = unsafe {
            taken_text(tfs_module_arguments(self.module.as_ptr(), &raw mut required, &raw mut total))
        };
        Arguments { required, total, names }
    }

    /// Runs `forward`, without profiling the first runs: batches change their size all the time, and a
    /// graph specialised to the sizes seen first was not faster, only slow to make.
    ///
    /// # Errors
    /// What the module raised, or what form of output it answered that is not tensors.
    pub fn forward(&self, inputs: &[&Tensor]) -> Result<Outputs, ModuleError> {
        let inputs: Vec<*const C_tensor> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
        let mut error = ptr::null_mut();
        // SAFETY: `module` and the tensors are alive during the call; a failure leaves a text in `error`.
        let outputs = unsafe {
            tfs_module_forward(self.module.as_ptr(), inputs.as_ptr(), inputs.len(), &raw mut error)
        };
        if outputs.is_null() {
            // SAFETY: null was answered, so `error` holds a text that is ours.
            return Err(unsafe { taken_error(error) });
        }
        // SAFETY: `outputs` is ours; each tensor is taken out once, by its index below the count, and
        // the names are copied before everything is freed.
        unsafe {
            let count = tfs_outputs_count(outputs);
            let names = (0..count)
                .map(|index| tfs_outputs_name(outputs, index))
                .take_while(|name| !name.is_null())
                .map(|name| CStr::from_ptr(name).to_string_lossy().into_owned())
                .collect();
            let tensors =
                (0..count).map(|index| Tensor::from_ptr(tfs_outputs_take(outputs, index))).collect();
            tfs_outputs_free(outputs);
            Ok(Outputs { tensors, names })
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: `module` came from `load` and is freed once.
        unsafe { tfs_module_free(self.module.as_ptr()) }
    }
}

/// # Safety
/// `text` must be null, or a C string that nobody else frees.
unsafe fn taken_text(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises a C string that is ours.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        tfs_text_free(text);
        copy
    }
}

/// # Safety
/// As for [`taken_text`].
unsafe fn taken_error(text: *mut c_char) -> ModuleError {
    // SAFETY: the caller's promise.
    let text = unsafe { taken_text(text) };
    ModuleError(first_meaningful_line(&text).to_owned())
}

/// The line that says what went wrong: LibTorch puts the source of the TorchScript function before
/// it, and more of the same after it.
fn first_meaningful_line(text: &str) -> &str {
    // Only the interpreter's own errors open with this, and the cause comes last.
    let cause = match text.strip_prefix("The following operation failed in the TorchScript interpreter.") {
        Some(trace) => trace.rsplit_once("RuntimeError: ").map_or(trace, |(_, cause)| cause),
        None => text,
    };
    cause.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::first_meaningful_line;

    #[test]
    fn an_interpreter_error_is_its_last_cause_without_the_script_around_it() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
             Traceback of TorchScript, serialized code (most recent call last):\n  \
             File \"code/m.py\", line 3, in forward\n    return torch.mm(x, y)\n           ~~~ <--- HERE\n\
             RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x3 and 4x4)\nmore\n";
        assert_eq!(first_meaningful_line(text), "mat1 and mat2 shapes cannot be multiplied (1x3 and 4x4)");
    }

    #[test]
    fn another_error_is_its_first_line_that_says_something() {
        assert_eq!(
            first_meaningful_line("\nUnknown builtin op: a::b.\nHere:\n"),
            "Unknown builtin op: a::b."
        );
    }
}
