//! The families of decoders: each says in a file of its own how its config.json maps to the one description,
//! and what its weights are called.

use std::path::Path;

use super::config::{DecoderConfig, LayerAttention};
use super::error::LlmError;
use super::json::Json;
use crate::torch::product::GateActivation;

mod gpt2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

/// A family by the `model_type` of its config.json.
struct Family {
    model_type: &'static str,
    describe: fn(&Json) -> Result<DecoderConfig, LlmError>,
}

const FAMILIES: &[Family] = &[
    Family { model_type: "llama", describe: llama::describe },
    Family { model_type: "mistral", describe: mistral::describe },
    Family { model_type: "qwen2", describe: qwen2::describe },
    Family { model_type: "qwen3", describe: qwen3::describe },
    Family { model_type: "gpt2", describe: gpt2::describe },
];

/// Whether the checkpoint in a folder is of one of the families; false where it does not say.
pub fn is_language_model(path: &Path) -> bool {
    let json = Json::read(&path.join("config.json"));
    let known = |model_type: &str| FAMILIES.iter().any(|family| family.model_type == model_type);
    json.is_ok_and(|json| json.optional_text("model_type").ok().flatten().is_some_and(known))
}

/// The description of the model that a config.json is of.
pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let Some(model_type) = json.optional_text("model_type")? else {
        return Err(json.invalid("it has no model_type"));
    };
    match FAMILIES.iter().find(|family| family.model_type == model_type) {
        Some(family) => (family.describe)(json),
        None => {
            let names: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            Err(json.unsupported(format!("model_type {model_type:?}"), names.join(", ")))
        }
    }
}

/// `hidden_act` of a gated perceptron.
fn gate_activation(json: &Json) -> Result<GateActivation, LlmError> {
    match json.optional_text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(GateActivation::Silu),
        "gelu" => Ok(GateActivation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(GateActivation::GeluTanh),
        other => Err(json.unsupported(format!("hidden_act {other:?}"), "silu, gelu, gelu_pytorch_tanh")),
    }
}

/// Layers that all attend alike.
fn equal_layers(count: i64, head_dim: i64, window: Option<i64>) -> Vec<LayerAttention> {
    let layer = LayerAttention { window, scale: (head_dim as f64).sqrt().recip() };
    vec![layer; usize::try_from(count).unwrap_or(0)]
}
