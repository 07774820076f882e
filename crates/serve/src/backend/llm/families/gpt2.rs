//! GPT-2 (Radford et al. 2019): layer norms, learned positions, biases everywhere, and weights stored transposed.

use super::super::config::{self, DecoderConfig, NormKind, Perceptron, Positions};
use super::super::error::LlmError;
use super::super::json::Json;
use super::super::names::{Names, QkvNames};
use super::equal_layers;
use crate::torch::linear::Activation;

const NAMES: Names = Names {
    prefix: "transformer.",
    tokens: "wte",
    positions: "wpe",
    layers: "h.",
    attention_norm: "ln_1",
    qkv: QkvNames::Fused("attn.c_attn"),
    head_norms: ["", ""],
    attention_output: "attn.c_proj",
    perceptron_norm: "ln_2",
    gate: "",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    final_norm: "ln_f",
    head: "lm_head",
    transposed: true,
};

pub(super) fn describe(json: &Json) -> Result<DecoderConfig, LlmError> {
    let (hidden, heads) = (json.size("n_embd")?, json.size("n_head")?);
    if hidden % heads != 0 {
        return Err(json.invalid(format!("n_embd {hidden} does not divide into {heads} heads")));
    }
    let head_dim = hidden / heads;
    let activation = match json.optional_text("activation_function")?.unwrap_or("gelu_new") {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => {
            return Err(json.unsupported(format!("activation_function {other:?}"), "gelu, gelu_new, relu"));
        }
    };
    let mut layers = equal_layers(json.size("n_layer")?, head_dim, None);
    let scales = json.flag("scale_attn_weights", true)?;
    let by_layer = json.flag("scale_attn_by_inverse_layer_idx", false)?;
    for (index, layer) in layers.iter_mut().enumerate() {
        layer.scale = if scales { layer.scale } else { 1.0 };
        layer.scale /= if by_layer { index as f64 + 1.0 } else { 1.0 };
    }
    Ok(DecoderConfig {
        model_type: "gpt2".to_owned(),
        vocabulary: json.size("vocab_size")?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate: json.optional_size("n_inner")?.unwrap_or(4 * hidden),
        context: json.optional_size("n_positions")?.unwrap_or(1024),
        positions: Positions::Learned,
        layers,
        norm: NormKind::Layer,
        norm_eps: json.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5),
        head_norms: false,
        qkv_bias: true,
        output_bias: true,
        perceptron: Perceptron::Plain(activation),
        perceptron_bias: true,
        tied: json.flag("tie_word_embeddings", true)?,
        kind: config::kind(json)?,
        names: NAMES,
    })
}
