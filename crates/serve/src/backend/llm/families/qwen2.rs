//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): a Llama with biases on queries, keys and values, whose
//! upper layers may see a window.

use super::super::config::DecoderConfig;
use super::super::error::LlmError;
use super::super::json::Json;
use super::llama;

pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let mut config = llama::describe(json)?;
    windows(json, &mut config)?;
    Ok(DecoderConfig { qkv_bias: true, output_bias: false, perceptron_bias: false, ..config })
}

/// Which layers see a window: `layer_types` says, or `max_window_layers` from which one on.
pub(super) fn windows(json: &Json, config: &mut DecoderConfig) -> Result<(), LlmError> {
    if !json.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let mentioned = json.mentions("sliding_window");
    let window = if mentioned { json.optional_size("sliding_window")? } else { Some(4096) };
    let types = json.optional_texts("layer_types")?;
    if types.as_ref().is_some_and(|types| types.len() != config.layers.len()) {
        return Err(json.invalid("layer_types has not one entry a layer"));
    }
    // 0 is possible: then all do.
    let first = json.optional_number("max_window_layers")?.unwrap_or(28.0);
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let slides = match types.as_ref().map(|types| types[index]) {
            None => index as f64 >= first,
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => {
                let supported = "full_attention, sliding_attention";
                return Err(json.unsupported(format!("layer type {other:?}"), supported));
            }
        };
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}
