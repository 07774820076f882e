"""What loading a language model takes of the machine's memory: its packed weights, and little else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch
import trustformers_serve as ts
from conftest import ROOT
from safetensors.torch import save_file
from trustformers_serve.config import ModelSettings

TINYLM = ROOT / "examples" / "tinylm"
VOCABULARY, HIDDEN, WIDE, LAYERS, HEADS = 32_000, 768, 3072, 12, 12
# Outputs and inputs of the products of a layer.
PRODUCTS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
MOST_OF_PACKED = 1.1


def make(folder: Path, dtype: torch.dtype) -> Path:
    """A Llama of 131 million parameters with random weights."""
    source = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-0.03, 0.03, generator=source)

    ones = torch.ones(HIDDEN, dtype=dtype)
    weights = {
        "model.embed_tokens.weight": drawn(VOCABULARY, HIDDEN),
        "model.norm.weight": ones,
        "lm_head.weight": drawn(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {f"{prefix}{name}.weight": drawn(*shape) for name, shape in PRODUCTS.items()}
        weights |= {
            f"{prefix}{name}.weight": ones.clone() for name in ("input_layernorm", "post_attention_layernorm")
        }
    save_file(weights, folder / "model.safetensors")
    config: dict[str, Any] = json.loads((TINYLM / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINYLM / name, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in two types."""
    types = {"bf16": torch.bfloat16, "f32": torch.float32}
    return {name: make(tmp_path_factory.mktemp(name), dtype) for name, dtype in types.items()}


def packed_bytes(kind: str) -> int:
    """Of the products; the table of embeddings stays in its file."""
    shapes = [*PRODUCTS.values()] * LAYERS + [(VOCABULARY, HIDDEN)]
    if kind == "int8":
        # With a scale and a sum of four bytes each for each output.
        return sum(outputs * (inputs + 8) for outputs, inputs in shapes)
    return sum(outputs * inputs for outputs, inputs in shapes) * {"bf16": 2, "f32": 4}[kind]


def anonymous_bytes(process: int) -> int:
    (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kib) * 1024


@contextmanager
def serving(folder: Path, models: dict[str, ModelSettings]) -> Generator[tuple[int, str]]:
    """The id of a server's process, and its URL."""
    config = ts.ServerConfig(server={"port": 0}, device={"default": "cpu"}, models=models)
    path = folder / "serve.toml"
    path.write_text(config.to_toml())
    script = shutil.which("trustformers-serve")
    assert script is not None
    with subprocess.Popen(
        [script, "--config", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        output = cast("IO[str]", process.stdout)
        seen = ""
        while (found := re.search(r"http://127\.0\.0\.1:\d+", seen)) is None:
            line = output.readline()
            assert line, seen
            seen += line
        reader = threading.Thread(target=output.read, daemon=True)
        reader.start()
        try:
            yield process.pid, found[0]
        finally:
            process.terminate()
            process.wait(60)
            reader.join()


@pytest.mark.parametrize(
    ("stored", "kind"),
    [("bf16", "bf16"), ("bf16", "int8"), ("bf16", "f32"), ("f32", "f32"), ("f32", "bf16"), ("f32", "int8")],
)
def test_a_model_takes_little_more_than_its_packed_weights(
    checkpoints: dict[str, Path], tmp_path: Path, stored: str, kind: str
) -> None:
    settings: ModelSettings = {
        "path": checkpoints[stored],
        "load": False,
        "quantization": "int8" if kind == "int8" else "none",
        "dtype": "f32" if kind == "f32" else "bf16",
        # Its cache is as small as it can be: what a cache takes is its own setting.
        "batching": {"continuous": {"kv_cache_memory": "1MB", "max_sequences": 1}},
    }
    with serving(tmp_path, {"large": settings}) as (process, url):
        idle = peak = anonymous_bytes(process)
        loaded = threading.Event()

        def load() -> None:
            with ts.Client(url, timeout=60) as client:
                client.load_model("large")
            loaded.set()

        loader = threading.Thread(target=load)
        loader.start()
        while not loaded.wait(0.0005) and loader.is_alive():
            peak = max(peak, anonymous_bytes(process))
        loader.join()
        assert loaded.is_set()
        after = anonymous_bytes(process) - idle
    packed = packed_bytes(kind)
    assert packed * 0.98 < after, "weights are copied from their file"
    assert after <= packed * MOST_OF_PACKED
    assert peak - idle <= packed * MOST_OF_PACKED, "also while it loads"
