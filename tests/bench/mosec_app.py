"""The peer: `mosec_app.py MODEL WAIT_MS --port N ...` serves a built-in model's file, or `delay`, with mosec.

Runs in the peers' virtual environment. What it knows besides MODEL and WAIT_MS goes to mosec's own
command line, which skips words that it does not know.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# mosec is installed only in the peers' environment, which the type checker does not see.

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mosec import Server, Worker  # pyright: ignore[reportMissingImports]

MODEL, WAIT_MS = sys.argv[1], int(sys.argv[2])
BATCH_SECONDS = 0.005
CORES = len(os.sched_getaffinity(0))
MAX_BATCH_SIZE = 32


class Mlp(Worker):
    """Stacks `{"data": [64 floats]}`, runs the TorchScript file, answers `{"data": [10 floats]}`."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = torch.jit.load(MODEL)

    def forward(self, data: list[Any]) -> list[Any]:
        with torch.inference_mode():
            rows = self.model(torch.tensor([item["data"] for item in data])).tolist()
        return [{"data": row} for row in rows]


class ResNet(Worker):
    """Runs the TorchScript file on images that come as plain float32: the fastest form to read."""

    def __init__(self) -> None:
        torch.set_num_threads(CORES)
        self.model = torch.jit.load(MODEL)

    def deserialize(self, data: bytes) -> Any:
        return torch.frombuffer(bytearray(data), dtype=torch.float32).view(3, 224, 224)

    def forward(self, data: list[Any]) -> list[Any]:
        with torch.inference_mode():
            return [{"data": row} for row in self.model(torch.stack(data)).tolist()]


class MiniLm(Worker):
    """Embeds `{"data": text}` with sentence-transformers, which sorts and pads."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(CORES)
        self.model = SentenceTransformer(MODEL, device="cpu")

    def forward(self, data: list[Any]) -> list[Any]:
        rows = self.model.encode([item["data"] for item in data], batch_size=MAX_BATCH_SIZE)
        return [{"data": row.tolist()} for row in rows]


class Delay(Worker):
    """Takes 5 ms a batch, whatever it holds."""

    def forward(self, data: list[Any]) -> list[Any]:
        time.sleep(BATCH_SECONDS)
        return data


if __name__ == "__main__":
    server = Server()
    worker = {"delay": Delay, "mlp": Mlp, "resnet18": ResNet, "minilm": MiniLm}[Path(MODEL).stem]
    server.append_worker(worker, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=WAIT_MS)
    server.run()
