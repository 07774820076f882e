//! The forward pass of a decoder over one flat batch of mixed sequences.

use tch::{Device, Kind, TchError, Tensor};

use super::activations::{Activations, Workspace};
use super::attention::{Means, StepAttention};
use super::cache::KvCache;
use super::config::{DecoderConfig, Positions};
use super::error::LlmError;
use super::loader::{LayerWeights, Loader};
use super::norm::Norm;
use super::projection::{Projection, Target};
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
    /// Reads the weights and packs those of products.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        target: Target<'_>,
    ) -> Result<Self, LlmError> {
        let loader = Loader::new(checkpoint, config, target);
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
            device: target.device,
            kind: target.kind,
        })
    }

    /// Whether kernels of ours do all its products.
    pub(super) fn is_packed(&self) -> bool {
        let layers = self.layers.iter();
        let products = layers.flat_map(|layer| [&layer.qkv, &layer.attention_output, &layer.up, &layer.down]);
        products.chain([&self.head]).all(|product| matches!(product, Projection::Kernels(_)))
    }

    /// Logits `[rows sampled, vocabulary]` in `f32`, and how many pages were gathered. Keys and values of all rows
    /// are written to the cache.
    pub(super) fn forward(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        workspace: &mut Workspace,
        means: Means,
    ) -> Result<(Tensor, u64), TchError> {
        let instructions = match means {
            Means::Kernels(instructions) => instructions,
            Means::Operators => InstructionSet::best(),
        };
        let long = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let (rows, sampled) = (long(batch.tokens.len()), long(batch.sampled.len()));
        let mut of = workspace.activations(rows, &self.config, self.kind, self.device)?;
        self.embed(batch, &mut of.states)?;
        let step = self.step_attention(batch, means)?;
        let mut gathered = 0;
        let last = self.layers.len().saturating_sub(1);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.attention_norm.forward(&of.states, &mut of.normed, instructions)?;
            layer.qkv.forward(&of.normed, &mut of.projections, instructions)?;
            let (attention, pages) = (&self.config.layers[index], &mut cache.layers[index]);
            gathered += step.forward(&mut of, attention, layer.head_norms.as_ref(), pages)?;
            if index == last && sampled < rows {
                // From here on rows do not meet: those without logits have done their part.
                let indices = Tensor::f_from_slice(&batch.sampled)?.f_to_device(self.device)?;
                let states = of.states.f_index_select(0, &indices)?;
                let mixed = of.mixed.f_index_select(0, &indices)?;
                of = Activations { states, mixed, ..of.first(sampled)? };
            }
            layer.attention_output.forward_add(&of.mixed, &mut of.states, instructions)?;
            layer.perceptron_norm.forward(&of.states, &mut of.normed, instructions)?;
            layer.up.forward(&of.normed, &mut of.wide, instructions)?;
            layer.down.forward_add(&of.wide, &mut of.states, instructions)?;
        }
        self.norm.forward(&of.states, &mut of.normed, instructions)?;
        Ok((self.head.forward_wide(&of.normed, instructions)?, gathered))
    }

    fn embed(&self, batch: &Batch, states: &mut Tensor) -> Result<(), TchError> {
        let indices = |of: &[i64]| Tensor::f_from_slice(of)?.f_to_device(self.device);
        let tokens = indices(&batch.tokens)?;
        if states.defined() && self.tokens.kind() == self.kind {
            drop(self.tokens.f_index_select_out(states, 0, &tokens)?);
        } else {
            *states = self.tokens.f_index_select(0, &tokens)?.f_to_kind(self.kind)?;
        }
        if let Some(table) = &self.positions {
            let places = table.f_index_select(0, &indices(&batch.positions)?)?;
            drop(states.f_add_(&places.f_to_kind(self.kind)?)?);
        }
        Ok(())
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
