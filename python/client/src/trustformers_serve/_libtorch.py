"""Loads LibTorch's libraries from the installed torch package, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from pathlib import Path

# In the order of their dependence. libtorch_cuda is the server's to load, where there is a GPU.
_LIBRARIES = ("libc10.so", "libtorch_cpu.so")
_DISTRIBUTION = "trustformers-serve"


def pinned_version() -> str:
    """The torch version that this package was built for, as its own metadata pins it."""
    for requirement in importlib.metadata.requires(_DISTRIBUTION) or []:
        name, separator, version = requirement.partition("==")
        if separator and name.strip() == "torch":
            return version.strip()
    raise ImportError(f"the metadata of {_DISTRIBUTION} pins no version of torch; reinstall it")


def load() -> None:
    """Makes torch's symbols available to the extension module.

    Raises:
        ImportError: torch is missing, or is not the version that the extension is linked against.
    """
    pinned = pinned_version()
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"trustformers_serve needs LibTorch from the torch package, which is not installed: "
            f"pip install torch=={pinned}"
        )
    installed = importlib.metadata.version("torch")
    # 2.11.0+cpu and 2.11.0+cu130 have one interface.
    if installed.partition("+")[0] != pinned:
        raise ImportError(
            f"trustformers_serve is built for torch {pinned}, but torch {installed} is installed: "
            f"pip install torch=={pinned}"
        )
    folder = Path(spec.origin).parent / "lib"
    for library in _LIBRARIES:
        try:
            ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ImportError(f"cannot load {folder / library}: {error}") from error
