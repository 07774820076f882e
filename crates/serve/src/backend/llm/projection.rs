//! Products with weights: kernels of ours where they are fastest, LibTorch's operators elsewhere.

use tch::{TchError, Tensor};

use crate::torch::linear::{Activation, Linear};
use crate::torch::paged::InstructionSet;
use crate::torch::product::{Finish, GateActivation, Product};

/// A linear layer with what is done to its sums.
#[derive(Debug)]
pub(super) enum Projection {
    Kernels(Product),
    Operators(Linear, Finish),
}

impl Projection {
    /// Packs `weight` `[outputs, inputs]`, for a gate its outputs first. With `quantized`, weights become int8.
    pub(super) fn new(
        weight: Tensor,
        bias: Option<Tensor>,
        finish: Finish,
        quantized: bool,
    ) -> Result<Self, TchError> {
        if Product::suits(&weight, quantized) {
            return Ok(Self::Kernels(Product::new(&weight, bias.as_ref(), finish, quantized)?));
        }
        if quantized {
            let (shape, device) = (weight.size(), weight.device());
            return Err(TchError::Shape(format!(
                "int8 weights must be on a CPU and of a multiple of 4 inputs: {shape:?} on {device:?} are not"
            )));
        }
        Ok(Self::Operators(Linear::new(weight, bias)?, finish))
    }

    /// `x` `[rows, inputs]` to `out` `[rows, outputs]`: in its memory, and in its type, where kernels of ours do it.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        instructions: InstructionSet,
    ) -> Result<(), TchError> {
        match self {
            Self::Kernels(product) => return product.forward(x, out, instructions),
            Self::Operators(linear, Finish::Plain(activation)) => *out = linear.forward(x, *activation)?,
            Self::Operators(linear, Finish::Gated(activation)) => {
                *out = gated(&linear.forward(x, Activation::None)?, *activation)?;
            }
        }
        Ok(())
    }

    /// The same, added to what `out` has. Only for sums that nothing else is done to.
    pub(super) fn forward_add(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        instructions: InstructionSet,
    ) -> Result<(), TchError> {
        match self {
            Self::Kernels(product) => return product.forward_add(x, out, instructions),
            Self::Operators(linear, _) => *out = linear.forward_add(x, out)?,
        }
        Ok(())
    }
}

/// `activation(left half) * right half` of each row.
fn gated(x: &Tensor, activation: GateActivation) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let opened = match activation {
        GateActivation::Silu => halves[0].f_silu()?,
        GateActivation::Gelu => halves[0].f_gelu("none")?,
        GateActivation::GeluTanh => halves[0].f_gelu("tanh")?,
    };
    opened.f_mul(&halves[1])
}
