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


def main() -> None:
    folder = Path(sys.argv[1])
    models = {"double": Scale(2.0), "triple": Scale(3.0), "raises": Raises(), "mixed": Mixed()}
    for name, model in models.items():
        torch.jit.script(model).save(str(folder / f"{name}.pt"))


if __name__ == "__main__":
    main()
