"""What the simulator foretells of a recorded run: `minilm` under open-loop load."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import corpus
import goodput
from goodput import Subject, capacity, load, quantile, schedule
from harness import BenchError, Options, server
from report import Report, Target

SHARES = (0.5, 0.8)  # of the capacity
COLUMNS = ["", "of capacity", "measured", "simulated", "off"]


def run(options: Options) -> Report:
    """Records a server's events, and gives them to `simulate`."""
    bodies = [
        goodput.write(f"text-{n}.json", json.dumps({"data": text}).encode())
        for n, text in enumerate(corpus.skewed(256))
    ]
    report = Report(
        "foretold",
        f"foretold: minilm, Poisson arrivals, {options.repeats} x {2 * options.seconds} s, median",
        COLUMNS,
    )
    off: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for repeat in range(options.repeats):
        for share in SHARES:
            for what, pair in _one(options, bodies, share, repeat).items():
                off.setdefault((share, what), []).append(pair)
    for (share, what), pairs in off.items():
        measured, simulated = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        error = statistics.median(abs(pair[1] / pair[0] - 1) for pair in pairs)
        report.rows.append([what, f"{share:.0%}", f"{measured:,.2f}", f"{simulated:,.2f}", f"{error:.1%}"])
        report.targets.append(Target(f"{what} at {share:.0%}, off by", error, "<=", 0.2))
        report.measurements.append({"what": what, "share": share, "pairs": pairs})
    return report


def _one(options: Options, bodies: list[Path], share: float, seed: int) -> dict[str, tuple[float, float]]:
    """Measured and simulated: mean batch size and p95."""
    kind = {"Content-Type": "application/json", "Accept": "application/json"}
    with tempfile.TemporaryDirectory() as folder:
        path = "/models/minilm/predict"
        with server(options, "minilm") as program:
            base = program.wait_url()
            program.wait_ready(base)
            subject = Subject("", program, base + path, kind, bodies)
            load(subject, users=1, seconds=1)
            rate = share * capacity(subject, options.seconds)
        with server(options, "minilm", {"TRUSTFORMERS_SERVE__BATCHING__EVENT_LOG": folder}) as program:
            base = program.wait_url()
            program.wait_ready(base)
            subject = Subject("", program, base + path, kind, bodies)
            found = load(subject, due=schedule("poisson", rate, 2 * options.seconds, seed))
        log = next(Path(folder).glob("minilm@*.jsonl"))
        if any(status != 200 for status in found["status"]):
            raise BenchError("a request failed")
        done = subprocess.run(
            [options.server, "simulate", "--trace", log, "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise BenchError(f"the simulation failed: {done.stderr}")
    all_of_it: dict[str, Any] = json.loads(done.stdout)
    simulated, recorded = all_of_it["simulated"], all_of_it["recorded"]
    p95 = quantile(sorted(found["seconds"]), 0.95)
    return {
        "mean batch size": (recorded["mean_batch_size"], simulated["mean_batch_size"]),
        "p95 ms": (p95 * 1000, simulated["latency"]["p95"] * 1000),
    }
