"""What batching is worth: many users of `resnet18`, with batches and without."""

from __future__ import annotations

import random
import statistics

import goodput
from goodput import IMAGE, Subject, load, quantile
from harness import Options, interleaved, server
from report import Report, Spread, Target

USERS = (200, 1000)
SIZES = (32, 1)
PUBLISHED = 3.3  # the published reference for such a system


def run(options: Options) -> Report:
    """Closed-loop users, each with one request at a time."""
    image = [random.Random(7).random() for _ in range(IMAGE[0] * IMAGE[1] * IMAGE[2])]
    body = goodput.write("resnet18.msgpack", b"\x81\xa4data" + goodput.msgpack(image))
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    measured: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for users in USERS:
        for size in interleaved(SIZES, min(options.repeats, 2)):
            settings = {
                "TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE": str(size),
                "TRUSTFORMERS_SERVE__SERVER__REQUEST_TIMEOUT": "300s",
            }
            with server(options, "resnet18", settings) as program:
                base = program.wait_url()
                program.wait_ready(base)
                subject = Subject("", program, f"{base}/models/resnet18/predict", kind, [body])
                rate = goodput.capacity(subject, options.seconds)
                # Every user is answered more than twice.
                seconds = max(float(options.seconds), 2.5 * users / rate)
                found = load(subject, users=users, seconds=seconds, timeout=300)
            end = max(found["due"]) if found["due"] else 0.0
            start = min(found["due"], default=0.0)
            done = [
                (due + took, took)
                for status, took, due in zip(found["status"], found["seconds"], found["due"], strict=True)
                if status == 200
            ]
            # The last round drains: only what was answered while all users were at it is a rate.
            times = sorted(took for _, took in done)
            in_time = sum(at <= end for at, _ in done)
            figures = (in_time / max(end - start, 1e-9), quantile(times, 0.5), quantile(times, 0.95))
            measured.setdefault((users, size), []).append(figures)
    return _report(measured)


def _report(measured: dict[tuple[int, int], list[tuple[float, float, float]]]) -> Report:
    report = Report(
        "batching",
        "batching: resnet18, closed loop, median (min-max)",
        ["", "users", "requests/s", "p50 ms", "p95 ms"],
    )
    rates: dict[tuple[int, int], float] = {}
    for users in USERS:
        for size in SIZES:
            runs = measured[users, size]
            rates[users, size] = statistics.median(run[0] for run in runs)
            name = f"batches of at most {size}" if size > 1 else "no batching"
            row = [name, str(users), Spread.of(run[0] for run in runs).text(1)]
            row += [Spread.of(run[n] * 1000 for run in runs).text() for n in (1, 2)]
            report.rows.append(row)
            report.measurements += [{"users": users, "size": size, "figures": run} for run in runs]
        gain = rates[users, SIZES[0]] / rates[users, SIZES[1]]
        report.targets.append(Target(f"gain of batching, {users} users", gain, ">=", PUBLISHED, "x"))
    return report
