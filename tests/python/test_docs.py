"""The snippets of docs/ work as they are written, and the programs of examples/ run to their ends."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trustformers_serve as ts
from conftest import ROOT

PATIENCE = 120
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(*arguments: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PRINTED = {
    "executors.md": ["100 (3,)\n", "12 True\n"],
    "migration.md": ["4\n", "['ONE', 'TWO']\n", "[0, 2, 4]\n", "odd\n"],
}
"""What the snippets of each page print, in their order."""


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_snippets_of_a_page_print_what_they_made(page: Path, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert [run("-c", code, folder=tmp_path) for code in snippets] == PRINTED.get(page.name, [])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_names_on_a_page_exist(page: Path) -> None:
    names = re.findall(r"\bts\.(\w+)", page.read_text())
    assert names
    assert [name for name in names if not hasattr(ts, name)] == []
    for module, name in re.findall(r"\btrustformers_serve\.(\w+)\.(\w+)", page.read_text()):
        assert hasattr(importlib.import_module(f"trustformers_serve.{module}"), name)


FAMILIAR = {
    "many threads": """
        autobatch max_batch max_wait_ms Batcher backpressure max_queue run executor arun submit map
        flush metrics close avg_batch p50_ms p99_ms dropped OpenAIResponsesExecutor TorchExecutor
        collate_fn uncollate_fn
    """,
    "Streams of records": """
        DynamicBatcher TokenBatcher inference_fn process_fn token_estimator cost_estimator
        target_batch_tokens target_batch_cost default_token_estimate default_cost max_batch_size
        min_batch_size batch_timeout_s max_queue_size prefetch_batches submit submit_batch start
        stop is_running stats BatchStats estimate_tokens estimate_cost TokenEstimator CostEstimator
        Prompt estimated_cost estimated_tokens utilization
    """,
    "with a schema": """
        batch max_batch_size max_wait_time input_schema max_queue_size workers worker_id
        target_latency register name version registry get clear ModelInfo serve host port block stop
        OverloadedError
    """,
    "An application": """
        App name enable_batching max_batch_size batch_timeout_ms model version streaming registry
        predict stop serve load_app ValidationError InferenceError Tensor batched True False
    """,
}
"""The names that users of each style know, by a part of the title of its section."""


@pytest.mark.parametrize("title", FAMILIAR)
def test_each_familiar_name_of_a_style_has_its_place_on_the_page(title: str) -> None:
    page = (ROOT / "docs/migration.md").read_text()
    (section,) = (part for part in page.split("\n## ") if title in part.partition("\n")[0])
    text = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]*`", text))))
    assert [name for name in FAMILIAR[title].split() if name not in named] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        for target in re.findall(r"\]\(((?!https?://)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} has a link to {target}"


def test_the_openai_package_talks_to_the_server(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/openai_client.py", folder=tmp_path).splitlines()
    assert printed[0].strip()
    assert re.fullmatch(r"\((completed|incomplete): \d+ tokens in, \d+ out\)", printed[1])
    assert printed[-1].startswith("32 more, the last one: ")


def test_a_server_of_images_answers_its_client(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples/resnet_server.py", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"serving resnet18 on (\S+)", server.stdout.readline())
            printed = run(ROOT / "examples/resnet_client.py", url, folder=tmp_path)
        finally:
            server.send_signal(signal.SIGINT)
    assert re.search(r"of the first image: \d+, \d+, \d+, \d+, \d+\n", printed)
    assert "32 images from 8 threads" in printed
    (batches,) = re.findall(r"(\d+) batches", printed)
    assert 3 <= int(batches) < 36, "images share batches"
