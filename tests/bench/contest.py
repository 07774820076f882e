"""The closed-loop comparison that the overhead and delay benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import wrk
from harness import WORK, BenchError, Options, Program, interleaved
from peers import WAITS_MS, Mosec
from report import Report, Spread

COLUMNS = ("", "c", "requests/s", "p50 ms", "p99 ms", "errors", "server cores", "wrk cores")
SERVER = "this server"
TOLERANCE = 1e-4
_WARMUP_SECONDS = 1
_WARMUP_CONNECTIONS = 32


@dataclass
class Contender:
    """A running program, where to post, and what was measured of it by number of connections."""

    name: str
    program: Program
    url: str
    loads: dict[int, list[wrk.Load]] = field(default_factory=dict[int, list[wrk.Load]])

    def spread(self, figure: str, connections: int) -> Spread:
        """Median and range over the repeats of one field of `wrk.Load`."""
        return Spread.of(getattr(load, figure) for load in self.loads[connections])

    def median(self, figure: str, connections: int) -> float:
        return self.spread(figure, connections).median

    def errors(self, connections: int) -> int:
        return sum(load.errors for load in self.loads[connections])


def write_body(name: str, content: Any) -> Path:
    """A request body as a file for wrk."""
    path = WORK / "bodies" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def method(options: Options) -> str:
    """How the figures of a table came about."""
    return f"{options.repeats} x {options.seconds} s, median (min-max)"


def run(contenders: Sequence[Contender], body: Path, counts: Iterable[int], options: Options) -> None:
    """Fills `loads`: every contender at every number of connections, in every repeat."""
    for contender in contenders:
        wrk.closed_loop(contender.program, contender.url, body, _WARMUP_CONNECTIONS, _WARMUP_SECONDS)
    for connections in counts:
        for contender in interleaved(contenders, options.repeats):
            load = wrk.closed_loop(contender.program, contender.url, body, connections, options.seconds)
            contender.loads.setdefault(connections, []).append(load)


def fill(report: Report, contenders: Sequence[Contender], counts: Iterable[int]) -> None:
    """A row for each contender and number of connections, and all repeats for the JSON file."""
    for connections in counts:
        for contender in contenders:
            report.rows.append(
                [
                    contender.name,
                    str(connections),
                    contender.spread("requests_per_second", connections).text(),
                    contender.spread("p50_ms", connections).text(3),
                    contender.spread("p99_ms", connections).text(3),
                    str(contender.errors(connections)),
                    f"{contender.median('server_cores', connections):.2f}",
                    f"{contender.median('generator_cores', connections):.2f}",
                ]
            )
            report.measurements += [
                {"name": contender.name, "connections": connections, **asdict(load)}
                for load in contender.loads[connections]
            ]


def best_peer(contenders: Sequence[Contender], figure: str, connections: int) -> tuple[Contender, float]:
    """The peer's best setting by this figure, and the figure: the most of a rate, the least of a latency."""
    own = [contender for contender in contenders if contender.name.startswith("mosec")]
    pick = max if figure == "requests_per_second" else min
    best = pick(own, key=lambda contender: contender.median(figure, connections))
    return best, best.median(figure, connections)


def start_peers(stack: ExitStack, model: Path | str) -> list[Contender]:
    """The peer once for each of its waits, ended with the stack."""
    started = [stack.enter_context(Mosec(model, wait_ms)) for wait_ms in WAITS_MS]
    return [Contender(program.name, program, program.url) for program in started]


def check_output(name: str, answer: bytes, expected: Sequence[float]) -> None:
    """Raises unless the answer's `data` is what PyTorch computes: no point in timing a wrong one."""
    got = json.loads(answer)["data"]
    if len(got) != len(expected) or any(abs(a - b) > TOLERANCE for a, b in zip(got, expected, strict=True)):
        raise BenchError(f"{name} answers {got}, PyTorch computes {list(expected)}")
