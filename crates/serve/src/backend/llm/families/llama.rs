//! Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971): RMS norms, rotary positions, gated perceptrons, and
//! grouped queries since the second.

use super::super::config::{self, DecoderConfig, NormKind, Perceptron, Positions};
use super::super::error::LlmError;
use super::super::json::Json;
use super::super::names;
use super::super::rotary::Rotary;

/// The description of a Llama, which other families change in what they do otherwise.
pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let (hidden, heads) = (json.size("hidden_size")?, json.size("num_attention_heads")?);
    let head_dim = match json.optional_size("head_dim")? {
        Some(width) => width,
        None if hidden % heads == 0 => hidden / heads,
        None => return Err(json.invalid(format!("hidden_size {hidden} does not divide into {heads} heads"))),
    };
    let positions = json.optional_size("max_position_embeddings")?.unwrap_or(2048);
    let rotary = Rotary::read(json, 10_000.0, positions)?;
    let bias = json.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        model_type: json.optional_text("model_type")?.unwrap_or_default().to_owned(),
        vocabulary: json.size("vocab_size")?,
        hidden,
        heads,
        kv_heads: json.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        intermediate: json.size("intermediate_size")?,
        context: rotary.context(positions),
        positions: Positions::Rotary(rotary),
        layers: super::equal_layers(json.size("num_hidden_layers")?, head_dim, None),
        norm: NormKind::Rms,
        norm_eps: json.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        head_norms: false,
        qkv_bias: bias,
        output_bias: bias,
        perceptron: Perceptron::Gated(super::gate_activation(json)?),
        perceptron_bias: json.flag("mlp_bias", false)?,
        tied: json.flag("tie_word_embeddings", false)?,
        kind: config::kind(json)?,
        names: names::LLAMA,
    })
}
