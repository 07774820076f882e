"""Registered functions behind the server's routes: values, names and versions, and every refusal."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import trustformers_serve as ts
from conftest import MakeClient
from served import JSON, MSGPACK, Serve, ask, get, packb, predict


def test_a_function_answers_at_the_path_of_its_name(serve: Serve) -> None:
    @ts.register()
    def double(item: float) -> float:
        return item * 2

    server = serve()
    expected = {"data": 42.0, "model": "double", "version": "1"}
    for body in ({"data": 21}, 21):
        answer = predict(server, "double", body)
        assert (answer.status, answer.value) == (200, expected)
    assert double(1.5) == 3.0


@pytest.mark.parametrize("sent", [JSON, MSGPACK])
@pytest.mark.parametrize("wanted", [JSON, MSGPACK])
def test_bodies_are_read_and_written_as_the_headers_say(serve: Serve, sent: str, wanted: str) -> None:
    @ts.register()
    def echo(item: Any) -> Any:
        return item

    server = serve()
    value = {
        "text": 'ü\n"',
        "none": None,
        "flags": [True, False],
        "numbers": [0, -1, 2**63, -(2**63), 0.1, 1e300],
    }
    headers = {"content-type": sent, "accept": wanted}
    answer = predict(server, "echo", {"data": value}, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, wanted)
    assert answer.value["data"] == value
    many = predict(server, "echo", {"instances": [value, [], {}]}, headers=headers)
    assert many.value == {
        "predictions": [{"data": value}, {"data": []}, {"data": {}}], "model": "echo", "version": "1",
    }  # fmt: skip


def test_a_coroutine_function_answers_too_and_many_run_at_once(serve: Serve) -> None:
    here: list[int] = []
    all_here = asyncio.Event()

    @ts.register()
    async def meet(item: int) -> int:
        here.append(item)
        if len(here) == 8:
            all_here.set()
        await all_here.wait()
        return item + 1

    server = serve()
    answer = predict(server, "meet", {"instances": list(range(8))})
    assert [prediction["data"] for prediction in answer.value["predictions"]] == list(range(1, 9))


def test_several_parameters_are_named_inputs(serve: Serve) -> None:
    @ts.register()
    def join(left: str, right: str, times: int = 1) -> str:
        return (left + right) * times

    server = serve()
    assert predict(server, "join", {"data": {"left": "a", "right": "b"}}).value["data"] == "ab"
    bare = predict(server, "join", {"left": "a", "right": "b", "times": 2})
    assert bare.value["data"] == "abab"
    for inputs, named in [
        ({"left": "a"}, "right"),
        ({"left": "a", "right": 1}, "right"),
        ({"left": "a", "right": "b", "middle": "c"}, "middle"),
        ("a", "left"),
    ]:
        status, code, message = predict(server, "join", {"data": inputs}).error
        assert (status, code) == (422, "invalid_input")
        assert named in message


def test_a_parameter_that_is_only_given_by_name_is_given_so(serve: Serve) -> None:
    @ts.register()
    def named(*, item: Any) -> Any:
        return item

    @ts.register()
    async def named_later(*, item: Any) -> Any:
        return item

    server = serve()
    for model in ("named", "named_later"):
        assert predict(server, model, {"data": {"a": 1}}).value["data"] == {"a": 1}


def test_a_misfit_is_422_with_the_parameter_and_fails_its_item_alone(serve: Serve) -> None:
    ran: list[int] = []

    @ts.register()
    def square(number: int) -> int:
        ran.append(number)
        return number * number

    server = serve()
    status, code, message = predict(server, "square", {"data": "three"}).error
    assert (status, code) == (422, "invalid_input")
    assert "number" in message
    predictions = predict(server, "square", {"instances": [2, "x", 3]}).value["predictions"]
    assert [predictions[0], predictions[2]] == [{"data": 4}, {"data": 9}]
    assert predictions[1]["error"]["code"] == "invalid_input"
    assert sorted(ran) == [2, 3]


class Point(pydantic.BaseModel):
    x: float
    data: str = "none"


def test_pydantic_models_are_checked_and_written(serve: Serve) -> None:
    @ts.register()
    def move(point: Point) -> Point:
        return Point(x=point.x + 1)

    server = serve()
    assert predict(server, "move", {"data": {"x": 1}}).value["data"] == {"x": 2.0, "data": "none"}
    assert predict(server, "move", {"data": {"y": 1}}).error[:2] == (422, "invalid_input")


def test_a_schema_is_tried_on_the_data_and_then_on_the_whole_body(serve: Serve) -> None:
    @ts.register()
    @ts.batch(input_schema=Point)
    async def locate(points: list[Point]) -> list[list[Any]]:
        return [[point.x, point.data] for point in points]

    server = serve()
    assert predict(server, "locate", {"data": {"x": 1}}).value["data"] == [1.0, "none"]
    status, code, message = predict(server, "locate", {"data": {"x": "far"}}).error
    assert (status, code) == (422, "invalid_input")
    assert "x" in message


def test_the_newest_version_answers_unless_one_is_asked_for(serve: Serve) -> None:
    for version in ("9", "10", "2"):

        def answer(item: Any, version: str = version) -> str:
            return version

        ts.register("versioned", version=version)(answer)

    server = serve()
    assert predict(server, "versioned", {"data": {"item": 0}}).value["version"] == "10"
    asked = ask(server, "/models/versioned/predict?version=9", {"data": {"item": 0}})
    assert asked.value == {"data": "9", "model": "versioned", "version": "9"}
    status, code, message = ask(server, "/models/versioned/predict?version=3", {"data": 0}).error
    assert (status, code) == (404, "version_not_found")
    assert '"10"' in message
    assert predict(server, "unheard", 0).error[:2] == (404, "model_not_found")


def test_the_model_may_be_named_in_the_body(serve: Serve) -> None:
    @ts.register()
    def negate(item: float) -> float:
        return -item

    server = serve()
    one = ask(server, "/v1/inference", {"model": "negate", "version": "1", "data": 2})
    assert one.value["data"] == -2.0
    many = ask(server, "/v1/inference/batch", {"model": "negate", "instances": [1, 2]})
    assert [prediction["data"] for prediction in many.value["predictions"]] == [-1.0, -2.0]
    assert ask(server, "/v1/inference/batch", {"model": "negate", "data": 1}).error[:2] == (
        400,
        "malformed_request",
    )


def test_arrays_and_tensors_come_and_go_as_nested_lists(serve: Serve) -> None:
    @ts.register()
    def halve(image: np.ndarray) -> Any:
        assert isinstance(image, np.ndarray)
        return {
            "half": image / 2,
            "tensor": torch.tensor([1, 2]),
            "scalar": np.float32(0.5),
            "count": np.int64(3),
        }

    server = serve()
    for headers in ({}, {"content-type": MSGPACK}):
        answer = predict(server, "halve", {"data": [[2, 4], [6, 8]]}, headers=headers)
        assert answer.value["data"] == {
            "half": [[1.0, 2.0], [3.0, 4.0]], "tensor": [1, 2], "scalar": 0.5, "count": 3,
        }  # fmt: skip


def test_both_clients_ask_registered_models(serve: Serve, make_client: MakeClient) -> None:
    @ts.register()
    def total(item: list[float]) -> float:
        return sum(item)

    client = make_client(base_url=serve().url)
    assert client.predict("total", [1.0, 2.5]) == 3.5
    assert client.predict_batch("total", [[1.0], [2.0]]) == [1.0, 2.0]
    assert client.predict("total", np.ones(3)) == 3.0
    with pytest.raises(ts.InvalidInputError, match="item"):
        client.predict("total", "text")


def test_what_a_function_raises_is_500_with_the_models_name(serve: Serve) -> None:
    @ts.register()
    def divide(item: float) -> float:
        return 1 / item

    @ts.register()
    async def divide_later(item: float) -> float:
        return 1 / item

    server = serve()
    for name in ("divide", "divide_later"):
        status, code, message = predict(server, name, 0).error
        assert (status, code) == (500, "model_failed")
        assert message == f'model "{name}" inference failed: ZeroDivisionError: float division by zero'
        predictions = predict(server, name, {"instances": [0, 2]}).value["predictions"]
        assert predictions[0]["error"]["code"] == "model_failed"
        assert predictions[1] == {"data": 0.5}


def test_an_exit_inside_a_function_ends_neither_the_server_nor_its_thread(serve: Serve) -> None:
    @ts.register()
    def leave(item: bool) -> int:
        if item:
            raise SystemExit(3)
        return 1

    server = serve()
    assert predict(server, "leave", True).error[:2] == (500, "model_failed")
    assert predict(server, "leave", False).value["data"] == 1


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (object(), "a value of type object"),
        ({"a": [1, {2, 3}]}, "a value of type set at result['a'][1]"),
        (b"bytes", "a value of type bytes"),
        ({(1, 2): 3}, "a key that is a value of type tuple at result[(1, 2)]"),
    ],
)
def test_what_json_cannot_carry_is_an_error_that_names_model_type_and_place(
    serve: Serve, result: Any, words: str
) -> None:
    @ts.register()
    def odd(item: Any) -> Any:
        return result

    server = serve()
    status, code, message = predict(server, "odd", 0).error
    assert (status, code) == (500, "model_failed")
    assert message == f'model "odd" returned {words}, which JSON cannot carry'


def test_a_result_that_contains_itself_is_refused(serve: Serve) -> None:
    @ts.register()
    def endless(item: Any) -> Any:
        result: list[Any] = []
        result.append(result)
        return result

    assert "nested too deep" in predict(serve(), "endless", 0).error[2]


def test_bytes_travel_in_msgpack_and_not_a_number_is_null_in_json(serve: Serve) -> None:
    @ts.register()
    def echo(item: Any) -> Any:
        return item

    @ts.register()
    def infinite(item: Any) -> list[float]:
        return [float("nan"), float("inf"), 1.0]

    server = serve()
    answer = predict(server, "echo", {"data": b"\x00\xff"}, headers={"content-type": MSGPACK})
    assert answer.value["data"] == b"\x00\xff"
    assert predict(server, "infinite", 0).value["data"] == [None, None, 1.0]


def test_a_large_integer_goes_out_whole(serve: Serve) -> None:
    @ts.register()
    def power(item: int) -> int:
        return 3**item

    server = serve()
    assert predict(server, "power", 100).value["data"] == 3**100
    packed = predict(server, "power", 100, headers={"accept": MSGPACK})
    assert "64 bits" in packed.value["error"]["message"]


def test_errors_of_this_package_keep_their_status(serve: Serve) -> None:
    @ts.register()
    def moody(item: str) -> str:
        if item == "invalid":
            raise ts.ValidationError("the text is too short")
        if item == "busy":
            raise ts.OverloadedError("later", retry_after=7.0)
        raise ts.ModelNotFoundError("of another server", request_id="there")

    server = serve()
    assert predict(server, "moody", "invalid").error == (422, "invalid_input", "the text is too short")
    busy = predict(server, "moody", "busy")
    assert busy.error == (429, "overloaded", "later")
    assert busy.headers["retry-after"] == "7"
    assert predict(server, "moody", "other").error[:2] == (500, "model_failed")


def test_bodies_that_are_wrong_are_refused_before_the_function_is_called(serve: Serve) -> None:
    called: list[Any] = []
    ts.register("spy")(called.append)
    server = serve({"max_body_size": "1KB"}, batching={"max_queue_size": 4})
    path = "/models/spy/predict"
    for body, status, code in [
        (b"{", 400, "malformed_request"),
        (b"", 400, "malformed_request"),
        (b'{"data": 1} 2', 400, "malformed_request"),
        (b'{"data": 1, "other": 2}', 400, "malformed_request"),
        (b'{"data": 1, "instances": [1]}', 400, "malformed_request"),
        (b'{"data": "\\ud800"}', 400, "malformed_request"),
        (b'{"instances": []}', 422, "invalid_input"),
        (b'{"instances": [1, 2, 3, 4, 5]}', 422, "invalid_input"),
        (b'{"data": 1, "parameters": {"truncate": true}}', 422, "invalid_input"),
        (b'{"data": "' + b"x" * 2000 + b'"}', 413, "body_too_large"),
    ]:
        assert ask(server, path, body=body).error[:2] == (status, code), body
    deep = b"[" * 5000 + b"]" * 5000
    assert ask(serve(), path, body=b'{"data": ' + deep + b"}").error[:2] == (400, "malformed_request")
    xml = ask(server, path, body=b"<a/>", headers={"content-type": "text/xml"})
    assert xml.error[:2] == (415, "unsupported_media_type")
    cut = ask(server, path, body=packb({"data": "text"})[:-1], headers={"content-type": MSGPACK})
    assert cut.error[:2] == (400, "malformed_request")
    assert called == []


def test_a_full_queue_is_429_with_a_time_to_try_again(serve: Serve) -> None:
    entered, leave = threading.Event(), threading.Event()

    @ts.register()
    def hold(item: int) -> int:
        entered.set()
        leave.wait(60)
        return item

    server = serve(batching={"max_queue_size": 1}, threads=1)
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(predict(server, "hold", 1).status))
    first.start()
    assert entered.wait(60)
    # One waits, and the other has no place.
    outcomes: list[Any] = []
    both = predict_two(server, outcomes)
    refused = outcomes[0]
    assert refused.error[:2] == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    leave.set()
    for thread in (first, *both):
        thread.join(60)
    assert answers == [200]
    assert sorted(answer.status for answer in outcomes) == [200, 429]


def predict_two(server: ts.Server, outcomes: list[Any]) -> list[threading.Thread]:
    """Starts two requests and returns when one of them has been answered."""
    answered = threading.Event()

    def run() -> None:
        outcomes.append(predict(server, "hold", 2))
        answered.set()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert answered.wait(60)
    return threads


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_request_that_takes_too_long_is_504_and_the_next_is_answered(serve: Serve, kind: str) -> None:
    leave = threading.Event()
    cancelled = threading.Event()

    def slow(item: bool) -> bool:
        return not item or leave.wait(60)

    async def slow_coroutine(item: bool) -> bool:
        try:
            if item:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    ts.register("slow")(slow if kind == "plain" else slow_coroutine)
    server = serve()
    status, code, _ = predict(server, "slow", {"data": True, "timeout_ms": 100}).error
    assert (status, code) == (504, "deadline_exceeded")
    headers = {"x-timeout-ms": "100"}
    assert predict(server, "slow", True, headers=headers).error[:2] == (504, "deadline_exceeded")
    assert predict(server, "slow", False).value["data"] is True
    if kind == "coroutine":
        assert cancelled.wait(60)
    leave.set()


def test_request_ids_are_echoed(serve: Serve) -> None:
    ts.register("echo")(lambda item: item)
    server = serve()
    answer = predict(server, "echo", 1, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    failed = ask(server, "/models/other/predict", 1, headers={"x-request-id": "mine-2"})
    assert failed.value["error"]["request_id"] == "mine-2"


def test_models_health_metrics_and_openapi_show_registered_models(serve: Serve) -> None:
    @ts.register(version="3")
    def shout(text: str) -> str:
        return text.upper()

    @ts.register()
    def locate(point: Point, scale: float = 1.0) -> list[float]:
        return [point.x * scale]

    server = serve()
    assert predict(server, "shout", "a").status == 200
    assert predict(server, "shout", 1).status == 422
    model = get(server, "/models/shout").value
    assert model["inputs"] == [{"name": "text", "schema": {"type": "string"}}]
    assert model["outputs"] == [{"name": "output", "schema": {"type": "string"}}]
    (version,) = model["versions"]
    assert (version["version"], version["state"], version["format"]) == ("3", "ready", "python")
    assert {entry["name"] for entry in get(server, "/models").value["models"]} == {"shout", "locate"}
    assert get(server, "/health/ready").value["status"] == "ready"
    metrics = get(server, "/metrics").body.decode()
    for outcome in ("ok", "invalid_input"):
        assert f'trustformers_requests_total{{model="shout",outcome="{outcome}",version="3"}} 1' in metrics
    (stats,) = (m for m in get(server, "/admin/stats").value["models"] if m["name"] == "shout")
    assert stats["ok"] == 1
    document = get(server, "/openapi.json").value
    operation = document["paths"]["/models/shout/predict"]["post"]
    assert operation["requestBody"]["content"][JSON]["schema"]["oneOf"][2] == {
        "$ref": "#/components/schemas/shout.input"
    }
    schemas = document["components"]["schemas"]
    assert schemas["shout.input"] == {"type": "string"}
    assert schemas["locate.input"]["properties"]["point"]["properties"]["x"]["type"] == "number"
    assert '"#/$defs' not in get(server, "/openapi.json").body.decode()


def test_models_of_the_configuration_are_served_beside_registered_ones(serve: Serve) -> None:
    ts.register("echo")(lambda item: item)
    server = serve(models={"delay": {"delay": {"batch_time": "0ms"}}}, device={"default": "cpu"})
    assert predict(server, "echo", "a").value["data"] == "a"
    assert predict(server, "delay", {"data": [1.0]}).value["data"] == [1.0]
    assert get(server, "/models/delay").value["versions"][0]["format"] == "builtin"


def test_a_name_that_the_configuration_has_already_is_refused(serve: Serve) -> None:
    ts.register("delay")(lambda item: item)
    with pytest.raises(ts.ServerStartError, match='model "delay": there are two of version "1"'):
        serve(models={"delay": {}})


def test_nothing_registered_is_nothing_to_serve(serve: Serve) -> None:
    with pytest.raises(ts.ConfigurationError, match="no model is registered"):
        serve()


def test_a_model_is_unloaded_and_loaded_again(serve: Serve) -> None:
    ts.register("echo")(lambda item: item)
    server = serve()
    assert ask(server, "/models/echo/unload", body=b"").status == 200
    assert predict(server, "echo", 1).error[:2] == (503, "model_not_ready")
    assert ask(server, "/models/echo/load", body=b"").status == 200
    assert predict(server, "echo", 1).value["data"] == 1


def test_an_app_serves_its_own_models(serve: Serve) -> None:
    app = ts.App(name="texts", batch_timeout_ms=1.0)

    @app.model("length")
    def length(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    @app.model("fail")
    def fail(text: str) -> str:
        raise RuntimeError(text)

    assert callable(length)
    assert callable(fail)
    with app.serve(port=0, block=False) as server:
        texts = ["x" * size for size in range(50)]
        predictions = predict(server, "length", {"instances": texts}).value["predictions"]
        assert [prediction["data"] for prediction in predictions] == list(range(50))
        assert predict(server, "length", 5).error[:2] == (422, "invalid_input")
        assert predict(server, "fail", "no").error == (500, "model_failed", "fail inference failed: no")
