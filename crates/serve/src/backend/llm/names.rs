//! What a family calls its weights.

/// How the projections to queries, keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkvNames {
    /// One weight each.
    Split([&'static str; 3]),
    /// One weight for all, in this order.
    Fused(&'static str),
}

/// Names of weights, without `.weight` and `.bias`. Those of a layer stand after `layers`, its number, and a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    /// What all names but the head's start with, unless the checkpoint holds the bare model.
    pub(super) prefix: &'static str,
    pub(super) tokens: &'static str,
    /// Where positions are learned.
    pub(super) positions: &'static str,
    pub(super) layers: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) qkv: QkvNames,
    /// Of queries and of keys, where heads are normed.
    pub(super) head_norms: [&'static str; 2],
    pub(super) attention_output: &'static str,
    pub(super) perceptron_norm: &'static str,
    /// Where the perceptron is gated.
    pub(super) gate: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) final_norm: &'static str,
    /// Where it is not tied to the token embeddings.
    pub(super) head: &'static str,
    /// Whether weights of projections are stored as `[inputs, outputs]`.
    pub(super) transposed: bool,
}

/// The names that Llama set and most families after it kept.
pub(super) const LLAMA: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    positions: "",
    layers: "layers.",
    attention_norm: "input_layernorm",
    qkv: QkvNames::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_output: "self_attn.o_proj",
    perceptron_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "norm",
    head: "lm_head",
    transposed: false,
};
