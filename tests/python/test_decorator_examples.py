"""The examples of `batch` and of `App` do what they say, in process."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT


def try_example(name: str) -> list[str]:
    command = [sys.executable, str(ROOT / "examples" / name), "--try"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def test_the_batched_function_scores_every_review() -> None:
    *scores, counted = try_example("batch_decorator_server.py")
    assert [line.split()[0] for line in scores] == ["+1.0", "-1.0", "+0.0", "+0.0"]
    reviews, batches = [int(word) for word in counted.split() if word.isdigit()]
    assert reviews == 200
    assert batches < 100


def test_the_apps_models_answer_and_refuse() -> None:
    digits, explained, rows, refused = try_example("app_classifier.py")
    assert digits == "200 images, of which 200 as each by itself"
    assert explained.count(":") == 2
    assert rows.count(",") == 7
    assert refused == "images: must have the shape [8, 8], not [1, 2]"
