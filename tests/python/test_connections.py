"""Connections of both clients to the real server: kept, shared, given back and closed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import trustformers_serve as ts
from blocking_stream import stream
from conftest import MakeClient
from counting_proxy import CountingProxy
from executors import until
from scripted_server import CLOSE, Answer, ScriptedServer

METHODS = [
    *("predict", "predict_batch", "embed", "generate", "stream", "chat", "models", "model"),
    *("load_model", "unload_model", "reset_breaker", "health", "ready", "metrics", "stats", "close"),
]


@pytest.fixture
def proxy(server: ts.Server) -> Iterator[CountingProxy]:
    """Stands before the session's server."""
    with CountingProxy(server.url) as proxy:
        yield proxy


def test_both_clients_have_every_method_with_the_same_parameters() -> None:
    for name in METHODS:
        blocking, asynchronous = (
            inspect.signature(getattr(kind, name)) for kind in (ts.Client, ts.AsyncClient)
        )
        assert list(blocking.parameters.values()) == list(asynchronous.parameters.values()), name
    blocking, asynchronous = (inspect.signature(kind) for kind in (ts.Client, ts.AsyncClient))
    assert list(blocking.parameters.values()) == list(asynchronous.parameters.values())


def test_one_connection_serves_many_calls(proxy: CountingProxy, make_client: MakeClient) -> None:
    client = make_client(base_url=proxy.url)
    for _ in range(20):
        client.predict("mlp", np.zeros(64, np.float32))
        client.predict_batch("mlp", np.zeros((3, 64)))
        assert client.health()["status"] == "ok"
        assert "mlp" in client.metrics()
        client.model("mlp")
        with pytest.raises(ts.InvalidInputError):
            client.predict("mlp", [1.0])
    client.embed(["a cat"])
    assert proxy.connections == 1
    client.close()
    until(lambda: proxy.open == 0)


def test_threads_share_a_clients_connections(proxy: CountingProxy) -> None:
    with ts.Client(proxy.url) as client, ThreadPoolExecutor(8) as threads:
        calls = threads.map(lambda _: client.predict("mlp", np.zeros(64)), range(200))
        assert len(list(calls)) == 200
    assert proxy.connections <= 8
    until(lambda: proxy.open == 0)


def test_a_block_closes_the_connections_also_when_it_raises(proxy: CountingProxy) -> None:
    with pytest.raises(ts.InvalidInputError), ts.Client(proxy.url) as client:
        client.predict("mlp", [1.0])
    assert proxy.connections == 1
    until(lambda: proxy.open == 0)


def test_a_stream_gives_its_connection_back_when_it_ends_and_not_when_it_is_left(
    make_client: MakeClient,
) -> None:
    config = ts.ServerConfig(server={"port": 0}, device={"default": "cpu"}, models={"tinylm": {}})
    with ts.Server(config) as server, CountingProxy(server.url) as proxy:
        client = make_client(base_url=proxy.url)
        for _ in range(5):
            assert "".join(stream(client, max_tokens=5))
        assert proxy.connections == 1
        left = stream(client, max_tokens=1500, ignore_eos=True)
        assert next(left)
        left.close()
        # What the server may still send on it is nobody's, so it cannot be used again.
        until(lambda: proxy.open == 0)
        client.health()
        assert proxy.connections == 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int32", "int64", ">f4"])
def test_arrays_of_any_type_are_converted_by_the_server(client: ts.Client, dtype: str) -> None:
    item = np.arange(64).astype(dtype)
    expected = client.predict("mlp", item.astype(float).tolist())
    np.testing.assert_array_equal(client.predict("mlp", item), expected)
    # Items that share a batch are rounded otherwise.
    both = client.predict_batch("mlp", np.stack([item] * 2))
    np.testing.assert_allclose(both, [expected] * 2, rtol=1e-4)


def test_tensors_are_sent_as_arrays_are(client: ts.Client) -> None:
    item = torch.arange(64, dtype=torch.bfloat16)
    expected = client.predict("mlp", item.float().tolist())
    assert client.predict("mlp", item) == expected
    left, right = np.array([1, 2, 3]), torch.tensor([4.0, 5.0, 6.0], requires_grad=True)
    sums = client.predict("pair", {"left": left, "right": right})
    np.testing.assert_array_equal(sums["sum"], [5, 7, 9])


def test_an_array_that_does_not_fit_is_told_with_its_shape(client: ts.Client) -> None:
    with pytest.raises(
        ts.InvalidInputError, match=r"expected f32 of shape \[64\], got shape \[8, 8\]"
    ) as caught:
        client.predict("mlp", np.zeros((8, 8)))
    assert caught.value.request_id
    with pytest.raises(ts.InvalidInputError, match="out of the range of f32"):
        client.predict("mlp", np.full(64, 1e300))


OK = Answer(200, body=b'{"data":[1.0],"model":"m","version":"1"}')


@pytest.mark.parametrize("broken", [CLOSE, Answer(500), Answer(502), Answer(504)])
def test_what_may_have_run_is_sent_again_where_that_is_asked_for(
    make_client: MakeClient, broken: Any
) -> None:
    with ScriptedServer(broken, OK) as peer:
        client = make_client(base_url=peer.url, retry_delay=0.001, repeat_unsafe=True)
        assert client.predict("m", [1.0]) == [1.0]
    assert len(peer.requests) == 2


def test_a_clients_repr_says_where_it_calls_and_never_its_key(make_client: MakeClient) -> None:
    made: Any = make_client(base_url="http://user:password@host:1/", api_key="secret", timeout=5)
    client = getattr(made, "inner", made)
    kind = type(client).__name__
    assert repr(client) == f"<{kind} http://host:1 timeout=5 max_retries=3>"
    unsafe: Any = make_client(base_url="http://host:1", repeat_unsafe=True)
    assert repr(getattr(unsafe, "inner", unsafe)).endswith("max_retries=3 repeat_unsafe=True>")


def test_a_streams_repr_says_how_much_came() -> None:
    config = ts.ServerConfig(server={"port": 0}, device={"default": "cpu"}, models={"tinylm": {}})
    with ts.Server(config) as server, ts.Client(server.url) as client:
        whole = client.stream("A fox", max_tokens=5)
        assert repr(whole) == "<TextStream open, 0 characters so far>"
        text = whole.result().text
        assert repr(whole) == f"<TextStream done, {len(text)} characters so far>"
        with client.stream("A fox", max_tokens=500, ignore_eos=True) as left:
            next(left)
        assert repr(left).startswith("<TextStream closed, ")
    assert repr(ts.AsyncClient().stream("A fox")) == "<AsyncTextStream not begun>"


def test_an_errors_repr_has_what_is_known_of_it(client: ts.Client) -> None:
    with pytest.raises(ts.ModelNotFoundError) as caught:
        client.predict("absent", [1.0])
    error = caught.value
    details = f"code='model_not_found', status=404, request_id={error.request_id!r}"
    assert repr(error) == f"ModelNotFoundError({str(error)!r}, {details})"
    assert repr(ts.BatcherClosedError("closed")) == "BatcherClosedError('closed')"
