"""Who waits under overload: urgent requests, and the neighbours of a client that floods."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import goodput
from goodput import IMAGE, Subject, quantile, schedule, send
from harness import Options, server
from report import Report, Target

OVERLOAD = 1.2
CRITICAL_SHARE = 0.05
CLIENTS = 11  # as many of equal rate as one flood and one neighbour have together
FLOOD = 10.0  # of the neighbour's rate


def run(options: Options) -> Report:
    """Measures `resnet18` at 120 % of what it can do."""
    image = [random.Random(7).random() for _ in range(IMAGE[0] * IMAGE[1] * IMAGE[2])]
    body = goodput.write("resnet18.msgpack", b"\x81\xa4data" + goodput.msgpack(image))
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    critical: list[dict[str, float]] = []
    neighbours: dict[str, list[float]] = {"flooded": [], "shared": []}
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryDirectory())
        settings = {"TRUSTFORMERS_SERVE__BATCHING__EVENT_LOG": log}
        program = stack.enter_context(server(options, "resnet18", settings))
        base = program.wait_url()
        program.wait_ready(base)
        subject = Subject("this server", program, f"{base}/models/resnet18/predict", kind, [body])
        goodput.load(subject, users=goodput.USERS, seconds=2)
        capacity = goodput.capacity(subject, options.seconds)
        rate = OVERLOAD * capacity
        for repeat in range(options.repeats):
            critical.append(_critical(subject, rate, options.seconds, repeat))
            for name, found in neighbours.items():
                found.append(_neighbour(subject, name, rate, options.seconds, repeat))
        batch = _full_batch_seconds(next(Path(log).glob("resnet18@*.jsonl")))
    return _report(capacity, batch, critical, neighbours, options)


def _kind(subject: Subject, name: str, **headers: str) -> dict[str, Any]:
    own = {key.replace("_", "-"): value for key, value in headers.items()}
    return {"name": name, "headers": subject.headers | own, "bodies": [str(subject.bodies[0])]}


def _send(subject: Subject, kinds: list[dict[str, Any]], due: list[tuple[float, int]]) -> dict[str, Any]:
    plan = {"url": subject.url, "kinds": kinds, "due": due, "users": 0, "seconds": 0, "timeout": 30}
    return send(plan)


def _p99(answers: dict[str, Any]) -> float:
    times = zip(answers["status"], answers["seconds"], strict=True)
    return quantile(sorted(seconds for status, seconds in times if status == 200), 0.99)


def _critical(subject: Subject, rate: float, seconds: int, seed: int) -> dict[str, float]:
    """p99 of each priority, in seconds."""
    source = random.Random(seed)
    kinds = [_kind(subject, "normal"), _kind(subject, "critical", X_Priority="critical")]
    due = [(at, int(source.random() < CRITICAL_SHARE)) for at in schedule("poisson", rate, seconds, seed)]
    return {name: _p99(answers) for name, answers in _send(subject, kinds, due).items()}


def _neighbour(subject: Subject, how: str, rate: float, seconds: int, seed: int) -> float:
    """p99 of the client `neighbour`, which has one part in eleven of the load."""
    others = 1 if how == "flooded" else CLIENTS - 1
    kinds = [_kind(subject, "neighbour", X_Client_Id="neighbour")]
    kinds += [_kind(subject, f"other {n}", X_Client_Id=f"other-{n}") for n in range(others)]
    source = random.Random(seed)
    due = [
        (at, 0 if source.random() < 1 / CLIENTS else 1 + source.randrange(others))
        for at in schedule("poisson", rate, seconds, seed)
    ]
    return _p99(_send(subject, kinds, due)["neighbour"])


def _full_batch_seconds(log: Path) -> float:
    """Median duration of the largest batches, by the server's own log: overload makes all so large."""
    sizes: dict[int, int] = {}
    times: dict[int, float] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "plan" and event["batch"]:
            batch, tickets = event["batch"]
            sizes[batch] = len(tickets)
        elif event["event"] == "complete":
            busy = event["report"]["busy"]
            times[event["batch"]] = busy["secs"] + busy["nanos"] / 1e9
    largest = max(sizes.values())
    return statistics.median(seconds for batch, seconds in times.items() if sizes[batch] == largest)


def _report(
    capacity: float,
    batch: float,
    critical: list[dict[str, float]],
    neighbours: dict[str, list[float]],
    options: Options,
) -> Report:
    report = Report(
        "scheduling",
        f"scheduling: resnet18 at {OVERLOAD:.0%} of {capacity:.1f}/s, open loop, "
        f"{options.repeats} x {options.seconds} s, median",
        ["", "p99 ms"],
    )
    middle = {name: statistics.median(found[name] for found in critical) for name in ("normal", "critical")}
    flooded, shared = (statistics.median(neighbours[name]) for name in ("flooded", "shared"))
    for name, seconds in [
        ("normal requests, 95 %", middle["normal"]),
        ("critical requests, 5 %", middle["critical"]),
        ("a full batch, median duration", batch),
        ("a client beside one that floods at ten times its rate", flooded),
        ("a client beside ten of its rate", shared),
    ]:
        report.rows.append([name, f"{seconds * 1000:,.1f}"])
    report.targets = [
        Target("p99 of critical, in durations of a full batch", middle["critical"] / batch, "<=", 2.0, "x"),
        Target("p99 beside a flood, of that without", flooded / shared, "<=", 1.5, "x"),
    ]
    report.measurements = [{"critical": critical, "neighbours": neighbours}]
    return report
