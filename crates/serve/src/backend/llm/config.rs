//! One description that all decoders are instances of, and how it is read from a checkpoint's folder.

use std::path::Path;

use tch::Kind;

use super::error::LlmError;
use super::families;
use super::generation::Generation;
use super::json::Json;
use super::names::Names;
use super::rotary::Rotary;
use crate::torch::linear::Activation;
use crate::torch::paged::MOST_HEAD_WIDTH;
use crate::torch::product::{Finish, GateActivation};

/// How rows are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Divided by their root mean square; a weight.
    Rms,
    /// Mean taken off, divided by their deviation; a weight and a bias.
    Layer,
}

/// How a model knows where a token stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated by angles.
    Rotary(Rotary),
    /// A learned vector is added to the embedding.
    Learned,
}

/// The perceptron of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Perceptron {
    /// `down(activation(gate(x)) * up(x))`.
    Gated(GateActivation),
    /// `down(activation(up(x)))`.
    Plain(Activation),
}

impl Perceptron {
    /// What becomes of the sums of its first product.
    pub(super) const fn finish(self) -> Finish {
        match self {
            Self::Gated(activation) => Finish::Gated(activation),
            Self::Plain(activation) => Finish::Plain(activation),
        }
    }
}

/// A decoder's attention and how it differs between layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerAttention {
    /// Tokens a query sees, its own included; `None` for all before it.
    pub window: Option<i64>,
    /// What scores are multiplied by.
    pub scale: f64,
}

/// A decoder: what its weights are and what is computed with them.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Token ids are below this.
    pub vocabulary: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Heads of queries.
    pub heads: i64,
    /// Heads of keys and values, each shared by `heads / kv_heads` of queries.
    pub kv_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Width inside the perceptron.
    pub intermediate: i64,
    /// The most tokens of a sequence.
    pub context: i64,
    /// Where tokens stand.
    pub positions: Positions,
    /// One a layer.
    pub layers: Vec<LayerAttention>,
    /// How rows are normed.
    pub norm: NormKind,
    /// Added under the root in norms.
    pub norm_eps: f64,
    /// Whether queries and keys are normed head by head.
    pub head_norms: bool,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection out of attention has one.
    pub output_bias: bool,
    /// The perceptron.
    pub perceptron: Perceptron,
    /// Whether its projections have biases.
    pub perceptron_bias: bool,
    /// Whether logits are products with the token embeddings.
    pub tied: bool,
    /// Element type that config.json names; `f32` where it names none.
    pub kind: Kind,
    /// What the weights are called.
    pub(super) names: Names,
}

impl DecoderConfig {
    /// Bytes of a KV block of `block_size` tokens over all layers, in elements of `kind`.
    pub fn bytes_per_block(&self, block_size: usize, kind: Kind) -> usize {
        let size = |number: i64| usize::try_from(number).unwrap_or(0);
        2 * self.layers.len()
            * size(self.kv_heads)
            * size(self.head_dim)
            * block_size
            * kind.elt_size_in_bytes()
    }

    /// Refuses a tokenizer whose highest id has no embedding. Fewer ids than embeddings are common: rows are
    /// added to make products faster.
    ///
    /// # Errors
    /// When `highest` is not in the vocabulary.
    pub fn check_vocabulary(&self, highest: u32) -> Result<(), LlmError> {
        if i64::from(highest) < self.vocabulary {
            return Ok(());
        }
        Err(LlmError::Vocabulary { highest, vocabulary: usize::try_from(self.vocabulary).unwrap_or(0) })
    }
}

/// Everything known of a checkpoint before its weights are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The model.
    pub decoder: DecoderConfig,
    /// How its makers want it sampled, and which tokens end a text.
    pub generation: Generation,
}

/// Reads config.json and generation_config.json of the checkpoint in `path`.
///
/// # Errors
/// When config.json is missing, damaged or asks for what is not implemented.
pub fn read(path: &Path) -> Result<Settings, LlmError> {
    let json = Json::read(&path.join("config.json"))?;
    if json.mentions("quantization_config") {
        return Err(json.unsupported("quantization_config", "weights in F32, F16 or BF16"));
    }
    let decoder = families::describe(&json)?;
    check(&decoder).map_err(|message| json.invalid(message))?;
    Ok(Settings { generation: Generation::read(path, &json)?, decoder })
}

/// The element type that a config.json names, by its old key or its new one.
pub(super) fn kind(json: &Json) -> Result<Kind, LlmError> {
    let text = json.optional_text("dtype")?.or(json.optional_text("torch_dtype")?);
    match text.map(|text| text.trim_start_matches("torch.")) {
        None | Some("float32" | "auto") => Ok(Kind::Float),
        Some("bfloat16") => Ok(Kind::BFloat16),
        Some("float16") => Ok(Kind::Half),
        Some(other) => {
            Err(json.unsupported(format!("elements of type {other:?}"), "float32, float16, bfloat16"))
        }
    }
}

fn check(config: &DecoderConfig) -> Result<(), String> {
    if config.heads % config.kv_heads != 0 {
        return Err(format!(
            "{} heads of queries do not divide into {} of keys and values",
            config.heads, config.kv_heads
        ));
    }
    if config.head_dim % 2 != 0 || config.head_dim > MOST_HEAD_WIDTH {
        return Err(format!("a head is {} wide; even and up to {MOST_HEAD_WIDTH} will do", config.head_dim));
    }
    Ok(())
}
