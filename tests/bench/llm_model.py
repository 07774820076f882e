"""Makes the language model that the benchmarks measure: `llm_model.py FOLDER`, with no download.

A Llama of 100 million parameters with random weights from a seed, in bfloat16, and a tokenizer trained on the
sources of Python's standard library. What it says is noise; how long that takes is what a trained one takes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# transformers and tokenizers leave parts of their types open.

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20240229
VOCABULARY = 16_000
SOURCE_FILES = 200
BEGIN, END = "<s>", "</s>"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _texts() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py"))[:SOURCE_FILES]:
        yield path.read_text(errors="replace")


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN, eos_token=END, pad_token=END)


def main() -> None:
    folder = sys.argv[1]
    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
