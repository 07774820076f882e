"""Values on the wire, without a server."""

from __future__ import annotations

import array
import base64
import json
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import pytest
import torch
import trustformers_serve as ts
from served import packb
from trustformers_serve import _calls, _codec, _core, _generate
from trustformers_serve._calls import Options
from trustformers_serve._codec import Reply
from trustformers_serve.errors import ERROR_BY_CODE

PLAIN = Options(None, None, None, None, None)


def sent(content: bytes | None) -> Any:
    assert content is not None
    return msgpack.unpackb(content)  # pyright: ignore[reportUnknownVariableType]


def json_reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"content-type": "application/json", **(headers or {})}, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float32", "f32"),
        ("float64", "f64"),
        ("float16", "f16"),
        ("int64", "i64"),
        ("int8", "i8"),
        ("uint8", "u8"),
        ("uint32", "u32"),
        ("bool", "bool"),
        (">f4", "f32"),
        (">i2", "i16"),
    ],
)
def test_an_array_is_sent_as_its_bytes_with_type_and_shape(dtype: str, name: str) -> None:
    matrix = np.array([[0, 1], [2, 3], [4, 5]]).astype(dtype).T
    data = matrix.astype(matrix.dtype.newbyteorder("<")).tobytes()
    expected = {"dtype": name, "shape": [2, 3], "data": data}
    assert sent(_calls.predict("m", matrix, PLAIN).content) == {"data": expected}


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.tensor([1.5, 2.0], requires_grad=True), "f32"),
        (torch.tensor([1, 2], dtype=torch.uint8), "u8"),
        (torch.tensor([1.5, 2.0], dtype=torch.bfloat16), "bf16"),
    ],
)
def test_a_tensor_is_sent_as_an_array_is(tensor: torch.Tensor, name: str) -> None:
    value = sent(_calls.predict("m", tensor, PLAIN).content)["data"]
    bits = tensor.detach().view(torch.uint8).numpy().tobytes()
    assert value == {"dtype": name, "shape": [2], "data": bits}


def test_arrays_may_stand_anywhere_and_single_numbers_are_numbers() -> None:
    data = {"a": np.ones(1, np.uint8), "b": [np.float32(0.5), torch.tensor(2.0)]}
    ones = {"dtype": "u8", "shape": [1], "data": b"\x01"}
    assert sent(_calls.predict("m", data, PLAIN).content)["data"] == {"a": ones, "b": [0.5, 2.0]}


def test_what_has_no_form_of_its_own_is_sent_as_lists() -> None:
    texts = np.array(["a", "b"])
    assert sent(_calls.predict("m", texts, PLAIN).content) == {"data": ["a", "b"]}
    assert sent(_calls.predict("m", array.array("d", [0.5]), PLAIN).content) == {"data": [0.5]}


def test_the_rows_of_an_array_are_instances() -> None:
    call = _calls.predict_batch("m", np.array([[1, 2], [3, 4]], np.uint8), PLAIN, raise_on_error=True)
    rows = [{"dtype": "u8", "shape": [2], "data": bytes(row)} for row in ([1, 2], [3, 4])]
    assert sent(call.content) == {"instances": rows}
    assert isinstance(call.read(json_reply({"predictions": [{"data": [1.0]}]}))[0], np.ndarray)
    numbers = _calls.predict_batch("m", np.array([1.5, 2.5]), PLAIN, raise_on_error=True)
    assert sent(numbers.content) == {"instances": [1.5, 2.5]}


def cyclic() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({1, 2}, "cannot send a value of type set to the server, at data: {1, 2}"),
        ({"a": [1, {"b": object}]}, "cannot send a value of type type to the server, at data['a'][1]['b']: "),
        ({"a": (0, 2**70)}, "cannot send an integer of more than 64 bits to the server, at data['a'][1]: "),
        (np.ones((1, 2), np.complex64), "cannot send a value of type complex to the server, at data[0][0]: "),
        (np.array(["2020-01-01"], "datetime64[D]"), "a value of type date to the server, at data[0]: "),
        (np.array([1, object()]), "a value of type object to the server, at data[1]: <object"),
        (torch.ones(1, dtype=torch.complex64), "a value of type Tensor to the server, at data: "),
        (torch.ones(1, device="meta"), "a value of type Tensor to the server, at data: "),
        ({"a": "\ud800"}, "cannot send a text with half a character to the server, at data['a']: "),
        ({frozenset("a"): 1}, "a value of type frozenset to the server, at data[frozenset({'a'})]: "),
        (cyclic(), "cannot send what contains itself, or is nested too deeply"),
        (nested(5000), "cannot send what contains itself, or is nested too deeply"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sent_is_named_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(ts.SerializationError, match=re.escape(message)) as caught:
        _calls.predict("m", data, PLAIN)
    assert isinstance(caught.value, ts.TrustformersError)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda bad: _calls.predict("m", 1, Options(None, None, None, {"k": bad}, None)), "parameters['k']"),
        (lambda bad: _calls.predict_batch("m", [1, bad], PLAIN, raise_on_error=True), "instances[1]"),
        (lambda bad: _calls.predict_stream("m", [bad], PLAIN), "data[0]"),
        (lambda bad: _calls.embed([bad], None), "input[0]"),
        (lambda bad: _generate.completion("x", "m", {"stop": [bad]}), "stop[0]"),
        (lambda bad: _generate.chat([{"role": "user", "content": bad}], "m", {}), "messages[0]['content']"),
    ],
    ids=["parameters", "predict_batch", "predict_stream", "embed", "completion", "chat"],
)
def test_each_call_names_what_it_cannot_send(call: Callable[[Any], Any], place: str) -> None:
    with pytest.raises(
        ts.SerializationError, match=re.escape(f"a value of type set to the server, at {place}")
    ):
        call({1})


@pytest.mark.parametrize("bad", [float("nan"), np.array([np.inf]), b"bytes"], ids=str)
def test_what_only_messagepack_can_carry_is_named_where_json_is_sent(bad: Any) -> None:
    assert _calls.predict("m", bad, PLAIN).content
    with pytest.raises(ts.SerializationError, match="at data"):
        _calls.predict_stream("m", bad, PLAIN)


def test_token_ids_may_be_of_numpy() -> None:
    content = _generate.completion(cast("Any", np.array([1, 2])), "m", {"top_k": np.int64(3)}).content
    assert content is not None
    assert json.loads(content) == {"prompt": [1, 2], "model": "m", "top_k": 3}


@pytest.mark.parametrize("version", [1, 1.1, b"1"])
def test_a_version_that_is_no_text_is_refused(version: Any) -> None:
    options = Options(version, None, None, None, None)
    for call in (
        lambda: _calls.predict("m", 1, options),
        lambda: _calls.predict_batch("m", [1], options, raise_on_error=True),
        lambda: _calls.predict_stream("m", 1, options),
        lambda: _calls.load_model("m", version),
    ):
        with pytest.raises(TypeError, match=f'version must be a text, as "1" is, not {version!r}'):
            call()


def test_keys_of_a_result_may_be_numbers() -> None:
    answer = Reply(200, {"content-type": "application/msgpack"}, packb({"data": {3: 0.5}}))
    assert _calls.predict("m", 1, PLAIN).read(answer) == {3: 0.5}


@pytest.mark.parametrize("content", [{(1,): 2}, nested(5000)], ids=["key", "nesting"])
def test_a_result_that_no_value_can_hold_is_an_unexpected_reply(content: Any) -> None:
    # The packer nests no deeper than the unpacker.
    body = b"\x91" * 5000 + b"\x90" if isinstance(content, list) else packb(content)
    with pytest.raises(ts.UnexpectedReplyError, match="broken application/msgpack"):
        _codec.unpack(Reply(200, {"content-type": "application/msgpack"}, body))
    with pytest.raises(ts.UnexpectedReplyError, match="broken application/json"):
        _codec.unpack(Reply(200, {"content-type": "application/json"}, b"[" * 100_000))


@pytest.mark.parametrize(
    "result",
    [
        [[1], [1, 2]],
        {"label": "cat", "score": None, "boxes": [[1], [1, 2]]},
        ["cat", "dog"],
        [1, "cat"],
        [1, None],
        [{"label": "cat"}],
    ],
    ids=str,
)
def test_what_is_no_array_of_numbers_stays_as_it_is_where_numpy_came_in(result: Any) -> None:
    out = _calls.predict("m", np.zeros(2), PLAIN).read(json_reply({"data": result}))
    assert out == result
    if isinstance(result, dict):
        both = {**cast("dict[str, Any]", result), "vector": [1.5]}
        out = _calls.predict("m", np.zeros(2), PLAIN).read(json_reply({"data": both}))
        assert isinstance(out["vector"], np.ndarray)


def test_only_options_that_were_given_are_sent() -> None:
    options = Options("2", "high", 50, {"k": 1}, None)
    call = _calls.predict_batch("a/b", [[1.0]], options, raise_on_error=True)
    assert call.target == "/models/a%2Fb/predict?version=2"
    assert sent(call.content) == {
        "instances": [[1.0]],
        "priority": "high",
        "timeout_ms": 50,
        "parameters": {"k": 1},
    }


def test_numpy_in_gives_numpy_out_and_lists_give_lists() -> None:
    answer = json_reply({"data": [1.5, 2.0]})
    out = _calls.predict("m", np.zeros(2, np.float32), PLAIN).read(answer)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float64
    assert _calls.predict("m", [0.0, 0.0], PLAIN).read(answer) == [1.5, 2.0]


@pytest.mark.parametrize("wanted", [True, False])
def test_as_numpy_decides(wanted: bool) -> None:
    options = Options(None, None, None, None, wanted)
    out = _calls.predict("m", np.zeros(1), options).read(json_reply({"data": {"a": [1.0]}}))
    assert isinstance(out["a"], np.ndarray) is wanted


def test_a_failed_instance_stands_in_its_place_or_is_raised() -> None:
    failed = {"error": {"code": "invalid_input", "message": "x: expected [2], got [3]"}}
    answer = json_reply({"predictions": [{"data": 1}, failed]}, headers={"x-request-id": "r1"})
    instances = [[0.0], [0.0]]
    value, error = _calls.predict_batch("m", instances, PLAIN, raise_on_error=False).read(answer)
    assert value == 1
    assert isinstance(error, ts.InvalidInputError)
    assert (error.index, error.status, error.request_id) == (1, 422, "r1")
    with pytest.raises(ts.InvalidInputError, match=r"expected \[2\], got \[3\]"):
        _calls.predict_batch("m", instances, PLAIN, raise_on_error=True).read(answer)


def test_vectors_keep_every_bit_and_their_order() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    data = [
        {"index": index, "embedding": base64.b64encode(rows[index].tobytes()).decode()} for index in (2, 0, 1)
    ]
    np.testing.assert_array_equal(_calls.embed(["a", "b", "c"], None).read(json_reply({"data": data})), rows)


def test_the_table_of_errors_is_that_of_the_server() -> None:
    assert {code: error.status for code, error in ERROR_BY_CODE.items()} == dict(_core.error_codes())


@pytest.mark.parametrize("code", ERROR_BY_CODE)
def test_each_code_has_its_exception_with_all_that_the_reply_said(code: str) -> None:
    kind = ERROR_BY_CODE[code]
    body = {"error": {"code": code, "message": "why", "request_id": "r7"}}
    answer = json_reply(body, kind.status or 0, {"retry-after": "3"})
    with pytest.raises(kind, match="^why$") as caught:
        _calls.models().read(answer)
    error = caught.value
    assert (error.code, error.status, error.request_id, error.retry_after) == (code, kind.status, "r7", 3.0)


def test_what_openai_calls_by_a_name_of_its_own_is_the_same_exception() -> None:
    answer = json_reply({"error": {"code": "context_length_exceeded", "message": "too long"}}, 400)
    with pytest.raises(ts.InvalidInputError) as caught:
        _calls.models().read(answer)
    assert (caught.value.code, caught.value.status) == ("context_length_exceeded", 400)


def test_an_unknown_code_is_still_an_api_error() -> None:
    answer = json_reply({"error": {"code": "newer", "message": "later"}}, 418)
    with pytest.raises(ts.ApiError) as caught:
        _calls.models().read(answer)
    assert (type(caught.value), caught.value.code, caught.value.status) == (ts.ApiError, "newer", 418)


def test_exceptions_survive_pickling() -> None:
    error = ts.QueueFullError("full", request_id="r", retry_after=2.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.request_id, copy.retry_after) == (ts.QueueFullError, "full", "r", 2.0)


@pytest.mark.parametrize("body", [b"{", b"\xff"])
def test_a_broken_body_is_an_unexpected_reply(body: bytes) -> None:
    with pytest.raises(ts.UnexpectedReplyError, match="broken application/json"):
        _codec.unpack(Reply(200, {"content-type": "application/json; charset=utf-8"}, body))
    with pytest.raises(ts.UnexpectedReplyError, match="broken application/msgpack"):
        _codec.unpack(Reply(200, {"content-type": "application/msgpack"}, b"\xc1"))


def test_ready_is_true_only_when_ready() -> None:
    model = {"name": "m", "version": "1", "state": "loading"}
    loading = _calls.ready().read(json_reply({"status": "loading", "models": [model]}, 503))
    assert not loading
    assert loading.models[0]["state"] == "loading"
    assert _calls.ready().read(json_reply({"status": "ready", "models": []}))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_an_array_is_the_same_behind_the_wire_and_may_be_changed(dtype: str) -> None:
    made = np.array([[0, 1, 2]]).astype(dtype)
    form = sent(_calls.predict("m", made, PLAIN).content)["data"]
    read = _codec.array(**form)
    assert (read.dtype, read.shape) == (made.dtype, made.shape)
    np.testing.assert_array_equal(read, made)
    read[0, 0] = 1


def test_what_numpy_does_not_have_is_a_tensor_behind_the_wire() -> None:
    made = torch.tensor([[1.5], [2.0]], dtype=torch.bfloat16)
    read = _codec.array(**sent(_calls.predict("m", made, PLAIN).content)["data"])
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read, made)


def test_bytes_that_are_no_array_are_refused() -> None:
    with pytest.raises(ValueError, match="no tensor of dtype 'f8'"):
        _codec.array("f8", [1], b"x")
    with pytest.raises(ValueError, match="reshape"):
        _codec.array("u8", [2], b"x")


def test_lists_stand_for_arrays_at_any_depth() -> None:
    value = {"a": [np.arange(2), {"b": torch.ones(1)}], "c": "text", "d": 3}
    assert _codec.lists(value) == {"a": [[0, 1], {"b": [1.0]}], "c": "text", "d": 3}
