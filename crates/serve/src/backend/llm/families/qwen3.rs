//! Qwen3 (Yang et al. 2025, arXiv:2505.09388): a Qwen2 without biases that norms each head's queries and keys.

use super::super::config::DecoderConfig;
use super::super::error::LlmError;
use super::super::json::Json;
use super::{equal_layers, llama, qwen2};

/// Where config.json does not mention one.
const DEFAULT_HEAD_DIM: i64 = 128;

pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let mut config = llama::describe(json)?;
    config.head_dim = json.optional_size("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM);
    config.layers = equal_layers(json.size("num_hidden_layers")?, config.head_dim, None);
    qwen2::windows(json, &mut config)?;
    Ok(DecoderConfig { head_norms: true, perceptron_bias: false, ..config })
}
