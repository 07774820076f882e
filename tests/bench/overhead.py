"""What a request costs beside the model: a small MLP in JSON, against mosec and against a bare echo."""

from __future__ import annotations

import random
from contextlib import ExitStack

import contest
import wrk
from contest import Contender
from harness import Options, echo, model_file, server
from peers import Reference
from report import Report, Spread, Target

CONNECTIONS = (1, 8, 64)
FEATURES = 64
ECHO = "echo (ceiling)"


def run(options: Options) -> Report:
    """Measures this server, mosec at three waits, an echo on the same HTTP stack, the bare forward."""
    wrk.require()
    source = random.Random(0)
    body = contest.write_body("mlp", {"data": [round(source.gauss(0, 1), 6) for _ in range(FEATURES)]})
    model = model_file(options, "mlp.pt")
    with ExitStack() as stack:
        forward = stack.enter_context(Reference("forward", ["forward", model, body]))
        contenders: list[Contender] = []

        own = stack.enter_context(server(options, "mlp"))
        base = own.wait_url()
        own.wait_ready(base)
        contenders.append(Contender(contest.SERVER, own, f"{base}/models/mlp/predict"))

        contenders += contest.start_peers(stack, model)
        for contender in contenders:
            answer = contender.program.wait_answer(contender.url, body.read_bytes())
            contest.check_output(contender.name, answer, forward.hello["output"])

        bare = stack.enter_context(echo(options))
        contenders.append(Contender(ECHO, bare, f"{bare.wait_url()}/echo"))

        forward_times = [forward.measure()["p50_ms"]]
        contest.run(contenders, body, CONNECTIONS, options)
        forward_times += [forward.measure()["p50_ms"] for _ in range(options.repeats)]
    return _report(contenders, Spread.of(forward_times), options)


def _report(contenders: list[Contender], forward: Spread, options: Options) -> Report:
    report = Report(
        "overhead",
        f"overhead: MLP 64-256-256-10 in JSON, batch <= 32, {contest.method(options)}",
        contest.COLUMNS,
    )
    contest.fill(report, contenders, CONNECTIONS)
    own, ceiling = contenders[0], contenders[-1]
    rate = own.median("requests_per_second", 64)
    fastest, peer_rate = contest.best_peer(contenders, "requests_per_second", 64)
    steadiest, peer_p99 = contest.best_peer(contenders, "p99_ms", 64)
    echo_rate = ceiling.median("requests_per_second", 64)
    above = own.median("p50_ms", 1) - forward.median
    report.targets = [
        Target(f"requests/s at c=64, of {fastest.name}", rate / peer_rate, ">=", 4.0, "x"),
        Target(f"p99 at c=64, of {steadiest.name}", own.median("p99_ms", 64) / peer_p99, "<=", 0.5, "x"),
        Target("requests/s at c=64, of the echo", rate / echo_rate, ">=", 0.5, "x"),
        Target("p50 at c=1 above the bare forward", above, "<=", 0.15, "ms", 3),
        Target("requests that failed", sum(own.errors(c) for c in CONNECTIONS), "<=", 0, digits=0),
    ]
    report.notes = [
        f"bare forward, batch 1, 1 thread: p50 {forward.text(4)} ms through Python, so an upper bound",
        "each figure is compared with the best that any of the peer's settings has",
        "wrk's p50 and p99 are corrected for coordinated omission; at 1.0 wrk cores it is at its limit",
        f"p50 at c=1 of the echo, so of the HTTP stack and wrk alone: {ceiling.median('p50_ms', 1):.3f} ms",
    ]
    report.measurements.append({"name": "bare forward", "p50_ms": forward.median, "low": forward.low})
    return report
