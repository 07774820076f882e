//! The forward pass of a decoder over one flat batch of mixed sequences.

use tch::{Device, Kind, TchError, Tensor};

use super::attention::{Means, StepAttention};
use super::cache::KvCache;
use super::config::{DecoderConfig, Positions};
use super::error::LlmError;
use super::loader::{LayerWeights, Loader};
use super::norm::Norm;
use super::projection::Projection;
use super::step::Batch;
use crate::backend::checkpoint::Checkpoint;
use crate::torch::paged::InstructionSet;

/// A decoder's weights on a device.
pub(super) struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    /// What is computed with, but for sums.
    pub(super) kind: Kind,
    /// `[vocabulary, hidden]` in the file's element type.
    tokens: Tensor,
    /// `[context, hidden]`, where positions are learned.
    positions: Option<Tensor>,
    layers: Vec<LayerWeights>,
    norm: Norm,
    head: Projection,
}

impl Decoder {
    /// Reads the weights and packs those of products, as int8 if `quantized`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        device: Device,
        kind: Kind,
        quantized: bool,
    ) -> Result<Self, LlmError> {
        let loader = Loader::new(checkpoint, config, device, kind, quantized);
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            layers.push(loader.layer(index)?);
            // Of this process's memory, each layer is there once.
            checkpoint.forget_pages();
        }
        Ok(Self {
            tokens: loader.tokens()?,
            positions: loader.positions()?,
            layers,
            norm: loader.final_norm()?,
            head: loader.head()?,
            config: config.clone(),
            device,
            kind,
        })
    }

    /// Logits `[rows sampled, vocabulary]` in `f32`, and how many pages were gathered. Keys and values of all rows
    /// are written to the cache.
    pub(super) fn forward(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        means: Means,
    ) -> Result<(Tensor, u64), TchError> {
        let instructions = match means {
            Means::Kernels(instructions) => instructions,
            Means::Operators => InstructionSet::best(),
        };
        let mut x = self.embed(batch)?;
        let step = self.step_attention(batch, means)?;
        let mut gathered = 0;
        let last = self.layers.len().saturating_sub(1);
        let sampled = Tensor::f_from_slice(&batch.sampled)?.f_to_device(self.device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.attention_norm.forward(&x, instructions)?;
            let projections = layer.qkv.forward(&normed, instructions)?;
            drop(normed);
            let (attention, pages) = (&self.config.layers[index], &mut cache.layers[index]);
            let (mut mixed, count) =
                step.forward(&projections, attention, layer.head_norms.as_ref(), pages)?;
            drop(projections);
            gathered += count;
            if index == last {
                // From here on rows do not meet: those without logits have done their part.
                mixed = mixed.f_index_select(0, &sampled)?;
                x = x.f_index_select(0, &sampled)?;
            }
            x = layer.attention_output.forward_add(&mixed, &x, instructions)?;
            x = perceptron(layer, &x, instructions)?;
        }
        let states = self.norm.forward(&x, instructions)?;
        Ok((self.head.forward(&states, instructions)?.f_to_kind(Kind::Float)?, gathered))
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let rows = |table: &Tensor, indices: &[i64]| {
            let indices = Tensor::f_from_slice(indices)?.f_to_device(self.device)?;
            table.f_index_select(0, &indices)?.f_to_kind(self.kind)
        };
        let tokens = rows(&self.tokens, &batch.tokens)?;
        match &self.positions {
            Some(table) => tokens.f_add(&rows(table, &batch.positions)?),
            None => Ok(tokens),
        }
    }

    fn step_attention<'a>(&self, batch: &'a Batch, means: Means) -> Result<StepAttention<'a>, TchError> {
        let config = &self.config;
        let angles = match &config.positions {
            Positions::Rotary(rotary) => {
                Some(rotary.angles(&batch.positions, config.head_dim, self.device)?)
            }
            Positions::Learned => None,
        };
        Ok(StepAttention {
            batch,
            angles,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            eps: config.norm_eps,
            means,
        })
    }
}

fn perceptron(layer: &LayerWeights, x: &Tensor, instructions: InstructionSet) -> Result<Tensor, TchError> {
    let normed = layer.perceptron_norm.forward(x, instructions)?;
    let wide = layer.up.forward(&normed, instructions)?;
    layer.down.forward_add(&wide, x, instructions)
}
