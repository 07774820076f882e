"""Makes the small TorchScript files that the integration tests serve. Usage: make_torchscript.py FOLDER"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiplies by a constant; raises on a batch with a negative number."""

    factor: float

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise RuntimeError("negative numbers are not for this model")
        return x * self.factor


class Raises(nn.Module):
    """Raises whatever it reads."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() >= 0:
            raise RuntimeError("this model always fails")
        return x


class Mixed(nn.Module):
    """Several inputs and outputs of several types."""

    def forward(self, left: Tensor, count: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
        total = left.sum(dim=1) + count.to(left.dtype)
        return torch.where(flag, total, -total), count + 1


class MaskedMean(nn.Module):
    """The mean of the embeddings that a mask leaves, and each position's own part of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(100, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask.to(torch.float32).unsqueeze(2)
        kept = self.embedding(ids) * weights
        return kept.sum(dim=1) / weights.sum(dim=1).clamp(min=1.0), kept


class FixedRows(nn.Module):
    """Raises on a batch that does not have four rows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) != 4:
            raise RuntimeError("this model takes four rows")
        return x * 2.0


def main() -> None:
    folder = Path(sys.argv[1])
    models = {
        "double": Scale(2.0),
        "triple": Scale(3.0),
        "raises": Raises(),
        "mixed": Mixed(),
        "masked_mean": MaskedMean(),
        "fixed_rows": FixedRows(),
    }
    for name, model in models.items():
        torch.jit.script(model).save(str(folder / f"{name}.pt"))


if __name__ == "__main__":
    main()
