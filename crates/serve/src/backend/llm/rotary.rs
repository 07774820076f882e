//! Rotary positions (Su et al. 2021, arXiv:2104.09864) and the ways of stretching them to longer texts.

use std::f64::consts::PI;

use tch::{Device, TchError, Tensor};

use super::error::LlmError;
use super::json::Json;

/// How frequencies are changed for texts longer than those of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with a text that outgrows the trained length. Each token's angles are of the length
    /// up to it, so they do not depend on how a text is cut into chunks.
    Dynamic {
        /// How fast.
        factor: f64,
        /// The trained length.
        trained: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// What low ones are divided by.
        factor: f64,
        /// Where the ramp begins, in waves over the trained length.
        low: f64,
        /// Where it ends.
        high: f64,
        /// The trained length.
        trained: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// What low ones are divided by.
        factor: f64,
        /// Rotations over the trained length from which on a frequency is kept.
        fast: f64,
        /// Rotations up to which it is divided in full.
        slow: f64,
        /// Whether those two are brought to whole frequencies.
        whole: bool,
        /// The trained length.
        trained: f64,
        /// What cosines and sines are multiplied by.
        magnitude: f64,
    },
}

/// Angles by position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// The base of frequencies.
    pub theta: f64,
    /// For longer texts.
    pub scaling: Scaling,
}

impl Rotary {
    /// From config.json in both its forms: `rope_parameters`, or `rope_theta` with `rope_scaling`.
    pub(super) fn read(json: &Json, default_theta: f64, context: i64) -> Result<Self, LlmError> {
        let nested = json.object("rope_parameters")?;
        let scaling = match &nested {
            Some(parameters) => Some(parameters.clone()),
            None => json.object("rope_scaling")?,
        };
        let inner = nested.as_ref().map(|parameters| parameters.optional_number("rope_theta")).transpose()?;
        let theta = inner.flatten().or(json.optional_number("rope_theta")?).unwrap_or(default_theta);
        if json.optional_number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(json.unsupported("partial_rotary_factor", "1.0"));
        }
        let scaling = match scaling {
            Some(parameters) => read_scaling(&parameters, context as f64)?,
            None => Scaling::None,
        };
        Ok(Self { theta, scaling })
    }

    /// The most tokens of a sequence, where config.json speaks of so many. What it calls the most positions is what
    /// a model was trained on, unless the scaling was part of the training.
    pub(super) fn context(&self, positions: i64) -> i64 {
        match self.scaling {
            Scaling::None | Scaling::Llama3 { .. } => positions,
            Scaling::Linear { factor } | Scaling::Dynamic { factor, .. } => {
                (positions as f64 * factor) as i64
            }
            Scaling::Yarn { factor, trained, .. } => positions.max((trained * factor) as i64),
        }
    }

    /// Radians a token, of each of the `width / 2` pairs.
    fn frequencies(&self, theta: f64, width: i64) -> Vec<f32> {
        let pairs = usize::try_from(width / 2).unwrap_or(0);
        let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / width as f64);
        let stretched = |pair: usize| match self.scaling {
            Scaling::None | Scaling::Dynamic { .. } => plain(pair),
            Scaling::Linear { factor } => plain(pair) / factor,
            Scaling::Llama3 { factor, low, high, trained } => {
                let waves = trained * plain(pair) / (2.0 * PI);
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                plain(pair) * (kept + (1.0 - kept) / factor)
            }
            Scaling::Yarn { factor, fast, slow, whole, trained, .. } => {
                let pair_of = |rotations: f64| {
                    width as f64 * (trained / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let (low, high) = (pair_of(fast), pair_of(slow));
                let (low, high) = if whole { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
                // Never divided by nothing.
                let span = if low == high { 0.001 } else { high - low };
                let divided = ((pair as f64 - low) / span).clamp(0.0, 1.0);
                plain(pair) * (1.0 - divided + divided / factor)
            }
        };
        (0..pairs).map(|pair| stretched(pair) as f32).collect()
    }

    /// Cosines and sines of the angles at `positions`, each `[positions, width / 2]` in `f32`.
    pub(super) fn angles(
        &self,
        positions: &[i64],
        width: i64,
        device: Device,
    ) -> Result<(Tensor, Tensor), TchError> {
        let plain = self.frequencies(self.theta, width);
        let magnitude = match self.scaling {
            Scaling::Yarn { magnitude, .. } => magnitude as f32,
            _ => 1.0,
        };
        let mut cosines = Vec::with_capacity(positions.len() * plain.len());
        let mut sines = Vec::with_capacity(positions.len() * plain.len());
        for &position in positions {
            let grown = self.grown(position, width);
            for &frequency in grown.as_ref().unwrap_or(&plain) {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                cosines.push(cosine * magnitude);
                sines.push(sine * magnitude);
            }
        }
        let shape = [i64::try_from(positions.len()).unwrap_or(0), width / 2];
        let tensor = |values: &[f32]| Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(device);
        Ok((tensor(&cosines)?, tensor(&sines)?))
    }

    /// Frequencies of a position beyond the trained length, where they depend on it.
    fn grown(&self, position: i64, width: i64) -> Option<Vec<f32>> {
        let Scaling::Dynamic { factor, trained } = self.scaling else { return None };
        let length = position as f64 + 1.0;
        if length <= trained {
            return None;
        }
        let growth = factor * length / trained - (factor - 1.0);
        let theta = self.theta * growth.powf(width as f64 / (width as f64 - 2.0));
        Some(self.frequencies(theta, width))
    }
}

fn read_scaling(json: &Json, context: f64) -> Result<Scaling, LlmError> {
    let name = json.optional_text("rope_type")?.or(json.optional_text("type")?);
    let trained =
        || json.optional_number("original_max_position_embeddings").map(|length| length.unwrap_or(context));
    if json.optional_number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
        return Err(json.unsupported("partial_rotary_factor", "1.0"));
    }
    let scaling = match name.unwrap_or("default") {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: json.number("factor")? },
        "dynamic" => Scaling::Dynamic { factor: json.number("factor")?, trained: context },
        "llama3" => Scaling::Llama3 {
            factor: json.number("factor")?,
            low: json.number("low_freq_factor")?,
            high: json.number("high_freq_factor")?,
            trained: trained()?,
        },
        "yarn" => {
            let factor = json.number("factor")?;
            let own = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let weight =
                |name| Ok::<_, LlmError>(json.optional_number(name)?.filter(|&weight| weight != 0.0));
            let magnitude = match (
                json.optional_number("attention_factor")?,
                weight("mscale")?,
                weight("mscale_all_dim")?,
            ) {
                (Some(magnitude), ..) => magnitude,
                (None, Some(weight), Some(of_all)) => own(weight) / own(of_all),
                _ => own(1.0),
            };
            Scaling::Yarn {
                factor,
                fast: json.optional_number("beta_fast")?.unwrap_or(32.0),
                slow: json.optional_number("beta_slow")?.unwrap_or(1.0),
                trained: trained()?,
                whole: json.flag("truncate", true)?,
                magnitude,
            }
        }
        other => {
            let supported = "default, linear, dynamic, llama3, yarn";
            return Err(json.unsupported(format!("rope_type {other:?}"), supported));
        }
    };
    Ok(scaling)
}
