"""What one bad request in a thousand costs the others."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from pathlib import Path

import torch
import wrk
from harness import WORK, Options, interleaved, model_file, server
from report import Report, Spread, Target

REQUESTS = 20_000
POISON_EVERY = 1_000
CONNECTIONS = 64


class Guarded(torch.nn.Module):
    """The MLP, which refuses a batch that holds a value no image has."""

    def __init__(self, inner: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fails on the whole batch, as real models do."""
        if bool((x > 1e6).any()):
            raise RuntimeError("a value is out of range")
        return self.inner(x)


def run(options: Options) -> Report:
    """Measures the same requests with and without the bad ones."""
    wrk.require()
    model = WORK / "models" / "guarded.pt"
    model.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(Guarded(torch.jit.load(model_file(options, "mlp.pt")))).save(str(model))
    bodies = {"none": _bodies("good", poison=False), "one in 1,000": _bodies("poison", poison=True)}
    rounds: dict[str, list[wrk.Round]] = {name: [] for name in bodies}
    with ExitStack() as stack:
        settings = {"TRUSTFORMERS_SERVE__MODELS__GUARDED__PATH": str(model)}
        program = stack.enter_context(server(options, "guarded", settings))
        base = program.wait_url()
        program.wait_ready(base)
        url = f"{base}/models/guarded/predict"
        wrk.work_through(url, bodies["none"], CONNECTIONS)
        for name in interleaved(list(bodies), options.repeats):
            rounds[name].append(wrk.work_through(url, bodies[name], CONNECTIONS))
    return _report(rounds, options)


def _bodies(name: str, *, poison: bool) -> Path:
    source = random.Random(11)
    item = [round(source.random(), 3) for _ in range(64)]
    path = WORK / "bodies" / f"isolation-{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    good, bad = json.dumps({"data": item}), json.dumps({"data": [1e9, *item[1:]]})
    # At random places, so that some batches have two.
    places = set(source.sample(range(REQUESTS), REQUESTS // POISON_EVERY)) if poison else set[int]()
    path.write_text("".join((bad if n in places else good) + "\n" for n in range(REQUESTS)))
    return path


def _report(rounds: dict[str, list[wrk.Round]], options: Options) -> Report:
    report = Report(
        "isolation",
        f"isolation: guarded MLP, {REQUESTS:,} requests, c={CONNECTIONS}, {options.repeats} repeats, "
        "median (min-max)",
        ["bad requests", "requests/s", "failed"],
    )
    rates: dict[str, float] = {}
    for name, done in rounds.items():
        spread = Spread.of(REQUESTS / one.seconds for one in done)
        rates[name] = spread.median
        report.rows.append([name, spread.text(), Spread.of(one.errors for one in done).text()])
        report.measurements += [{"name": name, **vars(one)} for one in done]
    none, some = rounds.values()
    expected = REQUESTS // POISON_EVERY
    report.targets = [
        Target(
            "requests/s with the bad ones, of those without",
            rates["one in 1,000"] / rates["none"],
            ">=",
            0.9,
            "x",
        ),
        Target("most that failed of one round", max(one.errors for one in some), "<=", expected, digits=0),
        Target("fewest that failed of one round", min(one.errors for one in some), ">=", expected, digits=0),
        Target("failures without bad requests", max(one.errors for one in none), "<=", 0, digits=0),
    ]
    return report
