"""Starting, watching and ending the programs that a benchmark compares."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".bench"
CORES = len(os.sched_getaffinity(0))

_URL = re.compile(r"http://127\.0\.0\.1:[1-9]\d*")
_POLL_SECONDS = 0.002
# What a load left unanswered, mosec waits for until its own timeout, of half a minute.
_END_SECONDS = 2.0
T = TypeVar("T")


class BenchError(Exception):
    """A benchmark cannot run, or what it measured cannot be trusted."""


@dataclass(frozen=True)
class Options:
    """What the command line decides for every benchmark."""

    server: Path
    echo: Path
    models: Path  # folder of the built-in models, the same files for the server and its peers
    repeats: int
    seconds: int  # of each closed-loop measurement


@dataclass(frozen=True)
class Memory:
    """Resident memory of a program and its descendants, in MiB."""

    rss: float  # pages shared by two of its processes count twice
    pss: float  # pages shared with any other process count by share


class Program:
    """A child process in a session of its own, ended with all its descendants on leaving the context."""

    def __init__(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = WORK / "logs" / f"{name.replace(' ', '-')}.log"
        self._command = [str(part) for part in command]
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[str] | None = None
        self.started = 0.0  # time.perf_counter() just before the process was made

    def __enter__(self) -> Program:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._spawn(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return self

    def _spawn(self, stdin: int, stdout: int | IO[str], stderr: int | IO[str]) -> subprocess.Popen[str]:
        self.started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                cwd=ROOT,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchError(f"{self.name}: {error}") from error
        return self._process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._running().pid

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise BenchError(f"{self.name} was not started")
        return self._process

    def check_alive(self) -> None:
        """Raises with the end of the log if the process has ended."""
        code = self._running().poll()
        if code is not None:
            raise BenchError(f"{self.name} ended with {code}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-12:])

    def wait_url(self, timeout_seconds: float = 60) -> str:
        """The first URL on 127.0.0.1 that the program prints."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if found := _URL.search(self.log.read_text(errors="replace")):
                return found.group()
            self.check_alive()
            time.sleep(_POLL_SECONDS)
        raise BenchError(f"{self.name} printed no URL in {timeout_seconds:.0f} s:\n{self.log_tail()}")

    def wait_answer(
        self,
        url: str,
        body: bytes | None = None,
        status: int = 200,
        timeout_seconds: float = 180,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Asks again and again until the answer has this status; returns the answer."""
        deadline = time.monotonic() + timeout_seconds
        answer: tuple[int, bytes] | None = None
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                answer = fetch(url, body, headers=headers)
            except (OSError, http.client.HTTPException):
                answer = None
            if answer is not None and answer[0] == status:
                return answer[1]
            time.sleep(_POLL_SECONDS)
        raise BenchError(
            f"{self.name}: {url} answered {answer} for {timeout_seconds:.0f} s\n{self.log_tail()}"
        )

    def wait_ready(self, base: str, timeout_seconds: float = 180) -> None:
        """Waits until this server's model is loaded; raises at once with the reason when loading failed."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check_alive()
            status, answer = fetch(f"{base}/health/ready")
            if status == 200:
                return
            if json.loads(answer)["status"] == "failed":
                raise BenchError(f"{self.name}: {answer.decode(errors='replace')}")
            time.sleep(_POLL_SECONDS)
        raise BenchError(f"{self.name} is not ready after {timeout_seconds:.0f} s:\n{self.log_tail()}")

    def end(self) -> None:
        """SIGTERM to the process and its group, then SIGKILL to whatever is left of its session."""
        process = self._process
        if process is None:
            return
        try:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for pid in self._session():
                _kill(pid)
            process.wait()
            self._process = None

    def _session(self) -> list[int]:
        leader = self._running().pid
        return [
            pid for pid, fields in _stat_of_every_process() if int(fields[3]) == leader and fields[0] != "Z"
        ]

    def cpu_seconds(self) -> float:
        """Processor time used so far by the program and its living descendants."""
        leader = self._running().pid
        ticks = sum(int(f[11]) + int(f[12]) for _, f in _stat_of_every_process() if int(f[3]) == leader)
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        rss = pss = 0
        for pid in self._session():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key == "Rss":
                    rss += int(rest.split()[0])
                elif key == "Pss":
                    pss += int(rest.split()[0])
        return Memory(rss / 1024, pss / 1024)


def _stat_of_every_process() -> Iterator[tuple[int, list[str]]]:
    """Each process with the fields of /proc/PID/stat from the third (state) on; see proc(5)."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        yield int(entry.name), stat.rpartition(")")[2].split()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def fetch(
    url: str,
    body: bytes | None = None,
    timeout_seconds: float = 30,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """One GET, or POST of a body (JSON unless `headers` say what), on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_seconds)
    try:
        method = "GET" if body is None else "POST"
        kind = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, parts.path, body, kind)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def server(options: Options, config: str, settings: Mapping[str, str] | None = None) -> Program:
    """This server with `tests/bench/CONFIG.toml` and `settings` from the environment, not yet started."""
    if not options.server.exists():
        raise BenchError(f"{options.server} is missing: `cargo build --release` makes it")
    env = {"TRUSTFORMERS_SERVE__BUILTIN_MODELS": str(options.models), **(settings or {})}
    return Program(f"server {config}", [options.server, "--config", HERE / f"{config}.toml"], env)


def model_file(options: Options, name: str) -> Path:
    """The file or folder of a built-in model."""
    path = options.models / name
    if not path.exists():
        raise BenchError(f"{path} is missing: `make serve` makes the built-in models")
    return path


def echo(options: Options) -> Program:
    """The program that answers with the request's body on the same HTTP stack, not yet started."""
    if not options.echo.exists():
        raise BenchError(f"{options.echo} is missing: `cargo build --release --example echo` makes it")
    return Program("echo", [options.echo, str(CORES)])


def interleaved(subjects: Sequence[T], repeats: int) -> Iterator[T]:
    """Every subject once a repeat, each repeat beginning with another one, so that drift hits all alike."""
    for repeat in range(repeats):
        first = repeat % len(subjects)
        yield from subjects[first:]
        yield from subjects[:first]
