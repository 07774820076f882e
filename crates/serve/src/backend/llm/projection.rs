//! Products with weights: kernels of ours where they are fastest, LibTorch's operators elsewhere.

use tch::{Device, Kind, TchError, Tensor};

use crate::torch::linear::{Activation, Linear};
use crate::torch::paged::InstructionSet;
use crate::torch::product::{Finish, GateActivation, Product};
use crate::torch::region::Region;

/// What weights become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) device: Device,
    /// What is computed with.
    pub(super) kind: Kind,
    /// Whether weights of products become int8.
    pub(super) quantized: bool,
    /// Where packed weights lie.
    pub(super) region: &'a Region,
}

/// A linear layer with what is done to its sums.
#[derive(Debug)]
pub(super) enum Projection {
    Kernels(Product),
    Operators(Linear, Finish),
}

impl Projection {
    /// Packs `weights`, matrices `[outputs, inputs]` one under another, for a gate its outputs first. With `quantized`,
    /// they become int8.
    pub(super) fn new(
        weights: &[Tensor],
        bias: Option<Tensor>,
        finish: Finish,
        Target { device, kind, quantized, region }: Target<'_>,
    ) -> Result<Self, TchError> {
        let inputs = weights.first().and_then(|weight| weight.size().last().copied()).unwrap_or(0);
        if Product::suits(inputs, kind, device, quantized) {
            let product = Product::new(weights, kind, bias.as_ref(), finish, quantized, region)?;
            return Ok(Self::Kernels(product));
        }
        if quantized {
            return Err(TchError::Shape(format!(
                "int8 weights must be on a CPU and of a multiple of 4 inputs: {inputs} on {device:?} are not"
            )));
        }
        let placed = |weight: &Tensor| weight.f_to_kind(kind)?.f_to_device(device);
        let placed = weights.iter().map(placed).collect::<Result<Vec<_>, _>>()?;
        // One alone is not copied before it is packed.
        let all = if let [one] = &placed[..] { one.shallow_clone() } else { Tensor::f_cat(&placed, 0)? };
        drop(placed);
        Ok(Self::Operators(Linear::new(all.f_contiguous()?, bias)?, finish))
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

    /// `x` `[rows, inputs]` to `[rows, outputs]` in `f32`, in memory of its own.
    pub(super) fn forward_wide(&self, x: &Tensor, instructions: InstructionSet) -> Result<Tensor, TchError> {
        let mut out = match self {
            Self::Kernels(product) => {
                Tensor::f_empty([x.size()[0], product.outputs()], (Kind::Float, Device::Cpu))?
            }
            Self::Operators(..) => Tensor::new(),
        };
        self.forward(x, &mut out, instructions)?;
        out.f_to_kind(Kind::Float)
    }

    /// As `forward`, added to what `out` has. Only for sums that nothing else is done to.
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
