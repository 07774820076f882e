"""What buckets are worth: texts of skewed lengths on a model whose batches are padded."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import corpus
import goodput
from goodput import Subject, load, quantile
from harness import HERE, WORK, BenchError, Options, fetch, interleaved, model_file, server
from report import Report, Spread, Target
from tokenizers import Tokenizer

USERS = 256
MODEL = "minilm-padded"
DYNAMIC = "TRUSTFORMERS_SERVE__BATCHING__DYNAMIC__"


@dataclass
class Way:
    """How inputs of different lengths come into batches."""

    name: str
    settings: dict[str, str]
    rates: list[float] = field(default_factory=list[float])
    p99: list[float] = field(default_factory=list[float])
    padding: list[float] = field(default_factory=list[float])


def run(options: Options) -> Report:
    """Closed-loop users on traced MiniLM, 16 to 256 tokens."""
    folder = model_file(options, "minilm")
    file = WORK / "models" / f"{MODEL}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            [sys.executable, HERE / "trace_minilm.py", folder, file],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise BenchError(f"the model could not be traced:\n{made.stderr[-2000:]}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    bodies = [
        goodput.write(f"ids-{n}.json", json.dumps({"data": _item(tokenizer, text)}).encode())
        for n, text in enumerate(corpus.skewed(512))
    ]
    ways = [
        Way("in order of arrival, each batch to its longest", {"ENABLE_BUCKETING": "false"}),
        Way("buckets 32, 64, 128, 256", {"BUCKET_BOUNDARIES": "[32, 64, 128, 256]"}),
        Way("buckets learned", {"BUCKET_BOUNDARIES": "[]"}),
        Way("dynamic split", {"PADDING_STRATEGY": "dynamic"}),
    ]
    kind = {"Content-Type": "application/json", "Accept": "application/json"}
    for way in interleaved(ways, options.repeats):
        settings = {DYNAMIC + key: value for key, value in way.settings.items()}
        with server(options, "padded", settings) as program:
            base = program.wait_url()
            program.wait_ready(base)
            subject = Subject(way.name, program, f"{base}/models/{MODEL}/predict", kind, bodies)
            load(subject, users=USERS, seconds=2)
            found = load(subject, users=USERS, seconds=options.seconds)
            stats = json.loads(fetch(f"{base}/admin/stats")[1])["models"][0]
        end = min(found["due"]) + options.seconds
        answers = list(zip(found["status"], found["seconds"], found["due"], strict=True))
        if any(status != 200 for status, _, _ in answers):
            raise BenchError(f"{way.name}: a request failed")
        way.rates.append(sum(due + took <= end for _, took, due in answers) / options.seconds)
        way.p99.append(quantile(sorted(took for _, took, _ in answers), 0.99))
        way.padding.append(stats["batching"]["padding"]["overhead"])
    return _report(ways, options)


def _item(tokenizer: Any, text: str) -> dict[str, list[int]]:
    ids: list[int] = tokenizer.encode(text).ids
    return {"ids": ids, "mask": [1] * len(ids)}


def _report(ways: list[Way], options: Options) -> Report:
    report = Report(
        "buckets",
        f"buckets: padded MiniLM, 16-256 tokens, {USERS} users, batch <= 32, "
        f"{options.repeats} x {options.seconds} s, median (min-max)",
        ["", "texts/s", "x arrival order", "p99 ms", "padding"],
    )
    plain = statistics.median(ways[0].rates)
    for way in ways:
        gain = statistics.median(way.rates) / plain
        padding = f"{statistics.median(way.padding):.0%}"
        p99 = f"{statistics.median(way.p99) * 1000:,.0f}"
        report.rows.append([way.name, Spread.of(way.rates).text(1), f"{gain:.2f}", p99, padding])
        report.measurements.append({"name": way.name, "rates": way.rates, "padding": way.padding})
    for way in ways[1:]:
        gain = statistics.median(way.rates) / plain
        report.targets.append(Target(f"texts/s, {way.name}, of arrival order", gain, ">=", 1.6, "x"))
    return report
