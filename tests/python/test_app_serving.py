"""An `App` over HTTP: what clients are told of its models, and how their calls are answered."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import trustformers_serve as ts
from executors import HOUR_MS, own_threads, until
from served import ask, events, get, predict

Image = Annotated[np.ndarray, ts.Tensor("u8", (2, -1))]
Scores = Annotated[torch.Tensor, ts.Tensor("f32", (3,))]


@pytest.fixture
def app() -> ts.App:
    """Models of each kind."""
    app = ts.App(name="kinds", max_batch_size=3, batch_timeout_ms=1)

    @app.model("classify")
    def classify(images: list[Image]) -> list[Scores]:
        assert all(image.dtype == np.uint8 for image in images)
        return [torch.full((3,), float(image.sum())) for image in images]

    @app.model("mix")
    def mix(image: Image, weight: float = 1.0) -> float:
        return float(image.sum()) * weight

    @app.model("count")
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @app.model("spell")
    async def spell(word: str) -> AsyncIterator[str]:
        for letter in word:
            yield letter

    return app


def test_tensors_are_described_in_the_openapi_document(app: ts.App) -> None:
    with app.serve(port=0, block=False) as server:
        document = get(server, "/openapi.json").value
        schemas = document["components"]["schemas"]
        assert schemas["classify.input"] == {
            "type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 2,
            "maxItems": 2, "title": "u8[2, -1]",
        }  # fmt: skip
        assert schemas["classify.output"] == {
            "type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3, "title": "f32[3]",
        }  # fmt: skip
        assert schemas["mix.input"]["properties"]["image"]["title"] == "u8[2, -1]"
        assert {"/models/classify/predict", "/models/mix/predict"} <= set(document["paths"])


def test_tensors_are_checked_and_come_back(app: ts.App) -> None:
    with app.serve(port=0, block=False) as server, ts.Client(server.url) as client:
        pixels = np.full((2, 5), 2, np.uint8)
        np.testing.assert_array_equal(client.predict("classify", pixels), [20.0] * 3)
        assert predict(server, "classify", [[1], [255]]).value["data"] == [256.0] * 3
        assert client.predict("mix", {"image": pixels, "weight": 0.5}) == 10.0
        for wrong, reason in (
            ([[1], [256]], "none of uint8"),
            ([[1], [2], [3]], r"must have the shape [2, -1], not [3, 1]"),
            ("text", "not str"),
        ):
            status, code, message = predict(server, "classify", {"data": wrong}).error
            assert (status, code) == (422, "invalid_input")
            assert message.startswith("images: ")
            assert reason in message


def test_a_generator_streams(app: ts.App) -> None:
    with app.serve(port=0, block=False) as server, ts.Client(server.url) as client:
        for name, item, pieces in (("count", 3, [0, 1, 2]), ("spell", "ab", ["a", "b"])):
            answer = ask(server, "/v1/inference/stream", {"model": name, "data": item})
            assert events(answer.body) == [*({"data": piece} for piece in pieces), "[DONE]"]
            status, code, message = predict(server, name, item).error
            assert (status, code) == (422, "invalid_input")
            assert "/v1/inference/stream" in message
        assert [model["name"] for model in client.models()] == ["classify", "count", "mix", "spell"]


def test_an_item_that_fails_in_a_batch_fails_alone() -> None:
    app = ts.App(max_batch_size=3, batch_timeout_ms=HOUR_MS)

    @app.model("parity")
    def parity(numbers: list[int]) -> list[str]:
        assert len(numbers) == 3
        results: list[Any] = [
            ts.ValidationError("negative") if number < 0 else KeyError(number) if number == 0 else "odd"
            for number in numbers
        ]
        return results

    with app.serve(port=0, block=False) as server:
        answer = predict(server, "parity", {"instances": [1, 0, -1]})
        good, failed, refused = answer.value["predictions"]
        assert good == {"data": "odd"}
        assert failed["error"]["code"] == "model_failed"
        assert "KeyError: 0" in failed["error"]["message"]
        assert refused["error"] == {"code": "invalid_input", "message": "negative"}


def test_each_version_is_asked_for_by_its_name() -> None:
    app = ts.App(batch_timeout_ms=1)

    @app.model("which", "2")
    def second(items: list[int]) -> list[str]:
        return [f"2 of {item}" for item in items]

    @app.model("which", "10")
    def tenth(items: list[str]) -> list[int]:
        return [10 for _ in items]

    @app.model("which", "9")
    def ninth(item: float) -> str:
        return f"9 of {item}"

    with app.serve(port=0, block=False) as server, ts.Client(server.url) as client:
        answer = predict(server, "which", "text").value
        assert answer == {"data": 10, "model": "which", "version": "10"}
        assert client.predict("which", 5, version="2") == "2 of 5"
        assert client.predict("which", 5, version="9") == "9 of 5.0"
        assert [version["version"] for version in client.model("which")["versions"]] == ["2", "9", "10"]
        missing = ask(server, "/models/which/predict?version=3", 1)
        assert missing.error[:2] == (404, "version_not_found")


@pytest.mark.parametrize("batching", [True, False])
def test_no_thread_is_left_when_its_server_has_ended(batching: bool) -> None:
    app = ts.App(enable_batching=batching, batch_timeout_ms=1)

    @app.model("whole")
    def whole(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @app.model("single")
    def single(item: int) -> str:
        return str(item)

    before = own_threads()
    for item in range(2):
        with app.serve(port=0, block=False) as server:
            for name in ("whole", "single"):
                assert predict(server, name, item).value["data"] == str(item)
            assert own_threads() - before
        until(lambda: own_threads() <= before)


def single_app() -> ts.App:
    app = ts.App()

    @app.model("single")
    def single(item: int) -> str:
        return str(item)

    return app


def test_a_server_that_is_not_held_serves_as_long_as_its_app() -> None:
    app = single_app()
    urls = [app.serve(port=0, block=False).url for _ in range(2)]
    gc.collect()
    for url in urls:
        assert ts.Client(url).predict("single", 3) == "3"
    del app
    gc.collect()
    for url in urls:
        with pytest.raises(ts.ConnectionFailedError):
            ts.Client(url, max_retries=0).predict("single", 3)


def test_an_app_without_models_says_how_to_make_one() -> None:
    with pytest.raises(
        ts.ConfigurationError, match=r"'empty' of no models>: put `@app\.model\(name\)` above"
    ):
        ts.App("empty").serve(port=0, block=False)
