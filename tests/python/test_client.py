"""Each method of both clients, and each error that a real server can be brought to give."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import openai
import pytest
import torch
import trustformers_serve as ts
from conftest import MakeClient, one_item
from served import Serve
from trustformers_serve import _calls
from trustformers_serve._calls import Call
from trustformers_serve._codec import MSGPACK, Reply
from trustformers_serve.builtin import default_folder
from trustformers_serve.config import ModelSettings
from trustformers_serve.replies import BatchingStats, ModelInfo, ModelReadiness, Stats


def test_predict_agrees_with_torch(client: ts.Client) -> None:
    item = torch.randn(64, generator=torch.Generator().manual_seed(0))
    model: Any = torch.jit.load(str(default_folder() / "mlp.pt"))  # pyright: ignore[reportPrivateImportUsage, reportUnknownVariableType]
    expected = np.asarray(cast("Any", model)(item[None])[0])
    out = client.predict("mlp", item.numpy())
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_array_equal(client.predict("mlp", item.tolist()), out)


def test_raw_bytes_give_what_the_array_gives(client: ts.Client) -> None:
    item = np.linspace(-1, 1, 64, dtype=np.float32)
    expected = client.predict("mlp", item)
    np.testing.assert_array_equal(client.predict("mlp", item.tobytes()), expected)
    np.testing.assert_array_equal(client.predict_batch("mlp", [item.tobytes()])[0], expected)
    left, right = (np.array(values, np.float32).tobytes() for values in ([1, 2, 3], [4, 5, 6]))
    assert client.predict("pair", {"left": left, "right": right}) == {"sum": [5.0, 7.0, 9.0], "dot": 32.0}
    with pytest.raises(ts.InvalidInputError, match="255 raw bytes"):
        client.predict("mlp", item.tobytes()[:-1])


def test_named_inputs_and_outputs(client: ts.Client) -> None:
    data = {"left": [1.0, 2.0, 3.0], "right": [4.0, 5.0, 6.0]}
    assert client.predict("pair", data) == {"sum": [5.0, 7.0, 9.0], "dot": 32.0}


def test_options_are_understood_by_the_server(client: ts.Client) -> None:
    item = one_item(client, "delay")
    client.predict("delay", item, version="1", priority="high", timeout_ms=5000, parameters={})


def test_predict_batch_keeps_the_order(client: ts.Client) -> None:
    rows = np.square(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_allclose(client.predict_batch("fussy", rows), np.arange(12).reshape(4, 3), atol=1e-6)


def test_predict_batch_puts_an_error_in_its_place(client: ts.Client) -> None:
    instances = [[1.0, 4.0, 9.0], [1.0]]
    good, bad = client.predict_batch("fussy", instances, raise_on_error=False)
    assert good == [1.0, 2.0, 3.0]
    assert isinstance(bad, ts.InvalidInputError)
    with pytest.raises(ts.InvalidInputError) as caught:
        client.predict_batch("fussy", instances)
    assert caught.value.index == 1


def test_embed_gives_unit_rows(client: ts.Client) -> None:
    vectors = client.embed(["a cat", "a kitten", "the stock market"], model="minilm")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    np.testing.assert_allclose(client.embed("a cat"), vectors[:1], atol=1e-5)


def test_openai_package_gets_the_same_vectors(server: ts.Server) -> None:
    texts = ["a cat", "a kitten"]
    with ts.Client(server.url) as client, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as peer:
        answer = peer.embeddings.create(model="minilm", input=texts)
        np.testing.assert_allclose([row.embedding for row in answer.data], client.embed(texts), atol=1e-6)
        with pytest.raises(openai.NotFoundError):
            peer.embeddings.create(model="absent", input=texts)


def test_models_and_model(client: ts.Client) -> None:
    listed = {model["name"]: model for model in client.models()}
    assert set(listed) == {"delay", "mlp", "minilm", "pair", "fussy"}
    pair = client.model("pair")
    assert [tensor["name"] for tensor in pair.get("inputs", [])] == ["left", "right"]
    assert pair["versions"][0]["state"] == "ready"


def test_what_a_server_says_of_its_models_is_as_declared(client: ts.Client) -> None:
    client.unload_model("delay")
    try:
        conforms(client.models(), list[ModelInfo], "models")
        ready = client.ready()
    finally:
        client.load_model("delay")
    conforms(list(ready.models), list[ModelReadiness], "ready")


def test_what_a_server_says_of_python_functions_is_as_declared(serve: Serve, make_client: MakeClient) -> None:
    @ts.register("count", version="2")
    def count(item: int) -> Iterator[int]:
        yield from range(item)

    ts.register("norm")(lambda vector, scale: vector * scale)
    client = make_client(base_url=serve().url)
    conforms(client.models(), list[ModelInfo], "models")
    described = client.model("count")
    assert described.get("streaming") is True
    assert described.get("inputs") == [{"name": "item", "schema": {"type": "integer"}}]
    assert set(described["versions"][0]) == {
        "version",
        "state",
        "format",
        "default",
        "device",
        "load_seconds",
    }
    assert client.model("norm").get("streaming") is False


def test_unload_and_load(client: ts.Client) -> None:
    item = one_item(client, "delay")
    try:
        assert client.unload_model("delay")["versions"][0]["state"] == "unloaded"
        with pytest.raises(ts.ModelNotReadyError):
            client.predict("delay", item, timeout_ms=100)
    finally:
        assert client.load_model("delay")["versions"][0]["state"] == "ready"
    client.predict("delay", item)


def test_health_ready_metrics_and_stats(client: ts.Client) -> None:
    assert client.health()["status"] == "ok"
    assert client.ready()
    client.predict("delay", one_item(client, "delay"))
    assert "trustformers_requests_total{" in client.metrics()


def conforms(value: Any, kind: Any, path: str) -> None:
    """Fails unless a reply's value is what its declared type says, with no key more or less."""
    arguments = get_args(kind)
    if is_typeddict(kind):
        declared = get_type_hints(kind)
        assert kind.__required_keys__ <= set(value) <= set(declared), path
        for key, inner in value.items():
            conforms(inner, declared[key], f"{path}.{key}")
    elif get_origin(kind) is list:
        for index, inner in enumerate(value):
            conforms(inner, arguments[0], f"{path}[{index}]")
    elif get_origin(kind) is dict:
        for key, inner in value.items():
            conforms(inner, arguments[1], f"{path}[{key!r}]")
    elif get_origin(kind) is Literal:
        assert value in arguments, path
    elif type(None) in arguments:
        if value is not None:
            conforms(value, arguments[0], path)
    elif kind is not Any:
        assert isinstance(value, (int, float) if kind is float else kind), f"{path}: {value!r}, not {kind}"


def test_stats_are_as_declared(client: ts.Client) -> None:
    before = batching_stats(client, "delay")["requests"]["completed"]
    client.predict("delay", one_item(client, "delay"))
    stats = client.stats()
    conforms(stats, Stats, "stats")
    assert stats["connections"] >= 1
    delay = batching_stats(client, "delay")
    assert delay["requests"]["completed"] == before + 1
    assert delay["batch_duration_seconds"]["p50"] >= 0.001
    assert delay["cost_model"]["fits"][0]["samples"] >= 1


def batching_stats(client: ts.Client, name: str) -> BatchingStats:
    model = next(model for model in client.stats()["models"] if model["name"] == name)
    assert "batching" in model
    return model["batching"]


def test_a_batch_size_that_holds_a_model_back_is_noticed() -> None:
    config = ts.ServerConfig(
        server={"port": 0},
        models={"delay": {"delay": {"batch_time": "10ms"}, "batching": {"max_batch_size": 2}, "warmup": 0}},
    )
    with ts.Server(config) as server, ts.Client(server.url) as client:
        for _ in range(10):
            client.predict("delay", [1.0])
        client.predict_batch("delay", [[1.0]] * 400)
        stats = client.stats()
    conforms(stats, Stats, "stats")
    model = stats["models"][0]
    assert "suggestions" in model
    suggestion = model["suggestions"][0]
    assert suggestion["action"] == "raise_max_batch_size"
    assert suggestion["current"] == 2
    assert suggestion["proposed"] >= 4
    assert suggestion["predicted_gain"]["after"] > 1.5 * suggestion["predicted_gain"]["before"]


def raw(target: str, method: str = "POST", content: bytes = b"\x80", media_type: str = MSGPACK) -> Call[Any]:
    return Call(method, target, _calls.models().read, content, {"content-type": media_type})


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (raw("/models/mlp/predict", content=b"\xc1"), ts.MalformedRequestError),
        (raw("/models/absent/predict"), ts.ModelNotFoundError),
        (raw("/models/mlp/predict?version=9"), ts.VersionNotFoundError),
        (raw("/absent"), ts.RouteNotFoundError),
        (raw("/models/mlp/predict", method="DELETE"), ts.MethodNotAllowedError),
        (raw("/models/mlp/predict", content=b"\xc6" + bytes(100_000)), ts.BodyTooLargeError),
        (raw("/models/mlp/predict", media_type="text/plain"), ts.UnsupportedMediaTypeError),
        (_calls.predict("mlp", [1.0], _calls.Options(None, None, None, None, None)), ts.InvalidInputError),
        (
            _calls.predict("fussy", [-1.0] * 3, _calls.Options(None, None, None, None, None)),
            ts.ModelFailedError,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_error_has_its_exception(server: ts.Server, call: Call[Any], kind: type[ts.ApiError]) -> None:
    with ts.Client(server.url) as client, pytest.raises(kind) as caught:
        client._send(call)
    assert caught.value.status == kind.status
    assert caught.value.request_id
    assert caught.value.message


def test_a_body_that_comes_too_slowly(make_client: MakeClient) -> None:
    config = ts.ServerConfig(
        server={"port": 0, "request_timeout": "200ms"}, device={"default": "cpu"}, models={"delay": {}}
    )
    with ts.Server(config) as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
        connection.putrequest("POST", "/models/delay/predict")
        connection.putheader("content-type", MSGPACK)
        connection.putheader("content-length", "100")
        connection.endheaders(b"\x81")
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        with pytest.raises(ts.RequestTimeoutError):
            _calls.models().read(Reply(response.status, headers, response.read()))
        connection.close()


def test_a_deadline_that_passes(slow_server: ts.Server, make_client: MakeClient) -> None:
    client = make_client(base_url=slow_server.url)
    with pytest.raises(ts.DeadlineExceededError) as caught:
        client.predict("delay", one_item(client, "delay"), timeout_ms=50)
    assert caught.value.status == 504


def test_a_full_queue_refuses_and_says_when_to_return(slow_server: ts.Server) -> None:
    failures: list[ts.TrustformersError] = []

    def call() -> None:
        try:
            client.predict("delay", item)
        except ts.TrustformersError as error:
            failures.append(error)

    with ts.Client(slow_server.url, max_retries=0) as client:
        item = one_item(client, "delay")
        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # One runs and one waits; a third may come in when the first has ended.
    assert len(failures) >= 3
    for error in failures:
        assert isinstance(error, ts.QueueFullError)
        assert error.retry_after is not None


def test_a_model_that_keeps_failing_is_left_alone_until_reset(
    model_files: dict[str, ModelSettings], make_client: MakeClient
) -> None:
    config = ts.ServerConfig(
        server={"port": 0},
        device={"default": "cpu"},
        batching={"breaker": {"failures": 2, "open": "1h"}},
        models={"fussy": model_files["fussy"]},
    )
    with ts.Server(config) as server:
        client = make_client(base_url=server.url, max_retries=0)
        for _ in range(2):
            with pytest.raises(ts.ModelFailedError):
                client.predict("fussy", [-1.0] * 3)
        with pytest.raises(ts.BreakerOpenError) as caught:
            client.predict("fussy", [1.0] * 3)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 3000
        assert client.reset_breaker("fussy")["breaker"]["state"] == "closed"
        assert client.predict("fussy", [1.0] * 3) is not None


def test_what_would_wait_too_long_is_overloaded(make_client: MakeClient) -> None:
    config = ts.ServerConfig(
        server={"port": 0},
        device={"default": "cpu"},
        batching={"latency_slo": "10ms", "max_wait_time": "0ms", "max_batch_size": 1},
        models={"delay": {"delay": {"batch_time": "20ms"}}},
    )
    with ts.Server(config) as server:
        client = make_client(base_url=server.url, max_retries=0)
        for _ in range(10):
            client.predict("delay", [1.0])
        results = client.predict_batch("delay", [[1.0]] * 20, raise_on_error=False)
    refused = [result for result in results if isinstance(result, ts.OverloadedError)]
    assert 0 < len(refused) < 20


def test_a_priority_may_not_be_allowed(make_client: MakeClient) -> None:
    config = ts.ServerConfig(
        server={"port": 0},
        device={"default": "cpu"},
        batching={"max_priority": "normal"},
        models={"delay": {}},
    )
    with ts.Server(config) as server, pytest.raises(ts.PriorityNotAllowedError) as caught:
        make_client(base_url=server.url).predict("delay", [1.0], priority="high")
    assert caught.value.status == 403
