"""Time from start to the first answer, and resident memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import contest
from corpus import sentences
from harness import CORES, Memory, Options, interleaved, model_file, server
from peers import Mosec, Reference
from report import Report, Spread

COLUMNS = ("", "ready s", "first answer s", "RSS MiB", "PSS MiB")
FEATURES = 64


@dataclass(frozen=True)
class Start:
    """One start, from the making of the process."""

    ready_seconds: float
    answer_seconds: float
    memory: Memory  # after the first answer


def run(options: Options) -> Report:
    """Starts this server with `mlp` alone and with `minilm`, and the peers with the same models."""
    item = json.dumps({"data": [0.5] * FEATURES}).encode()
    text = json.dumps({"model": "minilm", "input": "A short sentence."}).encode()
    mlp, minilm = model_file(options, "mlp.pt"), model_file(options, "minilm")
    listed = contest.write_body("one-text", sentences(1))
    starts: dict[str, Callable[[], Start]] = {
        f"{contest.SERVER}, mlp": lambda: _start_server(options, "mlp", "/models/mlp/predict", item),
        "mosec, mlp": lambda: _start_mosec(mlp, item),
        f"{contest.SERVER}, minilm": lambda: _start_server(options, "minilm", "/v1/embeddings", text),
        "sentence-transformers, no server": lambda: _start_encode(minilm, listed),
    }
    measured: dict[str, list[Start]] = {name: [] for name in starts}
    for name in interleaved(list(starts), options.repeats):
        measured[name].append(starts[name]())
    return _report(measured, options)


def _start_server(options: Options, config: str, route: str, body: bytes) -> Start:
    with server(options, config) as program:
        base = program.wait_url()
        program.wait_ready(base)
        ready = time.perf_counter() - program.started
        program.wait_answer(base + route, body)
        answered = time.perf_counter() - program.started
        return Start(ready, answered, program.memory())


def _start_mosec(model: Path, body: bytes) -> Start:
    with Mosec(model, 0) as program:
        program.wait_answer(program.url, body)
        answered = time.perf_counter() - program.started
        return Start(answered, answered, program.memory())


def _start_encode(model: Path, texts: Path) -> Start:
    with Reference("sentence-transformers start", ["encode", model, texts, str(CORES)]) as program:
        answered = time.perf_counter() - program.started
        return Start(answered, answered, program.memory())


def _report(measured: dict[str, list[Start]], options: Options) -> Report:
    report = Report("footprint", f"footprint: {options.repeats} starts, median (min-max)", COLUMNS)
    for name, starts in measured.items():
        report.rows.append(
            [
                name,
                Spread.of(start.ready_seconds for start in starts).text(2),
                Spread.of(start.answer_seconds for start in starts).text(2),
                Spread.of(start.memory.rss for start in starts).text(),
                Spread.of(start.memory.pss for start in starts).text(),
            ]
        )
        report.measurements += [{"name": name, **asdict(start)} for start in starts]
    report.notes = [
        "files are in the page cache; memory is of all processes, after the first answer",
        "ready: /health/ready answers 200; the peers have no such route, so their first answer",
        "RSS counts what two processes share twice, PSS by share",
    ]
    return report
