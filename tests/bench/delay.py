"""What batching adds to a model of known cost: 5 ms a batch, whatever it holds."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import contest
import wrk
from contest import Contender
from harness import BenchError, Options, fetch, server
from report import Report, Target

CONNECTIONS = (1, 64)
BATCH_SECONDS = 0.005
MAX_BATCH_SIZE = 32
CEILING = MAX_BATCH_SIZE / BATCH_SECONDS


def run(options: Options) -> Report:
    """Measures this server's `delay` model and mosec with a sleep, at three waits."""
    wrk.require()
    with ExitStack() as stack:
        own = stack.enter_context(server(options, "delay"))
        base = own.wait_url()
        own.wait_ready(base)
        contenders = [Contender(contest.SERVER, own, f"{base}/models/delay/predict")]
        contenders += contest.start_peers(stack, "delay")
        body = contest.write_body("delay", {"data": _item(base)})
        for contender in contenders:
            contender.program.wait_answer(contender.url, body.read_bytes())
        contest.run(contenders, body, CONNECTIONS, options)
    return _report(contenders, options)


def _item(base: str) -> Any:
    """Zeros in the shape that the server declares for one item."""
    status, answer = fetch(f"{base}/models/delay")
    if status != 200:
        raise BenchError(f"{base}/models/delay answers {status}: {answer.decode(errors='replace')}")
    item: Any = 0.0
    for size in reversed(json.loads(answer)["inputs"][0]["shape"]):
        item = [item] * max(size, 1)
    return item


def _report(contenders: list[Contender], options: Options) -> Report:
    report = Report(
        "delay",
        f"delay: 5 ms a batch, batch <= {MAX_BATCH_SIZE}, {contest.method(options)}",
        contest.COLUMNS,
    )
    contest.fill(report, contenders, CONNECTIONS)
    own = contenders[0]
    rate = own.median("requests_per_second", 64)
    report.targets = [
        Target("p50 at c=1", own.median("p50_ms", 1), "<=", 5.4, "ms"),
        Target("requests/s at c=64, of the ceiling", rate / CEILING, ">=", 0.95, "x", 3),
        Target("requests that failed", sum(own.errors(c) for c in CONNECTIONS), "<=", 0, digits=0),
    ]
    fastest, peer_rate = contest.best_peer(contenders, "requests_per_second", 64)
    quickest, peer_p50 = contest.best_peer(contenders, "p50_ms", 1)
    report.notes = [
        f"ceiling: {MAX_BATCH_SIZE} / 5 ms = {CEILING:,.0f} requests/s",
        f"{fastest.name} reaches {peer_rate / CEILING:.3f} x of the ceiling at c=64",
        f"{quickest.name} has the least p50 of the peer's settings at c=1: {peer_p50:.2f} ms",
        "wrk's p50 and p99 are corrected for coordinated omission",
    ]
    return report
