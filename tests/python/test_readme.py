"""The README's snippets work as they are written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PATIENCE = 120
CONFIGURED = "import trustformers_serve as ts\n\nconfig"
WRITTEN = "import trustformers_serve as ts\n\nwith"
REGISTERED = "from collections.abc import Iterator\n\nimport trustformers_serve"
BATCHED = "import trustformers_serve as ts\n\n\n@ts.autobatch"
AWAITED = "import asyncio\n\nimport trustformers_serve"
APP = "import asyncio\nfrom typing"
STREAMED = "import asyncio\nimport trustformers_serve as ts"


def snippet(start: str) -> str:
    (found,) = [text for _, text in SNIPPETS if text.startswith(start)]
    return found


def test_no_snippet_is_untested() -> None:
    starts = (
        "make serve\n",
        "make test\n",
        "curl -s http",
        CONFIGURED,
        "curl -sN ",
        WRITTEN,
        REGISTERED,
        APP,
        BATCHED,
        AWAITED,
        STREAMED,
        "target/release/trustformers-serve simulate ",
    )
    assert [text.startswith(start) for (_, text), start in zip(SNIPPETS, starts, strict=True)] == [True] * 12


@pytest.fixture(scope="module")
def served() -> Iterator[list[str]]:
    """What `make serve` prints, on a free port instead of 8000, until its models are ready."""
    process = subprocess.Popen(
        ["sh", "-c", snippet("make serve")],
        cwd=ROOT,
        env={**os.environ, "TRUSTFORMERS_SERVE__SERVER__PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.lstrip().startswith("curl "):
            break
    yield lines
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)


def url_of(lines: list[str]) -> str:
    (url,) = re.findall(r"listening on (http://\S+)", "".join(lines))
    return url


def run_shell(command: str) -> str:
    return subprocess.run(
        ["sh", "-c", command], check=True, capture_output=True, text=True, timeout=PATIENCE
    ).stdout


def run_python(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=folder
    ).stdout


def test_make_serve_prints_the_routes(served: list[str]) -> None:
    assert any("POST  /models/{name}/predict" in line for line in served)
    assert any("GET   /health/ready" in line for line in served)


def test_the_call_that_make_serve_prints_works(served: list[str]) -> None:
    assert json.loads(run_shell(served[-1]))["data"]


def test_the_curl_call_works(served: list[str]) -> None:
    call = snippet("curl -s http").replace("http://127.0.0.1:8000", url_of(served))
    assert len(json.loads(run_shell(call))["data"]) == 384


def test_the_streamed_call_works(served: list[str]) -> None:
    call = snippet("curl -sN ").replace("http://127.0.0.1:8000", url_of(served))
    events = run_shell(call).split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["object"] == "text_completion"
    assert "data: [DONE]" in events


def test_make_test_is_a_target_that_runs_every_check() -> None:
    # It is what runs this test, so here it only says what it would do.
    planned = run_shell(f"cd {ROOT} && {snippet('make test').strip()} --dry-run")
    for check in (
        "cargo fmt",
        "cargo clippy",
        "cargo nextest",
        "ruff check",
        "ruff format",
        "pyright",
        "pytest",
    ):
        assert check in planned


def test_the_python_snippet_works(tmp_path: Path) -> None:
    printed = run_python(snippet(CONFIGURED), tmp_path)
    similar, different = map(float, re.findall(r"-?\d\.\d\d", printed.splitlines()[0]))
    assert similar > 0.5
    assert different < 0.2


def test_the_snippet_that_writes_texts_works(tmp_path: Path) -> None:
    first, second = run_python(snippet(WRITTEN), tmp_path).splitlines()[:2]
    assert first.strip()
    assert second.strip()


def test_the_snippet_that_serves_functions_works(tmp_path: Path) -> None:
    assert run_python(snippet(REGISTERED), tmp_path) == "[1, 3, 5]\n0\n1\n2\n"


def test_the_snippet_that_batches_a_function_works(tmp_path: Path) -> None:
    assert run_python(snippet(BATCHED), tmp_path) == "42\n"


def test_the_snippet_that_batches_a_coroutine_function_works(tmp_path: Path) -> None:
    assert run_python(snippet(AWAITED), tmp_path) == "['MANY', 'CALLERS', 'ONE BATCH']\n"


def test_the_snippet_with_an_app_works(tmp_path: Path) -> None:
    in_process, served = run_python(snippet(APP), tmp_path).splitlines()
    five, root = map(float, re.findall(r"\d\.\d+", in_process))
    assert five == 5
    assert round(root, 4) == 1.7321
    assert float(served) == 10


def test_the_snippet_that_batches_records_works(tmp_path: Path) -> None:
    assert run_python(snippet(STREAMED), tmp_path) == "[14, 6]\n"


def test_the_simulation_works() -> None:
    printed = run_shell(f"cd {ROOT} && {snippet('target/release/trustformers-serve simulate')}")
    assert printed.startswith("minilm: bursty arrivals, 300/s, 1 instance")
    (size,) = re.findall(r"mean batch size +([\d.]+)", printed)
    assert float(size) > 1
