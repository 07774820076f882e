"""Connections of both clients to the real server: kept, shared, given back and closed."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import pickle
import re
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import trustformers_serve as ts
from blocking_stream import stream
from conftest import MakeClient
from counting_proxy import CountingProxy
from executors import PATIENCE, until
from scripted_server import CLOSE, Answer, ScriptedServer
from served import Serve
from trustformers_serve import _connections

METHODS = [
    *("predict", "predict_stream", "predict_batch", "embed", "generate", "stream", "chat", "models", "model"),
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


def test_many_calls_at_once_cost_an_event_loop_little_more_than_one_after_another(serve: Serve) -> None:
    ts.register("echo")(lambda item: item)
    server = serve()

    async def one_by_one() -> float:
        async with ts.AsyncClient(server.url) as client:
            begun = time.thread_time()
            assert [await client.predict("echo", item) for item in range(600)] == list(range(600))
            return time.thread_time() - begun

    async def at_once() -> float:
        async with ts.AsyncClient(server.url) as client:
            begun = time.thread_time()
            assert await asyncio.gather(*(client.predict("echo", item) for item in range(600))) == list(
                range(600)
            )
            return time.thread_time() - begun

    # Where each call looked at the connections of all others, it was twenty times as much.
    assert asyncio.run(at_once()) < 5 * asyncio.run(one_by_one())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_more_calls_than_that_are_under_way_at_once_and_streams_are_not_counted(
    serve: Serve, kind: str
) -> None:
    now, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    @ts.register()
    def wait(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # Nobody goes on before there are three; a fourth would come in meanwhile.
        together.wait(PATIENCE)
        with lock:
            now -= 1
        return item

    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield from itertools.count(item)

    server = serve()

    def in_threads() -> list[int]:
        with ts.Client(server.url, max_connections=3) as client, ExitStack() as streams:
            held = [streams.enter_context(client.predict_stream("count", 0)) for _ in range(5)]
            assert [next(stream) for stream in held] == [0] * 5
            with ThreadPoolExecutor(12) as threads:
                return list(threads.map(lambda item: client.predict("wait", item), range(12)))

    async def on_a_loop() -> list[int]:
        async with ts.AsyncClient(server.url, max_connections=3) as client, AsyncExitStack() as streams:
            held = [await streams.enter_async_context(client.predict_stream("count", 0)) for _ in range(5)]
            assert [await anext(stream) for stream in held] == [0] * 5
            return await asyncio.gather(*(client.predict("wait", item) for item in range(12)))

    assert (in_threads() if kind == "sync" else asyncio.run(on_a_loop())) == list(range(12))
    assert most == 3


def test_a_call_that_is_given_up_leaves_its_place_to_others(serve: Serve) -> None:
    began, go_on = threading.Event(), threading.Event()

    @ts.register()
    def wait(item: int) -> int:
        if item == 0:
            began.set()
            go_on.wait(PATIENCE)
        return item

    server = serve()

    async def give_up() -> int:
        async with ts.AsyncClient(server.url, max_connections=1) as client:
            left = asyncio.create_task(client.predict("wait", 0))
            await asyncio.to_thread(began.wait, PATIENCE)
            waits = asyncio.create_task(client.predict("wait", 1))
            never = asyncio.create_task(client.predict("wait", 2))
            await asyncio.sleep(0)
            for task in (never, left):
                task.cancel()
            return await asyncio.wait_for(waits, PATIENCE)

    assert asyncio.run(give_up()) == 1
    go_on.set()


def test_calls_that_are_given_up_at_any_moment_leave_their_places_to_others(serve: Serve) -> None:
    ts.register("echo")(lambda item: item)

    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield from itertools.count(item)

    server = serve()

    async def first(client: ts.AsyncClient) -> int:
        async with client.predict_stream("count", 5) as results:
            return await anext(results)

    async def give_up() -> list[int]:
        async with ts.AsyncClient(server.url, max_connections=2) as client:
            for moments in range(100):
                left = [asyncio.create_task(call) for call in (client.predict("echo", 0), first(client))]
                for _ in range(moments):
                    await asyncio.sleep(0)
                for task in left:
                    task.cancel()
            calls = [client.predict("echo", 1), client.predict("echo", 2), first(client)]
            return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)

    assert asyncio.run(give_up()) == [1, 2, 5]


def test_a_client_serves_one_event_loop_after_another_but_not_two_at_once(server: ts.Server) -> None:
    client = ts.AsyncClient(server.url)
    assert asyncio.run(client.health())["status"] == "ok"

    async def elsewhere() -> str:
        assert (await client.health())["status"] == "ok", "the loop before is closed"
        with pytest.raises(RuntimeError, match="used on another event loop: make one for each"):
            await asyncio.to_thread(asyncio.run, client.health())
        status = (await client.health())["status"]
        await client.close()
        return status

    assert asyncio.run(elsewhere()) == "ok"


def test_a_client_is_closed_on_another_loop_once_its_own_is_closed(server: ts.Server) -> None:
    client = ts.AsyncClient(server.url)

    async def in_a_block() -> None:
        async with client:
            pass

    asyncio.run(client.health())
    asyncio.run(in_a_block())
    asyncio.run(client.close())
    with pytest.raises(RuntimeError, match="the client is closed"):
        asyncio.run(client.health())


def test_a_client_is_not_closed_from_another_loop_while_its_own_goes_on(server: ts.Server) -> None:
    async def main() -> None:
        client = ts.AsyncClient(server.url)
        assert (await client.health())["status"] == "ok"
        with pytest.raises(RuntimeError, match="used on another event loop"):
            await asyncio.to_thread(asyncio.run, client.close())
        assert (await client.health())["status"] == "ok"
        await client.close()
        await asyncio.to_thread(asyncio.run, client.close())

    asyncio.run(main())


def test_connections_that_are_not_used_any_more_are_closed(
    server: ts.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connections, "_LONGEST_IDLE_SECONDS", 0.0)

    async def burst_and_trickle(proxy: CountingProxy) -> None:
        async with ts.AsyncClient(proxy.url) as client:
            await asyncio.gather(*(client.health() for _ in range(20)))
            assert proxy.connections > 1
            for _ in range(20):
                await client.health()
            await asyncio.to_thread(until, lambda: proxy.open <= 1)

    with CountingProxy(server.url) as proxy:
        asyncio.run(burst_and_trickle(proxy))


def test_a_stream_that_nobody_holds_takes_its_connection_with_it(serve: Serve) -> None:
    @ts.register()
    def count(item: int) -> Iterator[int]:
        yield from itertools.count(item)

    async def forget(url: str, proxy: CountingProxy) -> None:
        async with ts.AsyncClient(url) as client:
            results = client.predict_stream("count", 5)
            assert await anext(results) == 5
            del results
            gc.collect()
            await asyncio.to_thread(until, lambda: proxy.open == 0)

    with CountingProxy(serve().url) as proxy:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            asyncio.run(forget(proxy.url, proxy))


def test_a_closed_asynchronous_client_sends_nothing(server: ts.Server) -> None:
    async def use() -> None:
        client = ts.AsyncClient(server.url)
        left = client.stream("A fox")
        await client.health()
        await client.close()
        await client.close()
        with pytest.raises(RuntimeError, match="the client is closed"):
            await client.health()
        with pytest.raises(RuntimeError, match="the client is closed"):
            await left

    asyncio.run(use())


def test_a_client_can_go_to_another_process(server: ts.Server) -> None:
    with ts.Client(server.url, max_connections=2) as client:
        with pickle.loads(pickle.dumps(client)) as copy:
            assert repr(copy) == repr(client)
            assert copy.health()["status"] == "ok"


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


@pytest.mark.parametrize("kind", [ts.Client, ts.AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "localhost:8000"}, "not 'localhost:8000'; did you mean 'http://localhost:8000'?"),
        ({"base_url": "127.0.0.1:8000/a/"}, "did you mean 'http://127.0.0.1:8000/a/'?"),
        ({"base_url": "user:password@host:1"}, "URL, not 'host:1'"),
        ({"base_url": "ftp://host"}, "base_url must be an http:// or https:// URL, not 'ftp://host'"),
        ({"base_url": "http://"}, "base_url must be"),
        ({"base_url": "http://[::bad"}, "base_url must be"),
        ({"base_url": "http://host:99999"}, "base_url must be"),
        ({"base_url": "http://ho st"}, "base_url must be"),
        ({"base_url": "http://host/?a=b"}, "base_url must be"),
        ({"api_key": "secret \N{LATIN SMALL LETTER U WITH DIAERESIS}"}, "api_key must be printable ASCII"),
        ({"api_key": "secret \N{GREEK SMALL LETTER KAPPA}"}, "api_key must be printable ASCII"),
        ({"api_key": "secret\n"}, "api_key must be printable ASCII"),
        ({"api_key": ""}, "api_key must be printable ASCII"),
        ({"headers": {"x-team": "b\n"}}, "headers must be printable ASCII characters, and 'x-team' is not"),
        ({"timeout": 0}, "timeout must be > 0, not 0"),
        ({"timeout": float("inf")}, "timeout must be finite"),
        ({"max_retries": -1}, "max_retries must be >= 0, not -1"),
        ({"retry_delay": -0.5}, "retry_delay must be >= 0, not -0.5"),
        ({"max_connections": 0}, "max_connections must be >= 1, not 0"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_is_named_before_the_first_call(
    kind: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        kind(**arguments)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_client_may_wait_for_any_time(server: ts.Server, make_client: MakeClient) -> None:
    made: Any = make_client(base_url=server.url, timeout=None, retry_delay=0.001)
    assert repr(getattr(made, "inner", made)).endswith("timeout=None max_retries=3>")
    assert made.health()["status"] == "ok"
    busy = Answer(429, {"retry-after": "1"}, b'{"error":{"code":"queue_full","message":"full"}}')
    with ScriptedServer(busy, OK) as peer:
        assert make_client(base_url=peer.url, timeout=None).predict("m", [1.0]) == [1.0]


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
