"""`predict_stream` of both clients: what a served generator yields, as it comes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import trustformers_serve as ts
from blocking_stream import predict_stream
from conftest import MakeClient
from counting_proxy import CountingProxy
from executors import PATIENCE, until
from scripted_server import CLOSE, SILENCE, Answer, ScriptedServer, Streamed
from served import Serve


def test_results_come_one_by_one(serve: Serve, make_client: MakeClient) -> None:
    go_on = threading.Event()

    @ts.register()
    def count(item: int) -> Iterator[dict[str, int] | None]:
        yield {"n": 0}
        assert go_on.wait(PATIENCE)
        yield None
        yield {"n": item}

    results = predict_stream(make_client(base_url=serve().url), "count", 5)
    assert next(results) == {"n": 0}
    go_on.set()
    assert list(results) == [None, {"n": 5}]
    assert list(results) == []
    assert results.request_id


def test_a_model_of_an_app_streams_too(make_client: MakeClient) -> None:
    app = ts.App()

    @app.model("words", streaming=True)
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    with app.serve(port=0, block=False) as server:
        client = make_client(base_url=server.url)
        assert list(predict_stream(client, "words", "a red fox")) == ["a", "red", "fox"]
        assert client.model("words").get("streaming") is True


def test_arrays_go_in_and_come_out(serve: Serve, make_client: MakeClient) -> None:
    @ts.register()
    def rows(matrix: Any) -> Iterator[Any]:
        for row in matrix:
            yield {"row": np.array(row) * 2, "name": "row"}

    client = make_client(base_url=serve().url)
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    made = list(predict_stream(client, "rows", matrix))
    assert [type(piece["row"]) for piece in made] == [np.ndarray] * 2
    np.testing.assert_array_equal([piece["row"] for piece in made], matrix * 2)
    assert made[0]["name"] == "row"
    assert next(predict_stream(client, "rows", matrix, as_numpy=False)) == {"row": [2.0, 4.0], "name": "row"}
    assert list(predict_stream(client, "rows", [[1.0]])) == [{"row": [2.0], "name": "row"}]


def test_options_are_understood_by_the_server(serve: Serve, make_client: MakeClient) -> None:
    for version in ("1", "2"):

        @ts.register("which", version=version)
        def which(item: int, version: str = version) -> Iterator[str]:
            yield version

    client = make_client(base_url=serve().url)
    assert list(predict_stream(client, "which", {"item": 0})) == ["2"]
    assert list(predict_stream(client, "which", {"item": 0}, version="1", priority="low")) == ["1"]
    with pytest.raises(ts.VersionNotFoundError):
        predict_stream(client, "which", {"item": 0}, version="7")


def test_leaving_early_closes_the_generator_and_the_connection(serve: Serve, make_client: MakeClient) -> None:
    closed = threading.Event()

    @ts.register()
    def count(item: int) -> Iterator[int]:
        try:
            yield from itertools.count(item)
        finally:
            closed.set()

    with CountingProxy(serve().url) as proxy:
        with predict_stream(make_client(base_url=proxy.url), "count", 5) as results:
            assert next(results) == 5
            assert repr(results) == "<ResultStream open>"
        assert closed.wait(PATIENCE)
        until(lambda: proxy.open == 0)
    assert repr(results) == "<ResultStream closed>"


def test_a_whole_stream_gives_its_connection_back(serve: Serve, make_client: MakeClient) -> None:
    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield from range(item)

    with CountingProxy(serve().url) as proxy:
        client = make_client(base_url=proxy.url)
        for _ in range(5):
            results = predict_stream(client, "count", 3)
            assert list(results) == [0, 1, 2]
            assert repr(results) == "<ResultStream done>"
        assert proxy.connections == 1


def test_an_error_before_the_first_result_is_raised_at_once_and_a_later_one_in_its_place(
    serve: Serve, make_client: MakeClient
) -> None:
    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield from range(item)
        raise RuntimeError("worn out")

    client = make_client(base_url=serve().url)
    with pytest.raises(ts.ModelFailedError, match="worn out"):
        predict_stream(client, "count", 0)
    results = predict_stream(client, "count", 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ts.ModelFailedError, match="worn out") as caught:
        next(results)
    assert caught.value.request_id == results.request_id
    assert list(results) == []


def test_what_does_not_fit_is_refused(serve: Serve, make_client: MakeClient) -> None:
    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield item

    ts.register("whole")(lambda item: item)
    client = make_client(base_url=serve().url)
    with pytest.raises(ts.InvalidInputError, match="item: Input should be a valid integer"):
        predict_stream(client, "count", "x")
    with pytest.raises(ts.InvalidInputError, match="answers all at once: ask /models/whole/predict"):
        predict_stream(client, "whole", 1)
    with pytest.raises(ts.SerializationError, match="type set"):
        predict_stream(client, "count", {1})


def test_the_last_result_has_to_come_in_time(serve: Serve, make_client: MakeClient) -> None:
    leave = threading.Event()

    @ts.register()
    def late(item: int) -> Iterator[int]:
        yield item
        leave.wait(PATIENCE)
        yield item

    results = predict_stream(make_client(base_url=serve().url), "late", 1, timeout_ms=2000)
    assert next(results) == 1
    with pytest.raises(ts.DeadlineExceededError):
        next(results)
    leave.set()


def test_a_silence_is_a_timeout_and_an_end_without_a_last_word_a_broken_connection(
    make_client: MakeClient,
) -> None:
    event = '{"data": 1}'
    with ScriptedServer(Streamed([event], then=SILENCE)) as peer:
        results = predict_stream(make_client(base_url=peer.url, timeout=0.5), "m", 0)
        assert next(results) == 1
        with pytest.raises(ts.ReplyTimeoutError):
            next(results)
    for then in (CLOSE, "end of the body"):
        with ScriptedServer(Streamed([event], then=then), Streamed([event, "[DONE]"])) as peer:
            results = predict_stream(make_client(base_url=peer.url, retry_delay=0.001), "m", 0)
            with pytest.raises(ts.ConnectionBrokenError):
                list(results)
        assert len(peer.requests) == 1


@pytest.mark.parametrize("event", ["no JSON", "[1]", '{"text": "x"}'])
def test_an_event_that_is_none_is_an_unexpected_reply(make_client: MakeClient, event: str) -> None:
    with ScriptedServer(Streamed([event, "[DONE]"])) as peer:
        results = predict_stream(make_client(base_url=peer.url), "m", 0)
        with pytest.raises(ts.UnexpectedReplyError, match="an event that is none"):
            next(results)


def test_a_refusal_is_tried_again(make_client: MakeClient) -> None:
    busy = Answer(429, {"retry-after": "0"}, b'{"error":{"code":"queue_full","message":"full"}}')
    with ScriptedServer(busy, Streamed(['{"data": 1}', "[DONE]"])) as peer:
        assert list(predict_stream(make_client(base_url=peer.url, retry_delay=0.001), "m", 0)) == [1]


def test_an_asynchronous_stream_is_read_with_async_for() -> None:
    async def read(url: str) -> list[Any]:
        async with ts.AsyncClient(url) as client:
            results = client.predict_stream("m", 0)
            assert repr(results) == "<AsyncResultStream not begun>"
            assert results.request_id is None
            return [result async for result in results]

    with ScriptedServer(Streamed(['{"data": 1}', '{"data": [2]}', "[DONE]"])) as peer:
        assert asyncio.run(read(peer.url)) == [1, [2]]
