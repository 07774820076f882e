//! Norms: kernels of ours on the CPU, plain operators elsewhere.

use tch::{Device, Kind, TchError, Tensor};

use crate::torch::paged::{self, InstructionSet};

/// A norm over rows.
#[derive(Debug)]
pub(super) enum Norm {
    /// `weight` `[width]` in `f32`.
    Rms { weight: Tensor, eps: f64 },
    /// `weight` and `bias` `[width]` in the type computed with.
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    /// `x` `[rows, width]`, normed, in `out`: in its memory where a kernel of ours does it.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        out: &mut Tensor,
        instructions: InstructionSet,
    ) -> Result<(), TchError> {
        match self {
            Self::Rms { weight, eps } if x.device() == Device::Cpu => {
                return paged::rms_norm(x, weight, *eps, out, instructions);
            }
            Self::Rms { weight, eps } => *out = rms(x, weight, *eps)?.f_to_kind(x.kind())?,
            Self::Layer { weight, bias, eps } => {
                let width = weight.size();
                *out = x.f_layer_norm(&width[..], Some(weight), Some(bias), *eps, true)?;
            }
        }
        Ok(())
    }
}

/// The last dimension divided by its root mean square, times `weight`; in `f32`.
pub(super) fn rms(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let x = x.f_to_kind(Kind::Float)?;
    let mean = x.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
    x.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?.f_mul(weight)
}
