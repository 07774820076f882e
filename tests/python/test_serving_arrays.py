"""Arrays that clients send as bytes to functions that are served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import trustformers_serve as ts
from conftest import MakeClient


@pytest.fixture
def app() -> ts.App:
    """Its models say what they got."""
    app = ts.App(enable_batching=False)

    @app.model("anything")
    def anything(item: Any) -> str:
        return f"{type(item).__name__} {getattr(item, 'dtype', '')} {getattr(item, 'shape', '')}"

    @app.model("array")
    def array(item: np.ndarray) -> str:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        item += 1
        return f"{item.dtype} {item.shape}"

    @app.model("numbers")
    def numbers(item: list[float]) -> float:
        assert isinstance(item, list)
        return sum(item)

    @app.model("several")
    def several(image: np.ndarray, weights: list[float]) -> list[float]:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        return [float(image.sum()), sum(weights)]

    return app


def test_a_function_gets_the_array_that_was_sent(app: ts.App, make_client: MakeClient) -> None:
    with app.serve(port=0, block=False) as server:
        client = make_client(base_url=server.url)
        assert client.predict("anything", np.zeros((2, 3), np.uint8)) == "ndarray uint8 (2, 3)"
        bfloat16 = torch.zeros(2, dtype=torch.bfloat16)
        assert client.predict("anything", bfloat16) == "Tensor torch.bfloat16 torch.Size([2])"
        assert client.predict("anything", {"dtype": "f32", "shape": [2]}).startswith("dict")
        assert client.predict("array", np.zeros((2, 3), np.float32)) == "float32 (2, 3)"
        assert client.predict_batch("array", np.zeros((2, 3))) == ["float64 (3,)"] * 2


def test_a_function_of_lists_gets_lists(app: ts.App, make_client: MakeClient) -> None:
    with app.serve(port=0, block=False) as server:
        client = make_client(base_url=server.url)
        assert client.predict("numbers", np.ones(3)) == 3.0
        mixed = {"image": np.ones((2, 2), np.uint8), "weights": np.ones(3)}
        np.testing.assert_array_equal(client.predict("several", mixed), [4.0, 3.0])
        with pytest.raises(ts.InvalidInputError):
            client.predict("numbers", np.ones((2, 2)))


def test_bytes_that_are_no_array_are_malformed(app: ts.App, make_client: MakeClient) -> None:
    with app.serve(port=0, block=False) as server:
        client = make_client(base_url=server.url)
        wrong = {"dtype": "f32", "shape": [2], "data": b"123"}
        with pytest.raises(ts.MalformedRequestError, match="buffer size"):
            client.predict("anything", wrong)
