"""PyTorch without a server, measured once for each line on standard input.

`reference.py forward MODEL.pt BODY.json` times the bare forward pass of one item with one thread.
`reference.py encode MODEL_FOLDER TEXTS.json THREADS` times sentence-transformers on a list of texts.
Each answer is one line of JSON; the first one, when ready, tells what the model makes of the input.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# torch and sentence-transformers leave parts of their types open.

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORWARDS = 3000
BATCH_SIZE = 32


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def forward(model_file: str, body_file: str) -> Callable[[], dict[str, Any]]:
    """Times the forward pass on a tensor that is ready. Python's call into it is included."""
    torch.set_num_threads(1)
    model = torch.jit.load(model_file)
    batch = torch.tensor([json.loads(Path(body_file).read_text())["data"]])

    def measure() -> dict[str, Any]:
        times: list[int] = []
        with torch.inference_mode():
            for _ in range(FORWARDS):
                begin = time.perf_counter_ns()
                model(batch)
                times.append(time.perf_counter_ns() - begin)
        return {"p50_ms": statistics.median(times) / 1e6}

    measure()
    with torch.inference_mode():
        say({"output": model(batch)[0].tolist()})
    return measure


def encode(model_folder: str, texts_file: str, threads: str) -> Callable[[], dict[str, Any]]:
    """Times `encode` on all texts, which sorts them by length itself."""
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(threads))
    model = SentenceTransformer(model_folder, device="cpu")
    texts: list[str] = json.loads(Path(texts_file).read_text())

    def measure() -> dict[str, Any]:
        begin = time.perf_counter()
        model.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)
        return {"seconds": time.perf_counter() - begin}

    lengths = [int(model.tokenize([text])["attention_mask"].sum()) for text in texts]
    first = model.encode(texts[:BATCH_SIZE], batch_size=BATCH_SIZE, show_progress_bar=False)
    say({"token_counts": lengths, "output": first[0].tolist()})
    return measure


def main() -> None:
    modes = {"forward": forward, "encode": encode}
    measure = modes[sys.argv[1]](*sys.argv[2:])
    for _ in sys.stdin:
        say(measure())


if __name__ == "__main__":
    main()
