"""What this machine and transformers can do, measured once for each line on standard input.

`llm_reference.py static FOLDER PROMPT OUTPUT THREADS` answers a line with a batch size: how long transformers
takes to go on from that many prompts at once, always with the likeliest token.
`llm_reference.py limits THREADS` answers any line: bytes read a second, and bfloat16 operations a second.
Each answer is one line of JSON; the first says that it is ready.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch and transformers leave parts of their types open.

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

READ_BYTES = 1 << 30
SQUARE = 2048
TIMES = 5


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def static(folder: str, prompt: str, output: str, threads: str) -> Callable[[str], dict[str, Any]]:
    """A static batch: all begin together, and all are as long."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(int(threads))
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    vocabulary: int = model.config.vocab_size
    draw = torch.Generator().manual_seed(1)
    wanted = {"min_new_tokens": int(output), "max_new_tokens": int(output), "do_sample": False}

    def measure(line: str) -> dict[str, Any]:
        ids = torch.randint(2, vocabulary, (int(line), int(prompt)), generator=draw)
        with torch.inference_mode():
            took = seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **wanted))
        return {"seconds": took, "tokens": int(line) * int(output)}

    measure("1")
    say({"weights": _weights_read(model)})
    return measure


def _weights_read(model: Any) -> dict[str, int]:
    """The parameters that every token is multiplied with, and their bytes: all but the embeddings."""
    used = [weight for name, weight in model.named_parameters() if "embed_tokens" not in name]
    return {
        "parameters": sum(weight.numel() for weight in used),
        "bytes": sum(weight.numel() * weight.element_size() for weight in used),
    }


def limits(threads: str) -> Callable[[str], dict[str, Any]]:
    """The best of several tries, as a limit should be."""
    torch.set_num_threads(int(threads))
    memory = torch.ones(READ_BYTES // 4)
    left, right = (torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16) for _ in range(2))

    def measure(_line: str) -> dict[str, Any]:
        read = min(seconds(memory.sum) for _ in range(TIMES))
        product = min(seconds(lambda: left @ right) for _ in range(TIMES))
        return {"read_bytes_per_second": READ_BYTES / read, "bf16_flops": 2 * SQUARE**3 / product}

    with torch.inference_mode():
        measure("")
    say({})
    return measure


def main() -> None:
    modes: dict[str, Callable[..., Callable[[str], dict[str, Any]]]] = {"static": static, "limits": limits}
    measure = modes[sys.argv[1]](*sys.argv[2:])
    for line in sys.stdin:
        say(measure(line))


if __name__ == "__main__":
    main()
