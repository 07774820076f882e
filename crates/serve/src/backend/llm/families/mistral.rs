//! Mistral (Jiang et al. 2023, arXiv:2310.06825): a Llama whose layers see a window of tokens.

use super::super::config::DecoderConfig;
use super::super::error::LlmError;
use super::super::json::Json;
use super::llama;

/// Where config.json does not mention one; null means none.
const DEFAULT_WINDOW: i64 = 4096;

pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let mut config = llama::describe(json)?;
    let mentioned = json.mentions("sliding_window");
    let window = if mentioned { json.optional_size("sliding_window")? } else { Some(DEFAULT_WINDOW) };
    for layer in &mut config.layers {
        layer.window = window;
    }
    Ok(DecoderConfig { qkv_bias: false, output_bias: false, perceptron_bias: false, ..config })
}
