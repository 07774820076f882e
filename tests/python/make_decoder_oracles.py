"""Makes small language models with random weights, and the logits and texts that transformers computes
with them.

    python make_decoder_oracles.py FOLDER

FOLDER/cases.json lists the cases: the checkpoint's folder, and for each prompt its token ids, the logits of
its last token, the 64 tokens that follow by always taking the likeliest, and the logits that the last of them
was taken from. All weights come from fixed seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 211
PROMPTS = [1, 5, 16, 37, 90]
FOLLOWING = 64

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def sharpen(model: Any, seed: int) -> Any:
    """Makes random weights matter: with transformers' 0.02 a wrong bias, norm or angle would not show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=0.2)
    return model.eval()


def llama(**changes: Any) -> Any:
    """A small Llama."""
    return sharpen(LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})), 1)


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    """Rotary positions stretched in some way."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **changes}}


def models() -> dict[str, Any]:
    """Every family, and every option in some of them."""
    llama3: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    windows: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    yarn: dict[str, Any] = {"factor": 4.0, "mscale": 1.3, "mscale_all_dim": 0.6, "truncate": False}
    gpt2: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": 256,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
    }
    return {
        "llama": llama(),
        "llama_ungrouped": llama(num_key_value_heads=6, tie_word_embeddings=True),
        "llama_one_kv_head": llama(num_key_value_heads=1, head_dim=20, hidden_act="gelu"),
        "llama_biases": llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
        "llama_3": llama(**rope("llama3", original_max_position_embeddings=64, **llama3)),
        "llama_linear": llama(**rope("linear", factor=3.0)),
        "llama_dynamic": llama(**rope("dynamic", factor=2.0), max_position_embeddings=100),
        "llama_yarn": llama(**rope("yarn", factor=4.0, original_max_position_embeddings=64)),
        "llama_yarn_weights": llama(**rope("yarn", original_max_position_embeddings=64, **yarn)),
        "mistral": sharpen(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24)), 2),
        "mistral_no_window": sharpen(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)), 2),
        "qwen2": sharpen(Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)), 3),
        "qwen2_windows": sharpen(Qwen2ForCausalLM(Qwen2Config(**SIZES, **windows)), 3),
        "qwen3": sharpen(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)), 4),
        "qwen3_windows": sharpen(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, **windows)), 4),
        "gpt2": sharpen(GPT2LMHeadModel(GPT2Config(**gpt2)), 5),
        "gpt2_by_layer": sharpen(
            GPT2LMHeadModel(GPT2Config(**gpt2, n_inner=100, scale_attn_by_inverse_layer_idx=True)), 5
        ),
        "llama_float16": llama().half(),
        "llama_bfloat16": llama(head_dim=64).bfloat16(),
        "llama_sharded": llama(),
        "llama_bare": llama(tie_word_embeddings=True),
        "llama_old_config": llama(**rope("llama3", original_max_position_embeddings=64, **llama3)),
    }


def follow(model: Any, ids: list[int]) -> dict[str, Any]:
    """What the model says after a prompt, one token at a time."""
    cache = DynamicCache(config=model.config)
    fed, tokens, logits = torch.tensor([ids]), [], []
    for _ in range(FOLLOWING):
        with torch.no_grad():
            row = model(fed, past_key_values=cache, use_cache=True).logits[0, -1]
        logits.append(row.tolist())
        tokens.append(int(row.argmax()))
        fed = torch.tensor([tokens[-1:]])
    return {"ids": ids, "tokens": tokens, "first": logits[0], "last": logits[-1]}


def to_old_form(folder: Path) -> None:
    """Rewrites config.json as transformers 4 wrote it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def save(folder: Path, name: str, model: Any) -> None:
    """Saves a checkpoint in the form that its name tells of."""
    if name == "llama_sharded":
        model.save_pretrained(folder, max_shard_size="100KB")
    elif name == "llama_bare":
        model.model.save_pretrained(folder)
        model.config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    if name == "llama_old_config":
        to_old_form(folder)


def make(out: Path) -> dict[str, Any]:
    """Makes all checkpoints under `out`, and answers the cases by name."""
    cases: dict[str, Any] = {}
    for name, model in models().items():
        save(out / name, name, model)
        # A checkpoint in half precision is computed in single precision, from the halved weights. Read again,
        # as halving a model halves the frequencies of its positions too.
        exact = type(model).from_pretrained(out / name, dtype=torch.float32).eval()
        draw = torch.Generator().manual_seed(6)
        prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in PROMPTS]
        texts = [follow(exact, ids) for ids in prompts]
        cases[name] = {"folder": str(out / name), "texts": texts}
    return cases


def main() -> None:
    """Writes to the folder given, which must not be there yet."""
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    (out / "cases.json").write_text(json.dumps(make(out)))


if __name__ == "__main__":
    main()
