//! A decoder's weights by their roles, read from a checkpoint to a device in the type computed with.

use tch::{Kind, Tensor};

use super::config::{DecoderConfig, NormKind, Perceptron, Positions};
use super::error::LlmError;
use super::names::QkvNames;
use super::norm::Norm;
use super::projection::{Projection, Target};
use crate::backend::checkpoint::Checkpoint;
use crate::torch::linear::Activation;
use crate::torch::product::Finish;

/// Sums as they are.
const PLAIN: Finish = Finish::Plain(Activation::None);

/// Reads weights. What it answers for a role is what the forward pass needs and not a byte more: packed copies
/// live on, what they were made from does not.
pub(super) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a DecoderConfig,
    target: Target<'a>,
    prefix: &'static str,
}

/// A layer's weights.
pub(super) struct LayerWeights {
    pub(super) attention_norm: Norm,
    /// Queries, keys and values in one product.
    pub(super) qkv: Projection,
    /// Of queries and keys, `[head_dim]` in `f32`.
    pub(super) head_norms: Option<(Tensor, Tensor)>,
    pub(super) attention_output: Projection,
    pub(super) perceptron_norm: Norm,
    /// Gate and projection up in one product, or only that up; with what the perceptron does between its products.
    pub(super) up: Projection,
    pub(super) down: Projection,
}

impl<'a> Loader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, config: &'a DecoderConfig, target: Target<'a>) -> Self {
        let bare = checkpoint.has(&format!("{}.weight", config.names.tokens));
        let prefix = if bare { "" } else { config.names.prefix };
        Self { checkpoint, config, target, prefix }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    /// Token embeddings `[vocabulary, hidden]`: on the CPU in place in the file and in its element type.
    pub(super) fn tokens(&self) -> Result<Tensor, LlmError> {
        let name = self.full(self.config.names.tokens);
        let table = self.checkpoint.mapped(&name, &[self.config.vocabulary, self.config.hidden])?;
        Ok(table.f_to_device(self.target.device)?)
    }

    /// Position embeddings `[context, hidden]`, where they are learned.
    pub(super) fn positions(&self) -> Result<Option<Tensor>, LlmError> {
        if self.config.positions != Positions::Learned {
            return Ok(None);
        }
        let name = self.full(self.config.names.positions);
        let table = self.checkpoint.mapped(&name, &[self.config.context, self.config.hidden])?;
        Ok(Some(table.f_to_device(self.target.device)?))
    }

    pub(super) fn final_norm(&self) -> Result<Norm, LlmError> {
        self.norm(&format!("{}{}", self.prefix, self.config.names.final_norm))
    }

    /// The product that makes logits.
    pub(super) fn head(&self) -> Result<Projection, LlmError> {
        let names = &self.config.names;
        let own = format!("{}.weight", names.head);
        let name = if self.config.tied { self.full(names.tokens) } else { own };
        let weight = self.checkpoint.mapped(&name, &[self.config.vocabulary, self.config.hidden])?;
        Ok(Projection::new(&[weight], None, PLAIN, self.target)?)
    }

    pub(super) fn layer(&self, index: usize) -> Result<LayerWeights, LlmError> {
        let (config, names) = (self.config, &self.config.names);
        let name = |part: &str| format!("{}{}{index}.{part}", self.prefix, names.layers);
        let (hidden, wide) = (config.hidden, config.intermediate);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = match names.qkv {
            QkvNames::Split([query, key, value]) => {
                let parts = [(name(query), queries), (name(key), keys), (name(value), keys)];
                self.linear(&parts, hidden, config.qkv_bias, PLAIN)?
            }
            QkvNames::Fused(all) => {
                self.linear(&[(name(all), queries + 2 * keys)], hidden, config.qkv_bias, PLAIN)?
            }
        };
        let head_norms = if config.head_norms {
            let [query, key] = names.head_norms;
            let of = |part| self.vector(&format!("{}.weight", name(part)), config.head_dim, Kind::Float);
            Some((of(query)?, of(key)?))
        } else {
            None
        };
        let up = match config.perceptron {
            Perceptron::Gated(_) => vec![(name(names.gate), wide), (name(names.up), wide)],
            Perceptron::Plain(_) => vec![(name(names.up), wide)],
        };
        let output = [(name(names.attention_output), hidden)];
        Ok(LayerWeights {
            attention_norm: self.norm(&name(names.attention_norm))?,
            qkv,
            head_norms,
            attention_output: self.linear(&output, queries, config.output_bias, PLAIN)?,
            perceptron_norm: self.norm(&name(names.perceptron_norm))?,
            up: self.linear(&up, hidden, config.perceptron_bias, config.perceptron.finish())?,
            down: self.linear(&[(name(names.down), hidden)], wide, config.perceptron_bias, PLAIN)?,
        })
    }

    fn vector(&self, name: &str, width: i64, kind: Kind) -> Result<Tensor, LlmError> {
        // Copied: small, and the pages of the file are forgotten.
        let vector = self.checkpoint.mapped(name, &[width])?;
        Ok(vector.f_to_kind(kind)?.f_to_device(self.target.device)?.f_detach_copy()?)
    }

    fn norm(&self, name: &str) -> Result<Norm, LlmError> {
        let (width, eps) = (self.config.hidden, self.config.norm_eps);
        let weight = format!("{name}.weight");
        match self.config.norm {
            NormKind::Rms => Ok(Norm::Rms { weight: self.vector(&weight, width, Kind::Float)?, eps }),
            NormKind::Layer => Ok(Norm::Layer {
                weight: self.vector(&weight, width, self.target.kind)?,
                bias: self.vector(&format!("{name}.bias"), width, self.target.kind)?,
                eps,
            }),
        }
    }

    /// One product for several weights, each of so many outputs.
    fn linear(
        &self,
        parts: &[(String, i64)],
        inputs: i64,
        biased: bool,
        finish: Finish,
    ) -> Result<Projection, LlmError> {
        let (mut weights, mut biases) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
        for (name, outputs) in parts {
            let weight = format!("{name}.weight");
            weights.push(if self.config.names.transposed {
                self.checkpoint.mapped(&weight, &[inputs, *outputs])?.f_transpose(0, 1)?
            } else {
                self.checkpoint.mapped(&weight, &[*outputs, inputs])?
            });
            if biased {
                biases.push(self.vector(&format!("{name}.bias"), *outputs, self.target.kind)?);
            }
        }
        let bias = if biased { Some(Tensor::f_cat(&biases, 0)?) } else { None };
        Ok(Projection::new(&weights, bias, finish, self.target)?)
    }
}
