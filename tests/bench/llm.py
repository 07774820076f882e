"""Streamed texts of a language model: this server, llama.cpp's, and transformers' static batches.

One checkpoint, the same prompts, the same threads, in one run. Beside the peers stand the limits of the
machine: bytes read a second at c=1, where every token reads all weights, and bfloat16 operations a second at
c=32, where prompts and texts are multiplied with them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import llamacpp
from harness import CORES, HERE, ROOT, WORK, BenchError, Options, interleaved
from llm_contest import SERVER, Contender, start_llamacpp, start_own
from llm_work import (
    OUTPUT,
    PROMPT,
    SHARED,
    Load,
    even,
    mixed,
    poisson,
    prefix_hits,
    shared_prefix,
    together,
)
from peers import Reference
from report import Report, Spread, Target

COLUMNS = (
    "",
    "load",
    "tokens/s",
    "of best peer",
    "TTFT p50/p95/p99 ms",
    "between tokens p50/p95/p99 ms",
    "failed",
)
STATIC = "transformers, static batch"
ALONE, SOME, MANY = even(1, 8), even(8, 48), even(32, 128)
MIXED, SHARED_PREFIX, TOGETHER = mixed(32, 128), shared_prefix(16, 64), together(32)
HITS = [prefix_hits(share, 16, 48) for share in (0.0, 0.5, 1.0)]
CROWD = even(200, 200)
# Blocks for 20 of the crowd's texts at their longest: keys and values of 12 layers, 4 heads of 64, bfloat16.
FEW_BYTES = 20 * (PROMPT + OUTPUT) * (2 * 12 * 4 * 64 * 2)
MUCH = "1GB"
POISSON_SHARE, POISSON_SECONDS = 0.8, 20.0
# Tokens/s to reach, of the best peer's.
TARGETS = [(ALONE, 1.0), (SOME, 1.4), (MANY, 1.5), (MIXED, 1.5), (SHARED_PREFIX, 2.0)]


@dataclass
class Static:
    """transformers' loop, and its rounds by batch size."""

    reference: Reference
    rates: dict[str, list[float]]

    def measure(self, load: Load, batch: int) -> None:
        said = self.reference.measure(str(batch))
        self.rates.setdefault(load.name, []).append(said["tokens"] / said["seconds"])


@dataclass
class Limits:
    """What the machine can do, once a repeat."""

    reference: Reference
    read: list[float]
    multiply: list[float]

    def measure(self) -> None:
        said = self.reference.measure()
        self.read.append(said["read_bytes_per_second"])
        self.multiply.append(said["bf16_flops"])


def checkpoint() -> Path:
    """The model's folder, made when missing."""
    path = WORK / "llm" / "model"
    if not (path / "tokenizer.json").exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = subprocess.run([sys.executable, HERE / "llm_model.py", path], capture_output=True, check=False)
        if run.returncode != 0:
            raise BenchError(f"llm_model.py: {run.stderr.decode(errors='replace')[-800:]}")
    return path


def run(options: Options) -> Report:
    """Measures everything; the servers that are not asked stand idle meanwhile."""
    folder = checkpoint()
    converted = llamacpp.convert(folder)
    report = Report(
        "llm",
        f"language model: 100M bf16, {CORES} threads, {options.repeats} repeats, median (min-max)",
        COLUMNS,
    )
    with ExitStack() as stack:
        static, limits = _references(stack, folder)
        own = start_own(stack, options, folder)
        contenders = [own, start_llamacpp(stack, converted)]
        for contender in contenders:
            contender.send(even(4, 4), seed=0)
        for load in [ALONE, SOME, MANY, MIXED, SHARED_PREFIX, TOGETHER, *HITS]:
            for repeat, contender in _turns(contenders, options.repeats):
                contender.measure(load, seed=1 + repeat)
        for _ in range(options.repeats):
            limits.measure()
            for load, batch in ((ALONE, 1), (SOME, 8), (MANY, 32)):
                static.measure(load, batch)
        capacity = max(peer.median(MANY.name, "requests_per_second") for peer in contenders[1:])
        open_loop = poisson(POISSON_SHARE * capacity, POISSON_SECONDS)
        for repeat, contender in _turns(contenders, options.repeats):
            contender.measure(open_loop, seed=1 + repeat)
        weights: dict[str, int] = static.reference.hello["weights"]
    bare = [
        llamacpp.decode_rate(converted, 32, PROMPT, 2 * OUTPUT)["speed_tg"] for _ in range(options.repeats)
    ]
    _rows(report, contenders, static, open_loop)
    _targets(report, contenders, static, open_loop, Spread.of(bare))
    _limits(report, own, limits, weights)
    _optional(report, "time of a step", lambda: _budget(report, folder))
    _optional(report, "int8", lambda: _int8(report, options, folder))
    _optional(report, "preemption", lambda: _crowd(report, options, folder))
    rate = POISSON_SHARE * capacity
    report.notes += [
        f"prompt {PROMPT} and output {OUTPUT} tokens, but for mixed lengths; shared prefix: {SHARED} more",
        f"Poisson: {rate:.2f} requests/s, {POISSON_SHARE:.0%} of what the best peer answers at c=32",
        f"llama-batched-bench decodes {Spread.of(bare).text()} tokens/s at batch 32, without a server",
        "tokens between which no text came count as one: bytes of a character that is not whole yet",
    ]
    return report


def _references(stack: ExitStack, folder: Path) -> tuple[Static, Limits]:
    script = "llm_reference.py"
    sizes = ["static", folder, str(PROMPT), str(OUTPUT), str(CORES)]
    static = stack.enter_context(Reference(STATIC, sizes, script))
    limits = stack.enter_context(Reference("limits", ["limits", str(CORES)], script))
    return Static(static, {}), Limits(limits, [], [])


def _turns(contenders: Sequence[Contender], repeats: int) -> list[tuple[int, Contender]]:
    turns = list(interleaved(contenders, repeats))
    return [(number // len(contenders), contender) for number, contender in enumerate(turns)]


def _best_peer(contenders: Sequence[Contender], static: Static | None, load: Load) -> float:
    rates = [peer.median(load.name, "tokens_per_second") for peer in contenders if peer.name != SERVER]
    if static is not None and load.name in static.rates:
        rates.append(Spread.of(static.rates[load.name]).median)
    return max(rates)


def _rows(report: Report, contenders: Sequence[Contender], static: Static, open_loop: Load) -> None:
    for load in [ALONE, SOME, MANY, MIXED, SHARED_PREFIX, TOGETHER, *HITS, open_loop]:
        best = _best_peer(contenders, static, load)
        for contender in contenders:
            report.rows.append(_row(contender, load, best))
            report.measurements += [
                {"name": contender.name, "load": load.name, **asdict(sample)}
                for sample in contender.samples[load.name]
            ]
        if load.name in static.rates:
            rates = Spread.of(static.rates[load.name])
            report.rows.append([STATIC, load.name, rates.text(), f"{rates.median / best:.2f}", "", "", ""])


def _row(contender: Contender, load: Load, best: float) -> list[str]:
    rates = contender.spread(load.name, "tokens_per_second")
    times = [
        "/".join(f"{contender.percentile_ms(load.name, figure, share):,.1f}" for share in (0.5, 0.95, 0.99))
        for figure in ("first_token", "gaps")
    ]
    failed = str(contender.failures(load.name))
    return [contender.name, load.name, rates.text(), f"{rates.median / best:.2f}", *times, failed]


def _targets(
    report: Report, contenders: Sequence[Contender], static: Static, open_loop: Load, bare: Spread
) -> None:
    own, peer = contenders
    for load, limit in TARGETS:
        share = own.median(load.name, "tokens_per_second") / _best_peer(contenders, static, load)
        report.targets.append(Target(f"tokens/s, {load.name}, of the best peer", share, ">=", limit, "x"))
    decode = own.median(TOGETHER.name, "together_rate") / bare.median
    report.targets.append(Target("decode alone, batch 32, of llama-batched-bench", decode, ">=", 1.8, "x"))
    first = [one.percentile_ms(open_loop.name, "first_token", 0.95) for one in (own, peer)]
    report.targets.append(Target("TTFT p95, Poisson, of llama.cpp", first[0] / first[1], "<=", 0.7, "x"))
    failures = sum(sample.failures for samples in own.samples.values() for sample in samples)
    report.targets.append(Target("failed requests", failures, "<=", 0, digits=0))
    for contender in contenders:
        failed = [sample.first_failure for samples in contender.samples.values() for sample in samples]
        report.notes += [f"{contender.name} failed: {first}" for first in failed if first][:1]


def _limits(report: Report, own: Contender, limits: Limits, weights: dict[str, int]) -> None:
    """The share of the machine that is reached."""
    read, multiply = Spread.of(limits.read), Spread.of(limits.multiply)
    alone = own.median(ALONE.name, "tokens_per_second") * weights["bytes"] / read.median
    # Each token of a prompt is multiplied too, but for the last layer's logits.
    tokens = own.median(MANY.name, "tokens_per_second") * (PROMPT + OUTPUT) / OUTPUT
    many = tokens * 2 * weights["parameters"] / multiply.median
    report.targets.append(Target("share of the bandwidth, c=1", alone, ">=", 0.8))
    report.targets.append(Target("share of the bf16 GEMM rate, c=32", many, ">=", 0.8))
    giga = [Spread.of(value / 1e9 for value in values) for values in (limits.read, limits.multiply)]
    report.notes.append(
        f"this machine reads {giga[0].text(1)} GB/s and does {giga[1].text()} GFLOP/s in bf16 products"
    )


def _optional(report: Report, what: str, measure: Callable[[], None]) -> None:
    """A part whose failure leaves the others their figures."""
    try:
        measure()
    except BenchError as error:
        report.targets.append(Target(f"{what}, could be measured", 0, ">=", 1, digits=0))
        report.notes.append(f"{what} could not be measured: {error}")


def _budget(report: Report, folder: Path) -> None:
    """Where a step's time goes, part by part, without a server."""
    program = ROOT / "target" / "release" / "examples" / "decode_bench"
    try:
        done = subprocess.run([program, folder], capture_output=True, text=True, check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"decode_bench: {error}") from error
    report.notes += done.stdout.splitlines()


def _int8(report: Report, options: Options, folder: Path) -> None:
    with ExitStack() as stack:
        plain = start_own(stack, options, folder)
        small = start_own(stack, options, folder, {"QUANTIZATION": "int8"})
        small.name = f"{SERVER}, int8"
        for repeat, contender in _turns([plain, small], options.repeats):
            contender.measure(ALONE, seed=1 + repeat)
    rates = [one.median(ALONE.name, "tokens_per_second") for one in (plain, small)]
    report.rows.append(_row(small, ALONE, rates[0]))
    report.targets.append(Target("int8, c=1, of bf16", rates[1] / rates[0], ">=", 1.5, "x"))


def _crowd(report: Report, options: Options, folder: Path) -> None:
    """More streams than the pool of blocks holds."""
    key = "BATCHING__CONTINUOUS__KV_CACHE_MEMORY"
    with ExitStack() as stack:
        large = start_own(stack, options, folder, {key: MUCH})
        few = start_own(stack, options, folder, {key: f"{FEW_BYTES}B"})
        large.name, few.name = f"{SERVER}, {MUCH} of blocks", f"{SERVER}, blocks for 20"
        for repeat, contender in _turns([large, few], options.repeats):
            contender.measure(CROWD, seed=1 + repeat)
    rates = [one.median(CROWD.name, "tokens_per_second") for one in (large, few)]
    report.rows += [_row(one, CROWD, rates[0]) for one in (large, few)]
    report.targets.append(
        Target("200 streams on blocks for 20, of many", rates[1] / rates[0], ">=", 0.8, "x")
    )
    failures = large.failures(CROWD.name) + few.failures(CROWD.name)
    report.targets.append(Target("200 streams, failed requests", failures, "<=", 0, digits=0))
