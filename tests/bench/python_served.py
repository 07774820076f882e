"""The same Python function served by this package, by mosec and by LitServe: `make bench-python`.

Each runs with one process for the function and with one a core, mosec also with batches; the targets compare
with the best of each peer's settings. Registered functions are measured as they are, under `autobatch` and
under `batch`, and so are models of an `App` that take one item or a whole batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import contest
import wrk
from contest import Contender
from harness import CORES, HERE, BenchError, Options, Program
from neighbours import Neighbours
from peers import environment, free_port
from report import Report, Target
from served_function import WEIGHTS, score

CONNECTIONS = (1, 32, 128)
LOADED = 128
FEATURES = [round(0.37 * (index % 5) - 0.5, 3) for index in range(len(WEIGHTS))]


class Served(Program):
    """A program that serves `score`, in the environment of whoever serves, and the `url` to post to.

    PORT and FOLDER in its command stand for a free port and for a folder that is removed when it has ended.
    """

    def __init__(self, name: str, python: Path, command: Sequence[str], path: str) -> None:
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}{path}"
        self._folder = tempfile.TemporaryDirectory(prefix="served-")
        script, *arguments = command
        arguments = [
            argument.replace("PORT", port).replace("FOLDER", self._folder.name) for argument in arguments
        ]
        super().__init__(name, [python, HERE / script, *arguments])

    def end(self) -> None:
        """Ends the processes and removes their folder."""
        super().end()
        self._folder.cleanup()


def contenders() -> list[Served]:
    """Everybody, not yet started."""
    here = Path(sys.executable)
    mosec = environment("mosec", HERE / "peers.txt") / "bin" / "python"
    litserve = environment("litserve", HERE / "litserve.txt") / "bin" / "python"
    made = [
        Served(f"this, {kind}", here, ["served_app.py", kind, "PORT"], "/models/score/predict")
        for kind in ("register", "autobatch", "batch", "app", "app-batched")
    ]
    for workers in sorted({1, CORES}):
        count = str(workers)
        for kind, name in (("one", f"mosec {count}"), ("many", f"mosec {count} batched")):
            # mosec leaves its folder of sockets behind when it is killed.
            flags = ["--port=PORT", "--address=127.0.0.1", "--timeout=30000", "--path=FOLDER/mosec"]
            made.append(Served(name, mosec, ["served_mosec.py", kind, count, *flags], "/inference"))
        command = ["served_litserve.py", count, "PORT"]
        made.append(Served(f"litserve {count}", litserve, command, "/predict"))
    return made


def run(options: Options) -> Report:
    """Measures one after another, so that only who is measured runs."""
    wrk.require()
    body = contest.write_body("served", {"data": FEATURES})
    measured = [Contender(program.name, program, program.url) for program in contenders()]
    for repeat in range(options.repeats):
        for contender in measured[repeat:] + measured[:repeat]:
            measure(contender, body, options)
    return report(measured, options)


def measure(contender: Contender, body: Path, options: Options) -> None:
    """All loads, on a fresh process that has answered rightly and is warm."""
    with contender.program as program:
        answer = json.loads(program.wait_answer(contender.url, body.read_bytes()))
        if answer["data"] != score(FEATURES):
            raise BenchError(f"{contender.name} answers {answer}")
        wrk.closed_loop(program, contender.url, body, LOADED, 1)
        for connections in CONNECTIONS:
            load = wrk.closed_loop(program, contender.url, body, connections, options.seconds)
            contender.loads.setdefault(connections, []).append(load)


def best(measured: Sequence[Contender], name: str, figure: str) -> float:
    """The best of all settings of a peer under load."""
    pick = max if figure == "requests_per_second" else min
    return pick(c.median(figure, LOADED) for c in measured if c.name.startswith(name))


def report(measured: list[Contender], options: Options) -> Report:
    """Tables and targets."""
    made = Report(
        "python_served",
        f"a Python function served: 16 numbers in JSON, {contest.method(options)}",
        contest.COLUMNS,
    )
    contest.fill(made, measured, CONNECTIONS)
    own = measured[0]
    rate, p99 = own.median("requests_per_second", LOADED), own.median("p99_ms", LOADED)
    rates = {name: best(measured, name, "requests_per_second") for name in ("mosec", "litserve")}
    made.targets = [
        Target(f"requests/s at c={LOADED}, of LitServe's best", rate / rates["litserve"], ">=", 2.0, "x"),
        Target(f"requests/s at c={LOADED}, of mosec's best", rate / rates["mosec"], ">=", 1.2, "x"),
        Target(
            f"p99 at c={LOADED}, of mosec's best", p99 / best(measured, "mosec", "p99_ms"), "<=", 1.0, "x"
        ),
        Target("requests that failed", sum(own.errors(c) for c in CONNECTIONS), "<=", 0, digits=0),
    ]
    made.notes = [
        "each figure is compared with the best that any of the peer's settings has",
        "wrk's p50 and p99 are corrected for coordinated omission; at 1.0 wrk cores it is at its limit",
        "wrk runs on the same cores",
    ]
    return made


def main() -> None:
    """Prints the table, and writes `.bench/results/python_served.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each figure")
    parser.add_argument("--seconds", type=int, default=4, help="length of each")
    arguments = parser.parse_args()
    nowhere = Path()
    options = Options(nowhere, nowhere, nowhere, arguments.repeats, arguments.seconds)
    neighbours = Neighbours()
    found = run(options)
    found.notes.append(neighbours.note())
    print(found.text())
    print(found.write_json())


if __name__ == "__main__":
    main()
