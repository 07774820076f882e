"""The examples of `batch` and of `App` do what they say, in process and served."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import trustformers_serve as ts
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


@contextmanager
def served(name: str) -> Generator[ts.Client]:
    command = [sys.executable, str(ROOT / "examples" / name), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            # Lines of the log may come first.
            urls = (re.search(r"^serving .* on (\S+)", line) for line in server.stdout)
            url = next(found for found in urls if found)[1]
            with ts.Client(url, timeout=60) as client:
                yield client
        finally:
            server.send_signal(signal.SIGINT)


def test_the_batched_function_is_served_and_refuses_what_is_no_review() -> None:
    with served("batch_decorator_server.py") as client:
        assert client.predict("sentiment", {"text": "What a wonderful day"}) == 1.0
        with pytest.raises(ts.InvalidInputError, match="text"):
            client.predict("sentiment", {"text": ""})


def test_the_apps_models_are_served() -> None:
    image = [[0.5] * 8] * 8
    with served("app_classifier.py") as client:
        digit = client.predict("digit", image)
        explained = client.predict("explain", {"image": image, "top": 2})
        assert str(digit) in explained
        with pytest.raises(ts.InvalidInputError, match=r"must have the shape \[8, 8\]"):
            client.predict("digit", [[1.0]])
