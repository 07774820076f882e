"""Language model servers side by side: starting them, and what is read out of their answers to a load."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import HERE, WORK, BenchError, Options, Program, server
from llamacpp import LlamaServer
from llm_work import Load, Text
from report import Spread

SERVER, LLAMACPP = "this server", "llama.cpp"
MODEL = "llm"
_TIMEOUT_SECONDS = 300.0
_ROUTE = "/v1/completions"


@dataclass(frozen=True)
class Sample:
    """One load on one server."""

    seconds: float  # from the first that was due to the last end
    requests: int
    failures: int
    first_failure: str
    tokens: int  # that were made
    cached: int  # of the prompts, not computed again
    first_token: list[float]  # seconds from due to the first text, of each request
    gaps: list[float]  # between one text and the next, of all requests
    together_rate: float  # tokens a second while all requests were generating; 0 where they never all were
    generator_cores: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def requests_per_second(self) -> float:
        return (self.requests - self.failures) / self.seconds


@dataclass
class Contender:
    """A running server, what it wants to be told beside OpenAI's fields, and what was measured of it."""

    name: str
    program: Program
    base: str
    extra: Mapping[str, Any]
    samples: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])

    def send(self, load: Load, seed: int) -> Sample:
        """Makes the load from the seed and sends it."""
        self.program.check_alive()
        work = load.make(seed)
        if work.before:
            self._generate(work.before, users=1, due=())
        wanted = [text.output for text in work.texts]
        return _sample(self._generate(work.texts, work.users, work.due), wanted)

    def measure(self, load: Load, seed: int) -> None:
        self.samples.setdefault(load.name, []).append(self.send(load, seed))

    def _generate(self, texts: Sequence[Text], users: int, due: Sequence[float]) -> dict[str, Any]:
        plan = {
            "url": self.base + _ROUTE,
            "bodies": [self._body(text) for text in texts],
            "due": list(due),
            "users": users,
            "timeout": _TIMEOUT_SECONDS,
        }
        path = WORK / "bodies" / f"llm-{self.name.replace(' ', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan))
        command = [sys.executable, HERE / "llm_load.py", path]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise BenchError(f"llm_load.py ended with {run.returncode}:\n{run.stderr[-800:]}")
        return json.loads(run.stdout)

    def _body(self, text: Text) -> dict[str, Any]:
        body = {"model": MODEL, "prompt": list(text.prompt), "max_tokens": text.output}
        body |= {"min_tokens": text.output, "ignore_eos": True, "temperature": 0}
        return body | {name: text.output if value is None else value for name, value in self.extra.items()}

    def spread(self, load: str, figure: str) -> Spread:
        return Spread.of(getattr(sample, figure) for sample in self.samples[load])

    def median(self, load: str, figure: str) -> float:
        return self.spread(load, figure).median

    def percentile_ms(self, load: str, figure: str, share: float) -> float:
        """Of the times of all requests of all repeats."""
        values = [value for sample in self.samples[load] for value in getattr(sample, figure)]
        return 1000 * percentile(values, share)

    def failures(self, load: str) -> int:
        return sum(sample.failures for sample in self.samples[load])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _sample(said: dict[str, Any], wanted: Sequence[int]) -> Sample:
    answers: list[dict[str, Any]] = said["answers"]
    # In the order they were sent, which is that of the texts.
    failures = [
        answer["failure"] or f"{answer['tokens']} tokens instead of {output}"
        for answer, output in zip(answers, wanted, strict=True)
        if answer["status"] != 200 or answer["tokens"] != output
    ]
    begin = min(answer["due"] for answer in answers)
    seconds = max(answer["end"] for answer in answers) - begin
    events: list[list[float]] = [answer["events"] for answer in answers if answer["events"]]
    return Sample(
        seconds=seconds,
        requests=len(answers),
        failures=len(failures),
        first_failure=failures[0] if failures else "",
        tokens=sum(answer["tokens"] for answer in answers),
        cached=sum(answer["cached"] for answer in answers),
        first_token=[answer["events"][0] - answer["due"] for answer in answers if answer["events"]],
        gaps=[after - before for times in events for before, after in itertools.pairwise(times)],
        together_rate=_together_rate(events),
        generator_cores=said["cpu_seconds"] / seconds,
    )


def _together_rate(events: Sequence[Sequence[float]]) -> float:
    """Events a second between the last one to begin and the first one to end."""
    begin = max((times[0] for times in events), default=0.0)
    end = min((times[-1] for times in events), default=0.0)
    inside = sum(begin < at <= end for times in events for at in times)
    return inside / (end - begin) if end > begin else 0.0


def start_own(
    stack: ExitStack, options: Options, checkpoint: Path, settings: Mapping[str, str] | None = None
) -> Contender:
    """This server with the model, ended with the stack; `settings` are keys of the model and their values."""
    keys = {"PATH": str(checkpoint), **(settings or {})}
    env = {f"TRUSTFORMERS_SERVE__MODELS__{MODEL.upper()}__{key}": value for key, value in keys.items()}
    program = stack.enter_context(server(options, "llm", env))
    base = program.wait_url()
    program.wait_ready(base)
    return Contender(SERVER, program, base, {})


def start_llamacpp(stack: ExitStack, model: Path) -> Contender:
    """llama.cpp's server with the converted model, ended with the stack."""
    program = stack.enter_context(LlamaServer(model))
    program.wait_answer(f"{program.base}/health")
    return Contender(LLAMACPP, program, program.base, {"n_predict": None, "cache_prompt": True})
