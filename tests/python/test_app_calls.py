"""What an `App` does with calls that are cancelled, stopped, refused by the function, or never end."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, until
from served import ask, predict


def soon(work: Any) -> Any:
    """What a coroutine returns, which must not take for ever."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


class Gate:
    """Functions enter it, and wait until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.done: list[str] = []

    def pass_through(self, name: str) -> None:
        self.entered.release()
        assert self.opened.wait(PATIENCE)
        self.done.append(name)

    async def wait_entered(self) -> None:
        """Returns when one more has entered."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE)


def app_of_each_kind(gate: Gate, enable_batching: bool) -> ts.App:
    """An app whose models are named as what they are."""
    app = ts.App(enable_batching=enable_batching, batch_timeout_ms=0)

    @app.model("item")
    def item(text: str) -> int:
        gate.pass_through("item")
        return len(text)

    @app.model("coroutine")
    async def coroutine(text: str) -> int:
        await asyncio.to_thread(gate.pass_through, "coroutine")
        return len(text)

    @app.model("batch")
    def batch(texts: list[str]) -> list[int]:
        gate.pass_through("batch")
        return [len(text) for text in texts]

    @app.model("stream")
    def stream(text: str) -> Iterator[str]:
        for character in text:
            gate.pass_through("stream")
            yield character

    @app.model("asynchronous")
    async def asynchronous(text: str) -> AsyncIterator[str]:
        for character in text:
            await asyncio.to_thread(gate.pass_through, "asynchronous")
            yield character

    return app


async def call(app: ts.App, name: str, item: str) -> Any:
    """The result, or all pieces of it."""
    result = await app.predict(name, item)
    return [piece async for piece in result] if app.registry.get(name).streaming else result


EACH_KIND = ["item", "coroutine", "batch", "stream", "asynchronous"]


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", EACH_KIND)
def test_stop_returns_when_the_calls_before_it_are_answered(kind: str, batching: bool) -> None:
    gate = Gate()
    app = app_of_each_kind(gate, batching)

    async def main() -> None:
        running = asyncio.create_task(call(app, kind, "ab"))
        await gate.wait_entered()
        stopping = [asyncio.create_task(app.stop()) for _ in range(2)]
        assert await asyncio.wait(stopping, timeout=0.05) == (set(), set(stopping))
        gate.opened.set()
        await asyncio.gather(*stopping)
        assert gate.done == [kind] * (2 if app.registry.get(kind).streaming else 1)
        assert await running == (["a", "b"] if app.registry.get(kind).streaming else 2)
        assert await call(app, kind, "") in (0, [])
        await app.stop()

    soon(main())


def test_stop_on_one_loop_waits_for_the_calls_of_another() -> None:
    gate = Gate()
    app = app_of_each_kind(gate, True)
    caller = threading.Thread(target=asyncio.run, args=(call(app, "item", "a"),))
    caller.start()

    async def main() -> None:
        await gate.wait_entered()
        stopping = asyncio.create_task(app.stop())
        assert await asyncio.wait([stopping], timeout=0.05) == (set(), {stopping})
        gate.opened.set()
        await stopping
        assert gate.done == ["item"]

    soon(main())
    caller.join()


def test_stop_does_not_wait_for_what_waits_for_it() -> None:
    app = ts.App()

    @app.model("stopping")
    async def stopping(item: int) -> int:
        await app.stop()
        return item

    @app.model("count")
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    async def main() -> None:
        assert await app.predict("stopping", 3) == 3
        stream = await app.predict("count", 3)
        assert await anext(stream) == 0
        await app.stop()
        assert [piece async for piece in stream] == [1, 2]
        async for _ in await app.predict("count", 3):
            break
        await app.stop()

    soon(main())


@pytest.mark.parametrize("kind", ["item", "coroutine", "stream", "asynchronous"])
def test_stop_does_not_wait_for_calls_of_a_closed_loop(kind: str) -> None:
    gate = Gate()
    app = app_of_each_kind(gate, True)
    loop = asyncio.new_event_loop()
    left = loop.create_task(call(app, kind, "ab"))
    loop.run_until_complete(gate.wait_entered())
    gate.opened.set()
    loop.close()
    soon(app.stop())
    left.get_loop()  # still held


def test_a_stop_that_is_given_up_stops_nothing_else() -> None:
    gate = Gate()
    app = app_of_each_kind(gate, True)

    async def main() -> None:
        running = asyncio.create_task(call(app, "item", "ab"))
        await gate.wait_entered()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(app.stop(), 0.05)
        gate.opened.set()
        assert await running == 2

    soon(main())


def test_cancelling_a_plain_stream_closes_its_generator_after_the_running_piece() -> None:
    gate = Gate()
    app = ts.App()
    closed: list[int] = []

    @app.model("pieces")
    def pieces(item: int) -> Iterator[int]:
        try:
            gate.pass_through("piece")
            yield item
        finally:
            closed.append(threading.get_ident())

    async def main() -> None:
        task = asyncio.create_task(call(app, "pieces", 1))  # pyright: ignore[reportArgumentType]
        await gate.wait_entered()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert closed == []
        gate.opened.set()
        await asyncio.to_thread(until, lambda: len(closed) == 1)

    soon(main())
    assert gate.done == ["piece"]
    assert closed != [threading.get_ident()]


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_a_stream_that_is_left_is_closed_before_aclose_returns(kind: str) -> None:
    app = ts.App()
    closed: list[int] = []

    @app.model("plain")
    def plain(item: int) -> Iterator[int]:
        try:
            while True:
                yield item
        finally:
            closed.append(threading.get_ident())

    @app.model("asynchronous", streaming=True)
    async def asynchronous(item: int) -> AsyncIterator[int]:
        async def forever() -> AsyncIterator[int]:
            try:
                while True:
                    yield item
            finally:
                closed.append(threading.get_ident())

        return forever()

    async def main() -> None:
        stream = await app.predict(kind, 7)
        assert await anext(stream) == 7
        await stream.aclose()
        assert len(closed) == 1

    soon(main())
    assert (closed == [threading.get_ident()]) == (kind == "asynchronous")


BLAMELESS = [
    ts.ValidationError, ts.QueueFullError, ts.OverloadedError, ts.BreakerOpenError, ts.DeadlineExceededError,
    ts.ShuttingDownError,
]  # fmt: skip


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["plain", "coroutine", "item", "item coroutine"])
def test_an_error_of_this_package_that_is_nobodys_failure_passes_as_it_is(kind: str, batching: bool) -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=1, enable_batching=batching)

    def item(text: str) -> int:
        raise ts.ValidationError(f"{text} is too short")

    async def item_coroutine(text: str) -> int:
        return item(text)

    def plain(texts: list[str]) -> list[int]:
        return [item(text) for text in texts]

    async def coroutine(texts: list[str]) -> list[int]:
        return plain(texts)

    functions = {"plain": plain, "coroutine": coroutine, "item": item, "item coroutine": item_coroutine}
    app.model("strict")(functions[kind])
    with pytest.raises(ts.ValidationError, match="^a is too short$"):
        soon(app.predict("strict", "a"))
    with app.serve(port=0, block=False) as server:
        assert predict(server, "strict", "a").error == (422, "invalid_input", "a is too short")


@pytest.mark.parametrize("error", BLAMELESS)
def test_such_an_error_has_its_own_status_over_http(error: type[ts.ApiError]) -> None:
    app = ts.App()

    @app.model("refusing")
    def refusing(item: int) -> int:
        raise error("not now")

    @app.model("stream")
    def stream(item: int) -> Iterator[int]:
        if item >= 0:
            raise error("not now")
        yield item

    with pytest.raises(error, match="^not now$"):
        soon(app.predict("refusing", 1))
    with app.serve(port=0, block=False) as server:
        assert predict(server, "refusing", 1).error == (error.status, error.code, "not now")
        answer = ask(server, "/v1/inference/stream", {"model": "stream", "data": 1})
        assert answer.error == (error.status, error.code, "not now")


@pytest.mark.parametrize(
    "error", [ts.ModelNotFoundError("other"), ts.InvalidInputError("other", request_id="1")]
)
def test_the_failure_of_another_model_is_one_of_this_model(error: Exception) -> None:
    app = ts.App()

    @app.model("asking")
    def asking(item: int) -> int:
        raise error

    with pytest.raises(ts.InferenceError, match="asking inference failed: other") as caught:
        soon(app.predict("asking", 1))
    assert caught.value.__cause__ is error
    with app.serve(port=0, block=False) as server:
        assert predict(server, "asking", 1).error[:2] == (500, "model_failed")


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize(
    ("made", "what"), [(None, "None"), ((n for n in range(2)), "generator"), ("ab", "str"), ({"a"}, "set")]
)
def test_what_is_no_list_of_results_is_an_error_for_all(
    made: Any, what: str, kind: str, batching: bool
) -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS, enable_batching=batching)

    def wrong(items: list[str]) -> list[int]:
        return made

    async def wrong_later(items: list[str]) -> list[int]:
        return made

    app.model("wrong")(wrong if kind == "plain" else wrong_later)

    async def main() -> list[Any]:
        calls = [app.predict("wrong", item) for item in "ab"]
        return await asyncio.gather(*calls, return_exceptions=True)

    for error in soon(main()):
        assert isinstance(error, RuntimeError)
        assert re.search(rf"wrong(_later)? returned {what} for a batch of", str(error))


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_function_may_change_the_list_that_it_is_given(kind: str, batching: bool) -> None:
    app = ts.App(max_batch_size=3, batch_timeout_ms=HOUR_MS, enable_batching=batching)

    def drain(items: list[str]) -> list[int]:
        results: list[int] = []
        while items:
            results.append(len(items.pop(0)))
        items.extend("more than there were")
        return results

    async def drain_later(items: list[str]) -> list[int]:
        return drain(items)

    app.model("drain")(drain if kind == "plain" else drain_later)

    async def main() -> list[int]:
        return await asyncio.gather(*(app.predict("drain", item) for item in ("a", "bb", "ccc")))

    assert soon(main()) == [1, 2, 3]


@pytest.mark.parametrize("batching", [True, False])
def test_a_result_of_one_item_may_be_none_or_a_generator_as_it_is(batching: bool) -> None:
    app = ts.App(enable_batching=batching)
    generator = (number for number in range(3))

    @app.model("nothing")
    def nothing(item: int) -> None:
        return None

    @app.model("lazy")
    def lazy(item: int) -> Any:
        return generator

    assert soon(app.predict("nothing", 1)) is None
    assert soon(app.predict("lazy", 1)) is generator
