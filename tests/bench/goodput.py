"""Answers in time under open-loop load, from half of what a server can do to half more than that."""

from __future__ import annotations

import json
import random
import statistics
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
from harness import HERE, WORK, BenchError, Options, Program, model_file, server
from peers import WAITS_MS, Mosec
from report import Report, Spread, Target

SHARES = (0.5, 0.8, 0.95, 1.2, 1.5)  # of the better server's capacity
ARRIVALS = ("poisson", "bursty")
USERS = 64  # closed loop that finds the capacity
SLO_SOLO_TIMES = 5
BURST_FACTOR = 3.0  # rate of a burst, of the mean
BURST_SECONDS = 0.5
IMAGE = (3, 224, 224)
COLUMNS = ["", "arrivals", "of capacity", "rate /s", "goodput /s", "in time", "refused", "p50 ms", "p99 ms"]


@dataclass
class Subject:
    """A running server, and how it is asked."""

    name: str
    program: Program
    url: str
    headers: dict[str, str]
    bodies: list[Path]
    capacity: list[float] = field(default_factory=list[float])
    cells: dict[tuple[str, float], list[Cell]] = field(default_factory=dict[tuple[str, float], "list[Cell]"])


@dataclass(frozen=True)
class Cell:
    """One open-loop measurement."""

    rate: float  # requests due each second
    goodput: float  # answered 200 within the SLO, each second
    in_time: float  # of those due
    refused: float  # answered, and not with 200
    p50_ms: float  # of those answered with 200
    p99_ms: float


def run_resnet18(options: Options) -> Report:
    """Images of one size: `resnet18`."""
    image = [random.Random(7).random() for _ in range(IMAGE[0] * IMAGE[1] * IMAGE[2])]
    own = write("resnet18.msgpack", b"\x81\xa4data" + msgpack(image))
    peer = write("resnet18.f32", struct.pack(f"<{len(image)}f", *image))
    return _run("resnet18", [own], [peer], "application/msgpack", model_file(options, "resnet18.pt"), options)


def run_minilm(options: Options) -> Report:
    """Texts of 16 to 256 tokens, most of them short: `minilm`."""
    texts = corpus.skewed(256)
    bodies = [write(f"text-{n}.json", json.dumps({"data": text}).encode()) for n, text in enumerate(texts)]
    return _run("minilm", bodies, bodies, "application/json", model_file(options, "minilm"), options)


def write(name: str, content: bytes) -> Path:
    """A file for the load generator."""
    path = WORK / "bodies" / "goodput" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def msgpack(image: Sequence[float]) -> bytes:
    """The image as nested msgpack arrays of f32."""

    def array(shape: Sequence[int], values: Sequence[float]) -> bytes:
        if not shape:
            return b"\xca" + struct.pack(">f", values[0])
        step = len(values) // shape[0]
        head = b"\xdc" + struct.pack(">H", shape[0])
        return head + b"".join(
            array(shape[1:], values[start : start + step]) for start in range(0, len(values), step)
        )

    return array(IMAGE, image)


def _run(
    model: str, own_bodies: list[Path], peer_bodies: list[Path], kind: str, file: Path, options: Options
) -> Report:
    slo = _slo(model, own_bodies, kind, options)
    headers = {"Content-Type": kind, "Accept": kind}

    def start(stack: ExitStack, waits: Sequence[int], timeout_ms: int | None) -> list[Subject]:
        """This server and mosec with each of the waits; both know the time that a request has, if any."""
        env = {} if timeout_ms is None else {"TRUSTFORMERS_SERVE__BATCHING__LATENCY_SLO": f"{timeout_ms}ms"}
        own = stack.enter_context(server(options, model, env))
        base = own.wait_url()
        own.wait_ready(base)
        told = {} if timeout_ms is None else {"X-Timeout-Ms": str(timeout_ms)}
        url = f"{base}/models/{model}/predict"
        subjects = [Subject("this server", own, url, headers | told, own_bodies)]
        for wait in waits:
            peer = stack.enter_context(Mosec(file, wait, timeout_ms or 30_000))
            subjects.append(Subject(peer.name, peer, peer.url, {}, peer_bodies))
        for subject in subjects:
            body = subject.bodies[0].read_bytes()
            subject.program.wait_answer(subject.url, body, headers=headers)
            load(subject, users=1, seconds=2)
        return subjects

    with ExitStack() as stack:
        subjects = start(stack, WAITS_MS, None)
        for subject in subjects:
            load(subject, users=USERS, seconds=1)
        for _ in range(options.repeats):
            for subject in subjects:
                subject.capacity.append(capacity(subject, options.seconds))
    best = max(range(len(WAITS_MS)), key=lambda n: statistics.median(subjects[n + 1].capacity))
    top = max(statistics.median(subject.capacity) for subject in subjects)
    with ExitStack() as stack:
        own, peer = start(stack, [WAITS_MS[best]], round(slo * 1000))
        for repeat in range(options.repeats):
            for arrivals in ARRIVALS:
                for share in (*SHARES, 1.0):
                    due = schedule(arrivals, top * share, options.seconds, seed=repeat)
                    for subject in (own, peer):
                        cell = _cell(subject, due, options.seconds, slo)
                        subject.cells.setdefault((arrivals, share), []).append(cell)
    return _report(model, own, peer, subjects, slo, options)


def _slo(model: str, bodies: list[Path], kind: str, options: Options) -> float:
    """Five times what the largest item takes alone, in seconds."""
    with server(options, model) as program:
        base = program.wait_url()
        program.wait_ready(base)
        headers = {"Content-Type": kind, "Accept": kind}
        largest = [max(bodies, key=lambda body: body.stat().st_size)]
        subject = Subject("", program, f"{base}/models/{model}/predict", headers, largest)
        load(subject, users=1, seconds=1, timeout=30)
        seconds = load(subject, users=1, seconds=2, timeout=30)["seconds"]
    return SLO_SOLO_TIMES * statistics.median(seconds)


def load(
    subject: Subject,
    due: Sequence[float] = (),
    users: int = 0,
    seconds: float = 0,
    timeout: float = 30,
) -> dict[str, Any]:
    """What became of the requests: `status`, `seconds` and `due` of each."""
    plan = {
        "url": subject.url,
        "kinds": [
            {"name": "all", "headers": subject.headers, "bodies": [str(path) for path in subject.bodies]}
        ],
        "due": [(at, 0) for at in due],
        "users": users,
        "seconds": seconds,
        "timeout": timeout,
    }
    return send(plan)["all"]


def send(plan: dict[str, Any]) -> dict[str, Any]:
    """Has the load generator send a plan; the answers of each kind."""
    path = write("plan.json", json.dumps(plan).encode())
    done = subprocess.run(
        [sys.executable, HERE / "load.py", path], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)["answers"]


def capacity(subject: Subject, seconds: int) -> float:
    """Requests answered each second while `USERS` users all had one under way."""
    found = load(subject, users=USERS, seconds=seconds, timeout=30)
    end = min(found["due"]) + seconds
    answers = zip(found["status"], found["seconds"], found["due"], strict=True)
    return sum(status == 200 and due + took <= end for status, took, due in answers) / seconds


def schedule(arrivals: str, rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due: the same for every server at one rate and seed."""
    source = random.Random(f"{arrivals} {seed}")
    due: list[float] = []
    at = 0.0
    while True:
        at += source.expovariate(rate)
        if at >= seconds:
            return due
        # Bursts: each third of a period holds all of the period's arrivals.
        period = BURST_SECONDS * BURST_FACTOR
        start = at // period * period
        due.append(start + (at - start) / BURST_FACTOR if arrivals == "bursty" else at)


def _cell(subject: Subject, due: Sequence[float], seconds: float, slo: float) -> Cell:
    answers = load(subject, due=due, timeout=max(4 * slo, 2))
    good = sum(s == 200 and t <= slo for s, t in zip(answers["status"], answers["seconds"], strict=True))
    times = sorted(t for s, t in zip(answers["status"], answers["seconds"], strict=True) if s == 200)
    refused = sum(status not in (0, 200) for status in answers["status"])
    return Cell(
        rate=len(due) / seconds,
        goodput=good / seconds,
        in_time=good / max(len(due), 1),
        refused=refused / max(len(due), 1),
        p50_ms=quantile(times, 0.5) * 1000,
        p99_ms=quantile(times, 0.99) * 1000,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank; not a number where there is nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def _median(subject: Subject, arrivals: str, share: float, figure: str) -> float:
    return statistics.median(getattr(cell, figure) for cell in subject.cells[arrivals, share])


def _report(
    model: str, own: Subject, peer: Subject, measured: list[Subject], slo: float, options: Options
) -> Report:
    report = Report(
        f"goodput-{model}",
        f"goodput: {model}, open loop, SLO {slo * 1000:.0f} ms, batch <= 32, "
        f"{options.repeats} x {options.seconds} s, median",
        COLUMNS,
    )
    for arrivals in ARRIVALS:
        for share in sorted((*SHARES, 1.0)):
            for subject in (own, peer):
                row = [subject.name, arrivals, f"{share:.0%}"]
                row += [f"{_median(subject, arrivals, share, key):,.1f}" for key in ("rate", "goodput")]
                row += [f"{_median(subject, arrivals, share, key):.1%}" for key in ("in_time", "refused")]
                row += [f"{_median(subject, arrivals, share, key):,.1f}" for key in ("p50_ms", "p99_ms")]
                report.rows.append(row)
                report.measurements += [
                    {"name": subject.name, "arrivals": arrivals, "share": share, **vars(cell)}
                    for cell in subject.cells[arrivals, share]
                ]
    for arrivals in ARRIVALS:
        ours = _median(own, arrivals, 1.2, "goodput")
        theirs = _median(peer, arrivals, 1.2, "goodput")
        report.targets.append(
            Target(f"goodput at 120 %, {arrivals}, of {peer.name}", ours / max(theirs, 0.1), ">=", 1.5, "x")
        )
        kept = _median(own, arrivals, 1.5, "goodput") / _median(own, arrivals, 1.0, "goodput")
        report.targets.append(
            Target(f"goodput at 150 %, {arrivals}, of that at 100 %", kept, ">=", 0.95, "x")
        )
    for subject in measured:
        spread = Spread.of(subject.capacity).text(1)
        report.notes.append(f"capacity of {subject.name}, {USERS} users in a closed loop: {spread} /s")
    report.notes += [
        f"SLO: {SLO_SOLO_TIMES} x what the largest item takes alone on this server",
        "this server is told the SLO as each request's timeout, mosec as its own timeout",
        "bursty: 0.5 s at three times the rate, then 1 s of none",
    ]
    return report
