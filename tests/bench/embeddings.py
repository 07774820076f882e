"""Sentence embeddings over HTTP against sentence-transformers in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import contest
import wrk
from corpus import sentences
from harness import CORES, WORK, BenchError, Options, Program, echo, interleaved, model_file, server
from peers import Reference
from report import Report, Spread, Target

TEXTS = 2000
TEXTS_A_REQUEST = 64
TOLERANCE = 1e-4
COLUMNS = ("", "texts/s", "tokens/s", "x peer", "errors", "wrk cores")
PEER = "sentence-transformers encode(batch_size=32)"


@dataclass
class Way:
    """One way to have all texts embedded, and how long each round of them took."""

    name: str
    measure: Callable[[], wrk.Round]
    rounds: list[wrk.Round] = field(default_factory=list[wrk.Round])

    def texts_per_second(self) -> Spread:
        return Spread.of(TEXTS / done.seconds for done in self.rounds)


def run(options: Options) -> Report:
    """Measures this server with 1 and with 64 texts a request, the peer, and wrk against an echo."""
    wrk.require()
    texts = sentences(TEXTS)
    single = _write_bodies("single", list(texts))
    many = _write_bodies("many", [texts[i : i + TEXTS_A_REQUEST] for i in range(0, TEXTS, TEXTS_A_REQUEST)])
    listed = contest.write_body("texts", texts)
    with ExitStack() as stack:
        model = model_file(options, "minilm")
        peer = stack.enter_context(Reference("sentence-transformers", ["encode", model, listed, str(CORES)]))
        own = stack.enter_context(server(options, "minilm"))
        base = own.wait_url()
        own.wait_ready(base)
        url = f"{base}/v1/embeddings"
        _check(own, url, texts[0], peer.hello["output"])
        bare = stack.enter_context(echo(options))
        echo_url = f"{bare.wait_url()}/echo"

        ways = [
            Way(PEER, lambda: wrk.Round(peer.measure()["seconds"], 0, 0.0)),
            Way(f"{contest.SERVER}, 1 text a request, c=32", lambda: wrk.work_through(url, single, 32)),
            Way(f"{contest.SERVER}, 64 texts a request, c=1", lambda: wrk.work_through(url, many, 1)),
            Way(f"{contest.SERVER}, 64 texts a request, c=4", lambda: wrk.work_through(url, many, 4)),
        ]
        wrk.work_through(url, single, 32)
        for way in interleaved(ways, options.repeats):
            way.rounds.append(way.measure())
        ceilings = [
            Way("echo, 1 text a request, c=32 (ceiling)", lambda: wrk.work_through(echo_url, single, 32)),
            Way("echo, 64 texts a request, c=4 (ceiling)", lambda: wrk.work_through(echo_url, many, 4)),
        ]
        for way in interleaved(ceilings, options.repeats):
            way.rounds.append(way.measure())
        counts: list[int] = peer.hello["token_counts"]
    return _report(ways, ceilings, counts, options)


def _write_bodies(name: str, inputs: list[str] | list[list[str]]) -> Path:
    """One request body a line."""
    path = WORK / "bodies" / f"embeddings-{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"model": "minilm", "input": item}) + "\n" for item in inputs))
    return path


def _check(program: Program, url: str, text: str, expected: list[float]) -> None:
    """Raises unless the server embeds `text` as the peer does."""
    answer = program.wait_answer(url, json.dumps({"model": "minilm", "input": text}).encode())
    got: list[float] = json.loads(answer)["data"][0]["embedding"]
    worst = max((abs(a - b) for a, b in zip(got, expected, strict=True)), default=1.0)
    if worst > TOLERANCE:
        raise BenchError(f"the server's embedding differs from sentence-transformers' by {worst}")


def _report(ways: list[Way], ceilings: list[Way], token_counts: list[int], options: Options) -> Report:
    report = Report(
        "embeddings",
        f"embeddings: minilm, {TEXTS} texts, {CORES} threads, {options.repeats} repeats, median (min-max)",
        COLUMNS,
    )
    peer_rate = ways[0].texts_per_second().median
    tokens_a_text = sum(token_counts) / len(token_counts)
    for way in [*ways, *ceilings]:
        rate = way.texts_per_second()
        errors = sum(done.errors for done in way.rounds)
        report.rows.append(
            [
                way.name,
                rate.text(),
                f"{rate.median * tokens_a_text:,.0f}",
                f"{rate.median / peer_rate:.2f}",
                str(errors),
                f"{Spread.of(done.generator_cores for done in way.rounds).median:.2f}",
            ]
        )
        report.measurements += [
            {"name": way.name, "seconds": done.seconds, "errors": done.errors} for done in way.rounds
        ]
        if way in ways[1:]:
            report.targets.append(
                Target(f"texts/s, {way.name}, of the peer", rate.median / peer_rate, ">=", 1.3, "x")
            )
            report.targets.append(Target(f"failed requests, {way.name}", errors, "<=", 0, digits=0))
    counts = sorted(token_counts)
    report.notes = [
        f"tokens a text, special ones too: {counts[0]} to {counts[-1]}, mean {tokens_a_text:.1f}",
        "the peer sorts all texts by length; the server sees them in the order they come",
    ]
    return report
