//! Linear layers of decoders on the CPU: weights packed for kernels of ours, which read them at the speed of memory
//! for few rows and multiply at that of the registers for many.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use super::guard::done_or_error;
use super::linear::Activation;
use super::over::ScalarType;
use super::paged::InstructionSet;
use super::region::Region;

unsafe extern "C" {
    fn tfs_product_has_matrix_units() -> bool;
    fn tfs_product_bytes(
        rows: i64,
        inputs: i64,
        kind: c_int,
        gated: bool,
        quantized: bool,
        bytes: *mut i64,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn tfs_product_pack(
        parts: *const *const C_tensor,
        count: usize,
        kind: c_int,
        gated: bool,
        quantized: bool,
        packed: *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn tfs_product_run(
        x: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        outputs: i64,
        gated: bool,
        quantized: bool,
        activation: c_int,
        add: bool,
        out: *mut C_tensor,
        instruction_set: c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
}

/// The most inputs whose products with int8 weights can be summed in 32 bits.
const MOST_QUANTIZED_INPUTS: i64 = 65_536;

/// What becomes of a layer's sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// `activation(x W^T + b)`.
    Plain(Activation),
    /// `activation(left half) * right half` of `x W^T + b`.
    Gated(GateActivation),
}

/// What opens a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateActivation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
}

impl Finish {
    const fn gated(self) -> bool {
        matches!(self, Self::Gated(_))
    }

    const fn code(self) -> c_int {
        match self {
            Self::Plain(Activation::None) => 0,
            Self::Plain(Activation::Gelu) | Self::Gated(GateActivation::Gelu) => 1,
            Self::Plain(Activation::GeluTanh) | Self::Gated(GateActivation::GeluTanh) => 2,
            Self::Plain(Activation::Relu) => 3,
            Self::Gated(GateActivation::Silu) => 4,
        }
    }
}

/// A linear layer, with what is done to its sums.
#[derive(Debug)]
pub struct Product {
    packed: Tensor,
    /// In `f32`.
    bias: Option<Tensor>,
    outputs: i64,
    quantized: bool,
    finish: Finish,
}

impl Product {
    /// Whether products with rows of so many inputs are better computed here than by LibTorch: on a CPU without
    /// matrix units, where inputs fill words of four bytes.
    pub fn suits(inputs: i64, kind: Kind, device: Device, quantized: bool) -> bool {
        if device != Device::Cpu {
            return false;
        }
        if quantized {
            return inputs % 4 == 0 && inputs <= MOST_QUANTIZED_INPUTS;
        }
        let bytes = i64::try_from(kind.elt_size_in_bytes()).unwrap_or(0);
        // SAFETY: asks the CPU, and takes no pointer.
        let rivalled = kind == Kind::BFloat16 && unsafe { tfs_product_has_matrix_units() };
        inputs * bytes % 4 == 0 && !rivalled
    }

    /// Packs into memory of `region` the `weights`, matrices `[outputs, inputs]` of `f32`, `bf16` or `f16` one under another, for products of
    /// `kind`; where gated, the gate's outputs come first. They are read where they are, and only what is packed takes
    /// memory. With `quantized`, each output's weights become int8 with a scale of their own. `bias` is `[outputs]`.
    ///
    /// # Errors
    /// When the weights do not suit.
    pub fn new(
        weights: &[Tensor],
        kind: Kind,
        bias: Option<&Tensor>,
        finish: Finish,
        quantized: bool,
        region: &Region,
    ) -> Result<Self, TchError> {
        let (parts, code): (Vec<_>, _) =
            (weights.iter().map(Tensor::as_ptr).collect(), ScalarType::of(kind)?.0);
        let rows: i64 = weights.iter().filter_map(|part| part.size().first().copied()).sum();
        let inputs = weights.first().and_then(|part| part.size().last().copied()).unwrap_or(0);
        let (gated, mut bytes) = (finish.gated(), 0);
        // SAFETY: writes `bytes` alone.
        done_or_error(|error, capacity| unsafe {
            tfs_product_bytes(rows, inputs, code, gated, quantized, &raw mut bytes, error, capacity)
        })?;
        let mut packed = region.take(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        // SAFETY: the tensors outlive the call, which checks them.
        done_or_error(|error, capacity| unsafe {
            let (list, count, to) = (parts.as_ptr().cast(), parts.len(), packed.as_mut_ptr());
            tfs_product_pack(list, count, code, gated, quantized, to, error, capacity)
        })?;
        let bias = bias.map(|bias| bias.f_to_kind(Kind::Float)?.f_contiguous()).transpose()?;
        let outputs = rows / if finish.gated() { 2 } else { 1 };
        Ok(Self { packed, bias, outputs, quantized, finish })
    }

    /// Outputs of a row.
    pub fn outputs(&self) -> i64 {
        self.outputs
    }

    /// Writes the product with `x` `[rows, inputs]` to `out` `[rows, outputs]`. `x` must be of the type of the weights
    /// unless those are quantised, `out` of that type or of `f32`.
    ///
    /// # Errors
    /// When shapes or types do not fit each other.
    pub fn forward(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        instruction_set: InstructionSet,
    ) -> Result<(), TchError> {
        self.run(x, out, false, instruction_set)
    }

    /// The same, added to what `out` has.
    ///
    /// # Errors
    /// When shapes or types do not fit each other.
    pub fn forward_add(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        instruction_set: InstructionSet,
    ) -> Result<(), TchError> {
        self.run(x, out, true, instruction_set)
    }

    fn run(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        add: bool,
        instruction_set: InstructionSet,
    ) -> Result<(), TchError> {
        let bias = self.bias.as_ref().map_or(ptr::null(), Tensor::as_ptr);
        // SAFETY: the tensors outlive the call, which checks them and accepts no bias.
        done_or_error(|error, capacity| unsafe {
            tfs_product_run(
                x.as_ptr(),
                self.packed.as_ptr(),
                bias,
                self.outputs,
                self.finish.gated(),
                self.quantized,
                self.finish.code(),
                add,
                out.as_mut_ptr(),
                instruction_set.code(),
                error,
                capacity,
            )
        })
    }
}
