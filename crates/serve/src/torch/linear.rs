//! Linear layers whose weights are packed for the CPU once.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::guard::tensor_or_error;

unsafe extern "C" {
    fn tfs_linear_can_pack(weight: *const C_tensor) -> bool;
    fn tfs_linear_pack(
        weight: *const C_tensor,
        rows: i64,
        error: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn tfs_linear_run(
        x: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        activation: c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn tfs_linear_run_add(
        x: *const C_tensor,
        other: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// Rows the packing is told to expect. Packed for 20 or for 4,000 rows, speed is the same.
const TYPICAL_ROWS: i64 = 640;

/// What is applied to each element of a linear layer's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * Phi(x)`, with the error function.
    Gelu,
    /// GELU's tanh approximation (`gelu_new` in Transformers).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// `y = activation(x W^T + b)`.
///
/// On a CPU with oneDNN the weight is packed into blocks when the layer is made, which was faster
/// than MKL's product of plain matrices at every number of rows above one.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    packed: bool,
}

impl Linear {
    /// A layer of `weight` `[outputs, inputs]` and perhaps `bias` `[outputs]`, both of one type on one device.
    ///
    /// # Errors
    /// When the weight cannot be packed.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        // SAFETY: asks for the tensor's type and for what LibTorch and this CPU can do.
        if !unsafe { tfs_linear_can_pack(weight.as_ptr()) } {
            return Ok(Self { weight, bias, packed: false });
        }
        // SAFETY: `weight` outlives the call, which answers a new tensor.
        let weight = unsafe {
            tensor_or_error(|error, capacity| tfs_linear_pack(weight.as_ptr(), TYPICAL_ROWS, error, capacity))
        }?;
        Ok(Self { weight, bias, packed: true })
    }

    /// The same layer for another thread: the weights are shared, not copied.
    #[must_use]
    pub fn share(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self { weight: self.weight.shallow_clone(), bias, packed: self.packed }
    }

    fn bias_or_null(&self) -> *const C_tensor {
        self.bias.as_ref().map_or(ptr::null(), Tensor::as_ptr)
    }

    /// `activation(x W^T + b)`: `[rows, inputs]` to `[rows, outputs]`.
    ///
    /// # Errors
    /// When LibTorch refuses the shapes.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, TchError> {
        if !self.packed {
            let y = x.f_linear(&self.weight, self.bias.as_ref())?;
            return match activation {
                Activation::None => Ok(y),
                Activation::Gelu => y.f_gelu("none"),
                Activation::GeluTanh => y.f_gelu("tanh"),
                Activation::Relu => y.f_relu(),
            };
        }
        let code = match activation {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::Relu => 3,
        };
        // SAFETY: the tensors outlive the call, which accepts no bias and answers a new tensor.
        unsafe {
            tensor_or_error(|error, capacity| {
                tfs_linear_run(x.as_ptr(), self.weight.as_ptr(), self.bias_or_null(), code, error, capacity)
            })
        }
    }

    /// `x W^T + b + other`, with `other` `[rows, outputs]`.
    ///
    /// # Errors
    /// When LibTorch refuses the shapes.
    pub fn forward_add(&self, x: &Tensor, other: &Tensor) -> Result<Tensor, TchError> {
        if !self.packed {
            return x.f_linear(&self.weight, self.bias.as_ref())?.f_add_(other);
        }
        // SAFETY: the tensors outlive the call, which accepts no bias and answers a new tensor.
        unsafe {
            tensor_or_error(|error, capacity| {
                tfs_linear_run_add(
                    x.as_ptr(),
                    other.as_ptr(),
                    self.weight.as_ptr(),
                    self.bias_or_null(),
                    error,
                    capacity,
                )
            })
        }
    }
}
