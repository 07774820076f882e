"""The load generator: Debian's wrk with one thread, and what it reports.

Latencies are wrk's, in whole microseconds, corrected by wrk for coordinated omission: an answer that
took more than twice the mean also counts as the requests that waited behind it.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import HERE, BenchError, Program

_LONGEST_SECONDS = 600


@dataclass(frozen=True)
class Load:
    """One closed-loop measurement."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    generator_cores: float  # processor time of wrk per second: 1.0 is a generator at its limit
    server_cores: float


@dataclass(frozen=True)
class Round:
    """Time to have every body of a file answered once, in steady state."""

    seconds: float
    errors: int
    generator_cores: float


def require() -> None:
    """Raises with the way to install wrk where it is missing."""
    if shutil.which("wrk") is None:
        raise BenchError(
            "wrk, the load generator, is not installed: `sudo apt-get install wrk` (Debian, Ubuntu)"
        )


def closed_loop(program: Program, url: str, body: Path, connections: int, seconds: int) -> Load:
    """`connections` clients that each send the next request when the last one is answered."""
    server_before = program.cpu_seconds()
    result, wall, generator = _run("closed_loop.lua", url, connections, seconds, [body])
    server = program.cpu_seconds() - server_before
    duration = result["duration_us"] / 1e6
    return Load(
        requests_per_second=result["requests"] / duration,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        errors=result["errors"],
        generator_cores=generator / wall,
        server_cores=server / wall,
    )


def work_through(url: str, bodies: Path, connections: int) -> Round:
    """Every line of `bodies` once, after as many requests to warm up as fill the connections twice."""
    result, wall, generator = _run(
        "work_through.lua", url, connections, _LONGEST_SECONDS, [bodies, str(2 * connections)]
    )
    return Round(result["seconds"], result["errors"], generator / wall)


def _run(
    script: str, url: str, connections: int, seconds: int, arguments: list[str | Path]
) -> tuple[dict[str, Any], float, float]:
    """What the script reported, and wrk's wall-clock and processor seconds."""
    settings = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / script)]
    before, started = _children_cpu_seconds(), time.perf_counter()
    run = subprocess.run(
        ["wrk", *settings, url, "--", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    wall, cpu = time.perf_counter() - started, _children_cpu_seconds() - before
    for line in run.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT ")), wall, cpu
    raise BenchError(f"wrk ended with {run.returncode} and no result from {url}:\n{run.stdout}{run.stderr}")


def _children_cpu_seconds() -> float:
    """Processor time of children waited for: between two calls here, only wrk is."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
