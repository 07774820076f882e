"""Runs the benchmarks: `python tests/bench/run.py [NAME|all]`.

Each prints a table with this server and its peers from one run on one machine, and writes
`.bench/results/NAME.json`. A missed target is printed, and is no failure; a benchmark that could not
be run makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import batching
import buckets
import delay
import embeddings
import footprint
import foretold
import goodput
import isolation
import llm
import overhead
import scheduling
from harness import ROOT, BenchError, Options
from neighbours import Neighbours
from report import Report, machine

BENCHMARKS: dict[str, Callable[[Options], Report]] = {
    "overhead": overhead.run,
    "delay": delay.run,
    "embeddings": embeddings.run,
    "footprint": footprint.run,
    "goodput-resnet18": goodput.run_resnet18,
    "goodput-minilm": goodput.run_minilm,
    "scheduling": scheduling.run,
    "isolation": isolation.run,
    "batching": batching.run,
    "buckets": buckets.run,
    "foretold": foretold.run,
}
# Not among "all": it builds llama.cpp, and takes as long as all others together.
LARGE: dict[str, Callable[[Options], Report]] = {"llm": llm.run}


def _arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        description="Measure this server beside its peers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("benchmark", nargs="?", default="all", choices=[*BENCHMARKS, *LARGE, "all"])
    release = ROOT / "target" / "release"
    parser.add_argument(
        "--server", type=Path, default=release / "trustformers-serve", help="program under test"
    )
    parser.add_argument(
        "--echo", type=Path, default=release / "examples" / "echo", help="echo on the same stack"
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=cache / "trustformers-serve" / "models",
        help="folder of the built-in models",
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each figure")
    parser.add_argument("--seconds", type=int, default=4, help="length of a closed-loop measurement")
    return parser.parse_args()


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leaves through the context managers, which end what was started."""
    sys.exit(128 + number)


def main() -> int:
    arguments = _arguments()
    options = Options(
        server=arguments.server.absolute(),
        echo=arguments.echo.absolute(),
        models=arguments.models.absolute(),
        repeats=arguments.repeats,
        seconds=arguments.seconds,
    )
    signal.signal(signal.SIGTERM, _terminate)
    where = machine()
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, torch {where['torch']}\n",
        flush=True,
    )
    failed = False
    for name in BENCHMARKS if arguments.benchmark == "all" else [arguments.benchmark]:
        neighbours = Neighbours()
        try:
            report = (BENCHMARKS | LARGE)[name](options)
        except BenchError as error:
            print(f"{name} could not be run: {error}\n", file=sys.stderr, flush=True)
            failed = True
            continue
        report.notes.append(neighbours.note())
        print(report.text(), flush=True)
        print(f"{report.write_json()}\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
