"""Loads LibTorch's libraries from the installed torch package, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path

# In the order of their dependence. libtorch_cuda is the server's to load, where there is a GPU.
_LIBRARIES = ("libc10.so", "libtorch_cpu.so")
# What names the pin: one line of the metadata that an installer puts next to the package.
_PIN = re.compile(r"^Requires-Dist: torch *==([^\s;]+)", re.MULTILINE)
# The line of torch/version.py, which also says how it was built: 2.11.0+cu130.
_VERSION = re.compile(r"^__version__ *= *['\"]([^'\"]+)", re.MULTILINE)


def pinned_version() -> str:
    """The torch version that this package was built for, as its own metadata pins it."""
    pin = _PIN.search(_metadata())
    if pin is None:
        raise ImportError("the metadata of trustformers-serve pins no version of torch; reinstall it")
    return pin[1]


def _metadata() -> str:
    """The text of this package's metadata."""
    # Read where an installer puts it: importlib.metadata brings the email and zip libraries, which
    # costs more than the rest of this package's Python.
    files = list(Path(__file__).parents[1].glob("trustformers_serve-*.dist-info/METADATA"))
    if len(files) == 1:
        return files[0].read_text(encoding="utf-8")
    # An editable install, say, has it elsewhere.
    import importlib.metadata

    distribution = importlib.metadata.distribution("trustformers-serve")
    return distribution.read_text("METADATA") or ""


def installed_version(torch: Path) -> str:
    """The version of the torch package in the folder `torch`, with its build: 2.11.0+cpu."""
    version = _VERSION.search((torch / "version.py").read_text(encoding="utf-8"))
    if version is None:
        raise ImportError(f"{torch / 'version.py'} names no version of torch; reinstall it")
    return version[1]


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
    torch = Path(spec.origin).parent
    installed = installed_version(torch)
    # 2.11.0+cpu and 2.11.0+cu130 have one interface.
    if installed.partition("+")[0] != pinned:
        raise ImportError(
            f"trustformers_serve is built for torch {pinned}, but torch {installed} is installed: "
            f"pip install torch=={pinned}"
        )
    folder = torch / "lib"
    for library in _LIBRARIES:
        try:
            ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ImportError(f"cannot load {folder / library}: {error}") from error
