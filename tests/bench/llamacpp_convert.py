"""Converts a checkpoint for llama.cpp: `llamacpp_convert.py LLAMA_CPP_SOURCES CHECKPOINT OUT.gguf`.

Runs llama.cpp's own converter. That knows tokenizers by the hash of what they make of a text; one that was
trained here it cannot know, so it is told that texts are cut as GPT-2 cuts them.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# What is imported is in llama.cpp's sources, which the type checker does not see.

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def gpt2(_model: object, _tokenizer: object) -> str:
    """What the converter calls the way in which GPT-2 cuts texts."""
    return "gpt-2"


def main() -> None:
    sources, checkpoint, out = sys.argv[1:]
    sys.path.insert(0, sources)
    sys.path.insert(1, str(Path(sources, "gguf-py")))
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = gpt2
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", "bf16"]
    runpy.run_path(str(Path(sources, "convert_hf_to_gguf.py")), run_name="__main__")


if __name__ == "__main__":
    main()
