//! BERT and RoBERTa on packed sequences.
//!
//! Devlin et al. 2019 (arXiv:1810.04805) and Liu et al. 2019 (arXiv:1907.11692): embeddings, then layers
//! of attention and a two-layer perceptron, a norm after each.

use tch::{Device, Kind, TchError, Tensor};

use super::config::ModelConfig;
use super::error::EncoderError;
use super::packing::Pack;
use super::weights::Checkpoint;
use crate::torch::attention::packed_attention;
use crate::torch::linear::{Activation, Linear};

/// One instance's handles on the weights, which instances share.
pub(super) struct Bert {
    /// `[vocabulary, hidden]`, on the CPU in place in the file and in its element type.
    words: Tensor,
    /// `[positions, hidden]`, the one token type that is ever used added in.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    heads: i64,
    activation: Activation,
    device: Device,
}

struct Layer {
    /// Queries, keys and values in one product.
    qkv: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let width = self.weight.size();
        x.f_layer_norm(&width[..], Some(&self.weight), Some(&self.bias), self.eps, false)
    }

    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}

/// Reads weights from a checkpoint to a device.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    device: Device,
}

impl Loader<'_> {
    fn float(&self, name: &str, shape: &[i64]) -> Result<Tensor, EncoderError> {
        Ok(self.checkpoint.float(name, shape)?.f_to_device(self.device)?)
    }

    fn norm(&self, name: &str) -> Result<Norm, EncoderError> {
        let shape = [self.config.hidden];
        let weight = self.float(&format!("{name}.weight"), &shape)?;
        let bias = self.float(&format!("{name}.bias"), &shape)?;
        Ok(Norm { weight, bias, eps: self.config.norm_eps })
    }

    fn linear(&self, names: &[String], outputs: i64, inputs: i64) -> Result<Linear, EncoderError> {
        let mut weights = Vec::with_capacity(names.len());
        let mut biases = Vec::with_capacity(names.len());
        for name in names {
            weights.push(self.float(&format!("{name}.weight"), &[outputs, inputs])?);
            biases.push(self.float(&format!("{name}.bias"), &[outputs])?);
        }
        let bias = Tensor::f_cat(&biases, 0)?;
        let weight = match weights.pop() {
            Some(only) if weights.is_empty() => only,
            Some(last) => {
                weights.push(last);
                Tensor::f_cat(&weights, 0)?
            }
            None => return Err(TchError::Shape("a linear layer of nothing".into()).into()),
        };
        Ok(Linear::new(weight, Some(bias))?)
    }

    fn layer(&self, index: usize) -> Result<Layer, EncoderError> {
        let (hidden, intermediate) = (self.config.hidden, self.config.intermediate);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: self.linear(&qkv, hidden, hidden)?,
            attention_output: self.linear(&[name("attention.output.dense")], hidden, hidden)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"))?,
            intermediate: self.linear(&[name("intermediate.dense")], intermediate, hidden)?,
            output: self.linear(&[name("output.dense")], hidden, intermediate)?,
            output_norm: self.norm(&name("output.LayerNorm"))?,
        })
    }
}

impl Bert {
    /// Reads the weights and packs those of the linear layers.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        device: Device,
    ) -> Result<Self, EncoderError> {
        let loader = Loader { checkpoint, config, device };
        let vocabulary = i64::try_from(config.vocabulary).unwrap_or(i64::MAX);
        let types = checkpoint
            .float("embeddings.token_type_embeddings.weight", &[config.token_types, config.hidden])?;
        let positions = checkpoint
            .float("embeddings.position_embeddings.weight", &[config.position_rows, config.hidden])?;
        let words = checkpoint.mapped("embeddings.word_embeddings.weight", &[vocabulary, config.hidden])?;
        let layers = (0..config.layers).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        Ok(Self {
            words: words.f_to_device(device)?,
            positions: positions.f_add(&types.f_select(0, 0)?)?.f_to_device(device)?,
            norm: loader.norm("embeddings.LayerNorm")?,
            layers,
            heads: config.heads,
            activation: config.activation,
            device,
        })
    }

    /// The same model for another thread: the weights are shared, not copied.
    pub(super) fn share(&self) -> Self {
        let layers = self.layers.iter().map(|layer| Layer {
            qkv: layer.qkv.share(),
            attention_output: layer.attention_output.share(),
            attention_norm: layer.attention_norm.share(),
            intermediate: layer.intermediate.share(),
            output: layer.output.share(),
            output_norm: layer.output_norm.share(),
        });
        Self {
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            norm: self.norm.share(),
            layers: layers.collect(),
            heads: self.heads,
            activation: self.activation,
            device: self.device,
        }
    }

    /// The last layer's state of every row: `[rows, hidden]`.
    pub(super) fn forward(&self, pack: &Pack) -> Result<Tensor, TchError> {
        let ids = Tensor::f_from_slice(&pack.ids)?.f_to_device(self.device)?;
        let positions = Tensor::f_from_slice(&pack.positions)?.f_to_device(self.device)?;
        let words = self.words.f_index_select(0, &ids)?.f_to_kind(Kind::Float)?;
        let sum = self.positions.f_index_select(0, &positions)?.f_add_(&words)?;
        let mut x = self.norm.forward(&sum)?;
        for layer in &self.layers {
            x = self.layer(layer, &x, &pack.lengths)?;
        }
        Ok(x)
    }

    fn layer(&self, layer: &Layer, x: &Tensor, lengths: &[i64]) -> Result<Tensor, TchError> {
        let qkv = layer.qkv.forward(x, Activation::None)?;
        let mixed = packed_attention(&qkv, self.heads, lengths)?;
        drop(qkv);
        let x = layer.attention_norm.forward(&layer.attention_output.forward_add(&mixed, x)?)?;
        drop(mixed);
        let wide = layer.intermediate.forward(&x, self.activation)?;
        layer.output_norm.forward(&layer.output.forward_add(&wide, &x)?)
    }
}
