"""Registered generators through `/v1/inference/stream`: events, errors, slow clients and those who leave."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import trustformers_serve as ts
from served import Serve, ask, events, get, leave_early, predict

STREAM = "/v1/inference/stream"
KINDS = ["plain", "async"]


def register(kind: str, pieces: Any, closed: threading.Event | None = None) -> None:
    """Registers a generator of the pieces that `pieces(item)` makes, of either kind, as `count`."""

    def plain(item: int) -> Iterator[Any]:
        try:
            yield from pieces(item)
        finally:
            if closed is not None:
                closed.set()

    async def coroutine(item: int) -> AsyncIterator[Any]:
        try:
            for piece in pieces(item):
                await asyncio.sleep(0)
                yield piece
        finally:
            if closed is not None:
                closed.set()

    ts.register("count")(plain if kind == "plain" else coroutine)


@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_is_an_event_and_the_last_word_follows(serve: Serve, kind: str) -> None:
    closed = threading.Event()
    register(kind, lambda item: ({"n": n, "a": np.arange(n)} for n in range(item)), closed)
    server = serve()
    answer = ask(server, STREAM, {"model": "count", "data": 3})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events(answer.body) == [
        {"data": {"n": 0, "a": []}}, {"data": {"n": 1, "a": [0]}}, {"data": {"n": 2, "a": [0, 1]}}, "[DONE]",
    ]  # fmt: skip
    assert closed.wait(60)
    assert events(ask(server, STREAM, {"model": "count", "data": 0}).body) == ["[DONE]"]
    metrics = get(server, "/metrics").body.decode()
    assert 'trustformers_requests_total{model="count",outcome="ok",version="1"} 2' in metrics


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_before_the_first_piece_has_a_status_and_later_an_event(serve: Serve, kind: str) -> None:
    def pieces(item: int) -> Iterator[int]:
        yield from range(item)
        raise RuntimeError("worn out")

    register(kind, pieces)
    server = serve()
    message = 'model "count" inference failed: RuntimeError: worn out'
    assert ask(server, STREAM, {"model": "count", "data": 0}).error == (500, "model_failed", message)
    *pieces_, failure, last = events(ask(server, STREAM, {"model": "count", "data": 2}).body)
    assert pieces_ == [{"data": 0}, {"data": 1}]
    assert (failure["error"]["code"], failure["error"]["message"]) == ("model_failed", message)
    assert last == "[DONE]"
    assert ask(server, STREAM, {"model": "count", "data": "x"}).error[:2] == (422, "invalid_input")


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_that_cannot_be_written_ends_the_stream_and_closes_the_generator(serve: Serve, kind: str) -> None:
    closed = threading.Event()
    register(kind, lambda item: iter([1, object(), 2]), closed)
    first, failure, last = events(ask(serve(), STREAM, {"model": "count", "data": 0}).body)
    assert first == {"data": 1}
    assert "type object" in failure["error"]["message"]
    assert last == "[DONE]"
    assert closed.wait(60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_who_leaves_closes_the_generator(serve: Serve, kind: str) -> None:
    closed = threading.Event()
    register(kind, lambda item: itertools.count(item), closed)
    server = serve()
    connection = leave_early(server, STREAM, {"model": "count", "data": 5})
    assert first_event(connection) == {"data": 5}
    assert not closed.is_set()
    connection.close()
    assert closed.wait(60)
    assert ask(server, "/health", method="GET").status == 200


def first_event(connection: socket.socket) -> Any:
    """Reads as far as the first event."""
    text = b""
    while b"\n\n" not in text.partition(b"data: ")[2]:
        text += connection.recv(4096)
    return json.loads(text.partition(b"data: ")[2].partition(b"\n\n")[0])


def test_a_client_who_leaves_cancels_an_async_generator_that_waits(serve: Serve) -> None:
    cancelled = threading.Event()

    @ts.register()
    async def wait(item: int) -> AsyncIterator[int]:
        yield item
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    connection = leave_early(serve(), STREAM, {"model": "wait", "data": 5})
    assert first_event(connection) == {"data": 5}
    connection.close()
    assert cancelled.wait(60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_runs_no_further_ahead_than_the_buffers_of_a_slow_client(serve: Serve, kind: str) -> None:
    made: list[int] = []
    stopped = threading.Event()

    def pieces(item: int) -> Iterator[str]:
        for number in range(item):
            made.append(number)
            yield "x" * 100_000
        stopped.set()

    register(kind, pieces)
    connection = leave_early(serve(), STREAM, {"model": "count", "data": 2000})
    text = connection.recv(4096)
    assert not stopped.wait(0.5), "200 MB would not wait anywhere"
    assert len(made) < 500
    while b"[DONE]" not in text[-20:]:
        text = text[-20:] + connection.recv(1 << 20)
    assert len(made) == 2000
    connection.close()


def test_the_first_piece_has_to_come_in_time_and_all_of_them_where_a_time_is_named(serve: Serve) -> None:
    leave = threading.Event()

    @ts.register()
    def late(item: int) -> Iterator[int]:
        yield from range(item)
        leave.wait(60)
        yield item

    server = serve()
    body = {"model": "late", "data": 0, "timeout_ms": 100}
    assert ask(server, STREAM, body).error[:2] == (504, "deadline_exceeded")
    pieces = events(ask(server, STREAM, {**body, "data": 1}).body)
    assert pieces[0] == {"data": 0}
    assert pieces[1]["error"]["code"] == "deadline_exceeded"
    leave.set()


def test_models_that_stream_and_models_that_do_not_name_each_others_route(serve: Serve) -> None:
    register("plain", range)
    ts.register("whole")(lambda item: item)
    server = serve()
    status, code, message = predict(server, "count", 3).error
    assert (status, code) == (422, "invalid_input")
    assert STREAM in message
    status, code, message = ask(server, STREAM, {"model": "whole", "data": 3}).error
    assert (status, code) == (422, "invalid_input")
    assert "/models/whole/predict" in message
    assert ask(server, STREAM, {"model": "count", "version": "7", "data": 3}).error[0] == 404
    assert ask(server, STREAM, {"model": "count", "instances": [1]}).error[0] == 400
    assert ask(server, STREAM, {"model": "count"}).error[0] == 400
    schema = get(server, "/openapi.json").value["paths"][STREAM]["post"]["requestBody"]
    assert "count.input" in json.dumps(schema)
