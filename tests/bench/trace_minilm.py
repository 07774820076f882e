"""`trace_minilm.py MODEL_FOLDER OUT.pt` writes MiniLM as TorchScript: ids and mask in, embeddings out."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch and transformers leave parts of their types open.

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModel


class Pooled(torch.nn.Module):
    """The encoder with mean pooling and normalisation."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids and mask (batch, length) to (batch, 384)."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


def main() -> None:
    model = Pooled(AutoModel.from_pretrained(sys.argv[1]).eval())
    ids = torch.randint(1000, 20_000, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    with torch.inference_mode():
        traced: Any = torch.jit.trace(model, (ids, mask), check_trace=False)
        for shape in [(1, 7), (5, 100), (32, 16)]:
            ids, mask = torch.randint(1000, 20_000, shape), torch.ones(shape, dtype=torch.int64)
            mask[-1, shape[1] // 2 :] = 0
            worst = float((traced(ids, mask) - model(ids, mask)).abs().max())
            if worst > 1e-5:
                raise SystemExit(f"the trace of shape {shape} differs by {worst}")
    traced.save(sys.argv[2])


if __name__ == "__main__":
    main()
