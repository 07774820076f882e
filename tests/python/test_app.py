"""`App`: models whose annotations say what is batched and what is checked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import pytest
import trustformers_serve as ts
from executors import PATIENCE, own_threads, until

HOUR_MS = 3_600_000.0


def predict(app: ts.App, name: str, *items: Any, **options: Any) -> list[Any]:
    """The results of items that are sent at once; exceptions among them."""

    async def main() -> list[Any]:
        calls = [app.predict(name, item, **options) for item in items]
        try:
            return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
        finally:
            await app.stop()

    return asyncio.run(main())


def test_its_arguments_are_its_attributes() -> None:
    app = ts.App(name="texts", enable_batching=False, max_batch_size=4, batch_timeout_ms=1.5)
    assert (app.name, app.enable_batching, app.max_batch_size, app.batch_timeout_ms) == (
        "texts",
        False,
        4,
        1.5,
    )
    app = ts.App("other")
    assert (app.name, app.enable_batching, app.max_batch_size, app.batch_timeout_ms) == (
        "other",
        True,
        32,
        10.0,
    )
    assert app.registry.all() == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"max_batch_size": 0}, "max_batch_size"), ({"batch_timeout_ms": -1}, "batch_timeout_ms")],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ts.App(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_size": 2.5}, r"max_batch_size must be an integer, not 2\.5"),
        ({"max_batch_size": "4"}, "max_batch_size must be an integer, not '4'"),
        ({"batch_timeout_ms": "1"}, "batch_timeout_ms must be a number, not '1'"),
    ],
)
def test_an_argument_that_is_no_number_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ts.App(**arguments)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_list_to_a_list_of_another_type_gets_the_whole_batch(kind: str) -> None:
    app = ts.App(max_batch_size=4, batch_timeout_ms=HOUR_MS)
    batches: list[list[str]] = []

    def length(texts: list[str]) -> list[int]:
        batches.append(texts)
        return [len(text) for text in texts]

    async def length_async(texts: list[str]) -> list[int]:
        return length(texts)

    function: Any = length if kind == "plain" else length_async
    assert app.model("length")(function) is function
    assert predict(app, "length", "a", "bb", "", "dddd") == [1, 2, 0, 4]
    assert batches == [["a", "bb", "", "dddd"]]
    info = app.registry.get("length")
    assert (info.input_types, info.output_type, info.streaming) == ({"texts": str}, int, False)


def test_a_thousand_callers_get_exactly_their_own_results_from_several_loops() -> None:
    app = ts.App()

    @app.model("text")
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    async def main(start: int) -> bool:
        calls = [app.predict("text", start + item) for item in range(1000)]
        return await asyncio.gather(*calls) == [str(start + item) for item in range(1000)]

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(lambda start: asyncio.run(main(start)), (0, 10_000, 20_000)))
    asyncio.run(app.stop())


def test_an_item_that_is_a_list_is_one_item() -> None:
    app = ts.App()

    @app.model("mean")
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    assert predict(app, "mean", [1, 2], [3]) == [1.5, 3.0]
    assert app.registry.get("mean").input_types == {"values": list[float]}


@pytest.mark.parametrize("annotated", ["same", "bare", "unsaid"])
def test_a_list_to_a_list_of_the_same_type_must_say_whether_it_is_batched(annotated: str) -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS)

    def same(x: list[float]) -> list[float]:
        return [value * 2 for value in x]

    def bare(x: list[Any]) -> list[Any]:
        return same(x)

    bare.__annotations__ = {"x": "list", "return": "list"}

    def unsaid(x: list[float]):
        return same(x)

    function = {"same": same, "bare": bare, "unsaid": unsaid}[annotated]
    with pytest.raises(ts.DecorationError, match=rf"{annotated} takes a list.*batched=True.*batched=False"):
        app.model("double")(function)
    assert app.registry.all() == []
    app.model("items", batched=True)(function)
    app.model("whole", batched=False)(function)
    assert predict(app, "items", 1.0, 2.0) == [2.0, 4.0]
    assert predict(app, "whole", [1.0, 2.0], [3.0]) == [[2.0, 4.0], [6.0]]


def test_batched_may_be_said_of_what_has_no_annotations_or_clear_ones() -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS)

    def bare(items: list[str]) -> list[int]:
        return [len(items)] * len(items)

    bare.__annotations__ = {}
    app.model("bare", batched=True)(bare)

    @app.model("apart", batched=False)
    def apart(items: list[str]) -> list[int]:
        return [len(items)]

    assert predict(app, "bare", "a", "b") == [2, 2]
    assert predict(app, "apart", ["a", "b"], ["c"]) == [[2], [1]]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_several_parameters_are_a_mapping_and_never_batched(kind: str) -> None:
    app = ts.App()

    def area(width: list[int], height: list[int]) -> list[str]:
        return [f"{width}x{height}"]

    async def area_async(width: list[int], height: list[int]) -> list[str]:
        return area(width, height)

    app.model("area")(area if kind == "plain" else area_async)
    items = [{"width": [1], "height": [2]}, {"height": [3], "width": [4]}]
    assert predict(app, "area", *items) == [["[1]x[2]"], ["[4]x[3]"]]
    (error,) = predict(app, "area", {"width": [1]})
    assert isinstance(error, ts.ValidationError)
    assert "height: missing" in str(error)


def test_a_plain_function_of_one_item_runs_off_the_loop() -> None:
    app = ts.App()

    @app.model("where")
    def where(item: int) -> int:
        return threading.get_ident()

    @app.model("here")
    async def here(item: int) -> int:
        return threading.get_ident()

    assert predict(app, "where", 1) != [threading.get_ident()]
    assert predict(app, "here", 1) == [threading.get_ident()]


def test_items_are_checked_before_they_join_a_batch() -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS)

    @app.model("sum")
    def sums(rows: list[Annotated[np.ndarray, ts.Tensor("f32", (-1, 2))]]) -> list[float]:
        assert all(row.dtype == np.float32 for row in rows)
        return [float(row.sum()) for row in rows]

    first, wrong, second = predict(app, "sum", [[1, 2]], [1, 2, 3], np.ones((3, 2)))
    assert (first, second) == (3.0, 6.0)
    assert isinstance(wrong, ts.ValidationError)
    assert "rows: must have the shape [-1, 2], not [3]" in str(wrong)


async def collected(app: ts.App, name: str, item: Any) -> list[Any]:
    return [piece async for piece in await app.predict(name, item)]


def test_generators_stream() -> None:
    app = ts.App()

    @app.model("count")
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @app.model("words")
    async def words(texts: list[str]) -> AsyncIterator[str]:
        for text in texts:
            yield text

    @app.model("iterated", streaming=True)
    def iterated(to: int) -> Iterator[int]:
        return iter(range(to))

    @app.model("awaited", streaming=True)
    async def awaited(texts: list[str]) -> AsyncIterator[str]:
        return words(texts)

    for name, item, result in (
        ("count", 3, [0, 1, 2]),
        ("words", ["a", "b"], ["a", "b"]),
        ("iterated", 2, [0, 1]),
        ("awaited", ["c"], ["c"]),
    ):
        assert asyncio.run(collected(app, name, item)) == result
        assert app.registry.get(name).streaming
    assert app.registry.get("count").output_type is int
    assert app.registry.get("awaited").output_type is str


def test_a_stream_may_be_left_and_its_generator_is_closed() -> None:
    app = ts.App()
    closed: list[str] = []

    @app.model("plain")
    def plain(item: int) -> Iterator[int]:
        try:
            while True:
                yield item
        finally:
            closed.append("plain")

    @app.model("asynchronous")
    async def asynchronous(item: int) -> AsyncIterator[int]:
        try:
            while True:
                yield item
        finally:
            closed.append("asynchronous")

    async def main() -> None:
        for name in ("plain", "asynchronous"):
            stream = await app.predict(name, 7)
            assert await anext(stream) == 7
            await stream.aclose()

    asyncio.run(main())
    assert closed == ["plain", "asynchronous"]


def test_a_stream_that_raises_has_given_what_came_before() -> None:
    app = ts.App()

    @app.model("broken")
    def broken(item: int) -> Iterator[int]:
        yield item
        raise KeyError("later")

    async def main() -> None:
        stream = await app.predict("broken", 1)
        assert await anext(stream) == 1
        with pytest.raises(ts.InferenceError, match="broken inference failed: 'later'") as caught:
            await anext(stream)
        assert isinstance(caught.value.__cause__, KeyError)

    asyncio.run(main())


def test_an_exception_among_the_results_fails_its_item_alone() -> None:
    app = ts.App(max_batch_size=3, batch_timeout_ms=HOUR_MS)

    @app.model("fussy")
    def fussy(items: list[str]) -> list[int]:
        results: list[Any] = [KeyError(item) if item == "b" else len(item) for item in items]
        return results

    first, failed, last = predict(app, "fussy", "a", "b", "c")
    assert (first, last) == (1, 1)
    assert isinstance(failed, KeyError)


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_wrong_length_is_a_runtime_error_for_all(kind: str, batching: bool) -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS, enable_batching=batching)

    def short(items: list[str]) -> list[int]:
        return []

    async def short_async(items: list[str]) -> list[int]:
        return []

    app.model("short")(short if kind == "plain" else short_async)
    for error in predict(app, "short", "a", "b"):
        assert isinstance(error, RuntimeError)
        assert not isinstance(error, ts.InferenceError)
        assert "returned 0 results for a batch of" in str(error)
        assert "short" in str(error)


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["plain", "coroutine", "item", "item coroutine"])
def test_a_function_that_raises_is_an_inference_error_with_its_cause(kind: str, batching: bool) -> None:
    app = ts.App(max_batch_size=2, batch_timeout_ms=HOUR_MS, enable_batching=batching)

    def plain(items: list[str]) -> list[int]:
        items.clear()
        raise LookupError("not there")

    async def coroutine(items: list[str]) -> list[int]:
        return plain(items)

    def item(text: str) -> int:
        raise LookupError("not there")

    async def item_coroutine(text: str) -> int:
        return item(text)

    functions = {"plain": plain, "coroutine": coroutine, "item": item, "item coroutine": item_coroutine}
    app.model("broken")(functions[kind])
    errors = predict(app, "broken", "a", "b")
    assert len({id(error) for error in errors}) == 2
    for error in errors:
        assert isinstance(error, ts.InferenceError)
        assert str(error) == "broken inference failed: not there"
        assert isinstance(error.__cause__, LookupError)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_without_batching_each_item_runs_alone(kind: str) -> None:
    app = ts.App(enable_batching=False)
    batches: list[list[str]] = []

    def length(texts: list[str]) -> list[int]:
        batches.append(texts)
        return [len(text) for text in texts]

    async def length_async(texts: list[str]) -> list[int]:
        return length(texts)

    app.model("length")(length if kind == "plain" else length_async)
    assert predict(app, "length", "a", "bb", "ccc") == [1, 2, 3]
    assert sorted(batches) == [["a"], ["bb"], ["ccc"]]


def test_versions_are_apart_and_the_newest_is_meant() -> None:
    app = ts.App()
    for version in ("9", "10"):

        @app.model("which", version)
        def which(item: int, version: str = version) -> str:
            return version

    item = {"item": 1}
    assert predict(app, "which", item) == ["10"]
    assert predict(app, "which", item, version="9") == ["9"]
    (missing,) = predict(app, "which", item, version="8")
    assert isinstance(missing, ts.ModelNotFoundError)
    (missing,) = predict(app, "nowhere", 1)
    assert isinstance(missing, ts.ModelNotFoundError)
    assert repr(app) == "<App 'app' of which@9, which@10>"


def test_more_callers_than_places_wait() -> None:
    app = ts.App(max_batch_size=1, batch_timeout_ms=0)

    @app.model("text")
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    assert predict(app, "text", *range(200)) == [str(item) for item in range(200)]


def test_a_cancelled_caller_leaves_the_others_their_results() -> None:
    app = ts.App(max_batch_size=4, batch_timeout_ms=1)

    @app.model("text")
    async def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    async def main() -> None:
        tasks = [asyncio.create_task(app.predict("text", item)) for item in range(90)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for item, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) if item % 3 == 0 else result == str(item)
        await app.stop()

    asyncio.run(main())


def test_stop_answers_who_waits_and_leaves_no_thread() -> None:
    before = own_threads()
    app = ts.App(batch_timeout_ms=HOUR_MS)

    @app.model("text")
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    async def main() -> None:
        for _ in range(2):
            calls = [asyncio.create_task(app.predict("text", item)) for item in range(3)]
            await asyncio.sleep(0)
            assert own_threads() - before
            await asyncio.wait_for(asyncio.gather(app.stop(), app.stop()), PATIENCE)
            assert await asyncio.gather(*calls) == ["0", "1", "2"]

    asyncio.run(main())
    until(lambda: own_threads() <= before)


def nothing_taken() -> int:
    return 1


def variadic(*items: int) -> int:
    return 1


def keywords(**items: int) -> int:
    return 1


def keyword(*, item: int) -> int:
    return 1


def positional(a: int, b: int, /) -> int:
    return 1


def generator(item: int) -> Iterator[int]:
    yield item


def text_to_text(item: str) -> str:
    return item


def two(a: int, b: int) -> int:
    return a


def list_to_number(items: list[int]) -> int:
    return 1


class Thing:
    def method(self, items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @classmethod
    def made(cls, item: int) -> str:
        return str(item)

    @staticmethod
    def static(item: int) -> str:
        return str(item)


def count(items: list[int]) -> list[str]:
    return [str(len(items))] * len(items)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (nothing_taken, {}, "nothing_taken must have parameters"),
        (variadic, {}, "variadic must have parameters, each with a name"),
        (keywords, {}, "keywords must have parameters, each with a name"),
        (keyword, {}, "keyword must take its item by position"),
        (positional, {}, "positional must take its 2 parameters by name"),
        (generator, {"batched": True}, "generator streams, and is never batched"),
        (two, {"batched": True}, "two has 2 parameters, and is never batched"),
        (text_to_text, {"batched": True}, "text_to_text must take a list and return one"),
        (list_to_number, {"batched": True}, "list_to_number must take a list and return one"),
        (text_to_text, {"streaming": True, "batched": True}, "text_to_text streams"),
        (Thing, {}, "app.model takes a function, not Thing"),
        (3, {}, "app.model takes a function, not 3"),
        (staticmethod(two), {}, "put `@staticmethod` above `@app.model`"),
        (Thing.method, {}, r"Thing\.method is a method: .* of an instance"),
        (vars(Thing)["made"].__func__, {}, r"Thing\.made is a method: .* of an instance"),
        (ts.batch()(count), {}, "count is batched already: put `@app.model` above the function alone"),
        (ts.autobatch()(count), {}, "count is batched already"),
        (two, {"version": 2}, "two cannot have the version 2: a version is a string, not int"),
        (two, {"version": None}, "two cannot have the version None"),
    ],
)
def test_a_function_that_cannot_be_a_model_is_named_at_decoration(
    function: Any, options: dict[str, Any], message: str
) -> None:
    app = ts.App()
    with pytest.raises(ts.DecorationError, match=message):
        app.model("name", **options)(function)
    assert app.registry.all() == []


def test_methods_that_need_no_instance_or_have_one_can_be_models() -> None:
    app = ts.App()
    for name, function in (("method", Thing().method), ("made", Thing.made), ("static", Thing.static)):
        app.model(name)(function)
        assert predict(app, name, 3) == ["3"]


@pytest.mark.parametrize("name", [None, 3, b"name"])
def test_a_name_that_is_no_string_is_refused_with_the_functions(name: Any) -> None:
    with pytest.raises(ts.DecorationError, match=rf"two cannot have the name {name}: a name is a string"):
        ts.App().model(name)(two)


def test_a_taken_name_and_forgotten_parentheses_are_refused() -> None:
    app = ts.App()
    app.model("one")(two)
    with pytest.raises(ts.ConfigurationError, match="text_to_text cannot be model 'one'"):
        app.model("one")(text_to_text)
    with pytest.raises(ts.DecorationError, match=r"@app\.model\(\)` above two"):
        app.model(two)  # pyright: ignore[reportArgumentType]


def test_every_error_is_of_one_base() -> None:
    for error in (
        ts.ValidationError,
        ts.ModelNotFoundError,
        ts.SerializationError,
        ts.InferenceError,
        ts.ConfigurationError,
    ):
        assert issubclass(error, ts.TrustformersError)
