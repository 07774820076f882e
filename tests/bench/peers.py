"""The peers: mosec in a virtual environment of its own, and plain PyTorch in a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import HERE, WORK, BenchError, Program

WAITS_MS = (0, 2, 10)


def environment(name: str, requirements: Path) -> Path:
    """The virtual environment that holds a peer's packages, made when missing or out of date.

    Torch is not installed a second time: a .pth file lends this environment's packages.
    """
    venv = WORK / f"venv-{name}"
    python, marker = venv / "bin" / "python", venv / "installed.txt"
    if marker.exists() and marker.read_text() == requirements.read_text():
        return venv
    print(f"making {venv} for {name}", file=sys.stderr)
    venv.parent.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-r", requirements]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run(pip, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the environment of {name} cannot be made: {error}") from error
    library = sysconfig.get_path("purelib", vars={"base": str(venv)})
    Path(library, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    marker.write_text(requirements.read_text())
    return venv


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mosec(Program):
    """mosec serving a TorchScript file or "delay", not yet started, and the `url` to post to.

    The wait is given twice because `max_wait_time=0` alone means mosec's default of 10 ms.
    """

    def __init__(self, model: Path | str, wait_ms: int, timeout_ms: int = 30_000) -> None:
        name = model if isinstance(model, str) else model.stem
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/inference"
        # mosec leaves its folder of sockets behind when it is killed before it has started.
        self._sockets = tempfile.TemporaryDirectory(prefix="mosec-")
        settings = {"address": "127.0.0.1", "port": port, "wait": wait_ms, "timeout": timeout_ms}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        path = f"--path={self._sockets.name}/{name}"
        python = environment("mosec", HERE / "peers.txt") / "bin" / "python"
        app = [python, HERE / "mosec_app.py", model, str(wait_ms)]
        super().__init__(f"mosec {name} wait {wait_ms} ms", [*app, *flags, path])

    def __enter__(self) -> Mosec:
        super().__enter__()
        return self

    def end(self) -> None:
        """Ends the processes and removes their sockets."""
        super().end()
        self._sockets.cleanup()


class Reference(Program):
    """`reference.py`, or another of its kind, in a process of its own: it measures when it is asked."""

    def __init__(self, name: str, arguments: Sequence[str | Path], script: str = "reference.py") -> None:
        super().__init__(name, [sys.executable, HERE / script, *arguments])
        self.hello: dict[str, Any] = {}  # what it tells about itself when ready

    def __enter__(self) -> Reference:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._spawn(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            self.hello = self._read()
        except BaseException:
            self.end()
            raise
        return self

    def measure(self, question: str = "") -> dict[str, Any]:
        process = self._running()
        if process.stdin is None:
            raise BenchError(f"{self.name} takes no questions")
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        process = self._running()
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            process.wait()
            self.check_alive()
        return json.loads(line)
