"""`Batcher`: what each caller gets, and what an executor may do."""

from __future__ import annotations

import asyncio
import functools
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, double, raising


@pytest.fixture
def batcher() -> Iterator[ts.Batcher]:
    with ts.Batcher(max_batch=8, max_wait_ms=2) as batcher:
        yield batcher


def test_one_item_alone_is_answered_after_its_window(batcher: ts.Batcher) -> None:
    assert batcher.run(21, double) == 42


def test_a_thousand_threads_get_exactly_their_own_results() -> None:
    def call(index: int) -> bool:
        return all(batcher.run(index * 10 + turn, double) == (index * 10 + turn) * 2 for turn in range(5))

    with ts.Batcher() as batcher:
        with ThreadPoolExecutor(1000) as threads:
            assert all(threads.map(call, range(1000)))
        metrics = batcher.metrics()
    assert metrics.items == 5000
    assert metrics.avg_batch == 5000 / metrics.batches
    assert 0 < metrics.p50_ms <= metrics.p99_ms


def test_a_thousand_tasks_get_exactly_their_own_results() -> None:
    async def call(index: int) -> bool:
        results = [await batcher.arun(index * 10 + turn, double) for turn in range(5)]
        return results == [(index * 10 + turn) * 2 for turn in range(5)]

    async def main() -> list[bool]:
        return await asyncio.gather(*(call(index) for index in range(1000)))

    with ts.Batcher() as batcher:
        assert all(asyncio.run(main()))
        assert batcher.metrics().items == 5000


def test_a_thousand_futures_get_exactly_their_own_results() -> None:
    with ts.Batcher() as batcher:
        futures = [batcher.submit(item, double) for item in range(1000)]
        assert [future.result(PATIENCE) for future in futures] == [item * 2 for item in range(1000)]


def test_a_full_batch_does_not_wait_for_its_window() -> None:
    with ts.Batcher(max_batch=4, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(item, double) for item in range(8)]
        assert [future.result(PATIENCE) for future in futures] == [item * 2 for item in range(8)]
        assert batcher.metrics().batches == 2


def test_map_keeps_the_order_and_takes_any_iterable(batcher: ts.Batcher) -> None:
    assert batcher.map((item for item in range(3000)), double) == [item * 2 for item in range(3000)]
    assert batcher.map([], double) == []


def test_map_shows_progress_on_standard_error(batcher: ts.Batcher, capfd: pytest.CaptureFixture[str]) -> None:
    def slow(items: list[int]) -> list[int]:
        time.sleep(0.01)
        return double(items)

    assert len(batcher.map(range(200), slow, progress=True)) == 200
    text = capfd.readouterr().err
    assert "200 of 200 items" in text
    assert text.count("\r") > 1
    assert text.endswith("\n")
    batcher.map(iter(range(3)), double, progress=True)
    assert "3 items," in capfd.readouterr().err


def test_map_raises_the_first_failure_or_puts_it_among_the_results(batcher: ts.Batcher) -> None:
    def fussy(items: list[int]) -> list[int | Exception]:
        return [ValueError(item) if item % 50 == 7 else item for item in items]

    taken: list[int] = []
    with pytest.raises(ValueError, match="^7$"):
        batcher.map((taken.append(item) or item for item in range(100_000)), fussy)
    assert len(taken) < 100_000
    results = batcher.map(range(100), fussy, return_exceptions=True)
    assert [str(result) for result in results if isinstance(result, ValueError)] == ["7", "57"]
    assert [result for result in results if isinstance(result, int)] == [
        item for item in range(100) if item % 50 != 7
    ]


def test_map_passes_on_what_its_iterable_raises(batcher: ts.Batcher) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        batcher.map(broken(), double)
    assert batcher.run(1, double) == 2


def test_an_exception_among_the_results_fails_its_item_alone(batcher: ts.Batcher) -> None:
    def fussy(items: list[int]) -> list[int | Exception]:
        return [ValueError(f"no {item}") if item == 3 else item for item in items]

    futures = [batcher.submit(item, fussy) for item in range(8)]
    for item, future in enumerate(futures):
        if item == 3:
            with pytest.raises(ValueError, match="no 3"):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == item
    with pytest.raises(ValueError, match="no 3"):
        batcher.run(3, fussy)
    with pytest.raises(ValueError, match="no 3"):
        asyncio.run(batcher.arun(3, fussy))


def test_a_stop_iteration_among_the_results_reaches_an_asyncio_caller(batcher: ts.Batcher) -> None:
    async def main() -> None:
        await asyncio.wait_for(
            batcher.arun(3, lambda items: [StopIteration(item) for item in items]), PATIENCE
        )

    with pytest.raises(ts.ExecutorError, match="StopIteration"):
        asyncio.run(main())


def test_different_executors_never_share_a_batch() -> None:
    seen: list[tuple[str, list[int]]] = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self, items: list[int]) -> list[str]:
            seen.append((self.name, list(items)))
            return [self.name] * len(items)

    one, other = Model("one"), Model("other")
    with ts.Batcher(max_batch=8, max_wait_ms=HOUR_MS) as batcher:
        # Every access makes another bound method; equal ones do share.
        futures = [batcher.submit(item, (one if item % 2 else other).predict) for item in range(16)]
        assert [future.result(PATIENCE) for future in futures] == ["other", "one"] * 8
    assert sorted(seen) == [("one", list(range(1, 16, 2))), ("other", list(range(0, 16, 2)))]


def nothing(items: list[int]) -> Any:
    return None


def generated(items: list[int]) -> Any:
    return (item for item in items)


def shorter(items: list[int]) -> Any:
    return items[1:]


def longer(items: list[int]) -> Any:
    return [*items, 1]


def text(items: list[int]) -> Any:
    return "x" * len(items)


def mapping(items: list[int]) -> Any:
    return dict.fromkeys(range(len(items)))


def exiting(items: list[int]) -> Any:
    raise SystemExit(3)


async def waiting(items: list[int]) -> list[int]:
    return items


def returns_coroutine(items: list[int]) -> Any:
    return waiting(items)


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (nothing, "nothing returned None for a batch of 4"),
        (generated, "generated returned generator for a batch of 4"),
        (shorter, "shorter returned 3 results for a batch of 4"),
        (longer, "longer returned 5 results for a batch of 4"),
        (text, "text returned str for a batch of 4"),
        (mapping, "mapping returned dict for a batch of 4"),
        (raising, "raising raised ValueError: the reason"),
        (exiting, "exiting raised SystemExit: 3"),
        (returns_coroutine, "returns_coroutine returned coroutine for a batch of 4"),
    ],
)
def test_an_executor_that_fails_is_named_to_everyone_and_the_next_batch_runs(
    executor: Any, message: str
) -> None:
    with ts.Batcher(max_batch=4, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(item, executor) for item in range(4)]
        errors = [future.exception(PATIENCE) for future in futures]
        assert all(isinstance(error, ts.ExecutorError) and message in str(error) for error in errors)
        assert len({id(error) for error in errors}) == 4, "each its own, with a traceback of its own"
        if executor is raising:
            assert all(error is not None and isinstance(error.__cause__, ValueError) for error in errors)
        futures = [batcher.submit(item, double) for item in range(4)]
        assert [future.result(PATIENCE) for future in futures] == [0, 2, 4, 6]


def test_a_batch_that_fails_is_not_run_again_in_parts() -> None:
    sizes: list[int] = []

    def alone_only(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 1:
            raise ValueError(len(items))
        return items

    with ts.Batcher(max_batch=4, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(item, alone_only) for item in range(4)]
        causes = [getattr(future.exception(PATIENCE), "__cause__", None) for future in futures]
    assert [str(cause) for cause in causes] == ["4"] * 4
    assert sizes == [4]


class Later:
    """Its calls are awaited."""

    async def __call__(self, items: list[int]) -> list[int]:
        return items

    def generate(self, items: list[int]) -> Any:
        yield from items


@pytest.mark.parametrize(
    ("executor", "name"),
    [
        (waiting, "waiting is a coroutine"),
        (functools.partial(waiting), "waiting is a coroutine"),
        (functools.partial(functools.partial(Later())), "Later is a coroutine"),
        (Later(), "Later is a coroutine"),
        (Later().__call__, "Later.__call__ is a coroutine"),
        (Later().generate, "Later.generate is a coroutine or generator function"),
        (3, "3"),
        (None, "None"),
    ],
)
def test_the_wrong_kind_of_executor_is_refused_before_anything_is_queued(
    batcher: ts.Batcher, executor: Any, name: str
) -> None:
    for call in (batcher.run, batcher.submit, lambda item, executor: batcher.map([item], executor)):
        with pytest.raises(TypeError, match=name):
            call(1, executor)
    with pytest.raises(TypeError, match=name):
        asyncio.run(batcher.arun(1, executor))


def test_rows_of_an_array_and_tuples_are_results(batcher: ts.Batcher) -> None:
    def rows(items: list[int]) -> Any:
        return np.array([[item, item] for item in items])

    assert np.array_equal(batcher.run(3, rows), [3, 3])
    assert batcher.run(3, tuple) == 3


def test_an_executor_may_change_its_list(batcher: ts.Batcher) -> None:
    def clearing(items: list[int]) -> list[int]:
        results = double(items)
        items.clear()
        return results

    assert batcher.map(range(20), clearing) == [item * 2 for item in range(20)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_wait_ms": -1}, "max_wait_ms"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms"),
        ({"max_queue": 0}, "max_queue"),
        ({"backpressure": "hope"}, "backpressure must be 'block', 'drop' or 'passthrough', not 'hope'"),
    ],
)
def test_a_limit_out_of_range_is_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ts.Batcher(**arguments)


def test_the_queue_holds_sixteen_batches_unless_told_otherwise() -> None:
    assert "max_queue=64" in repr(ts.Batcher(max_batch=4))


def test_a_batcher_does_not_travel() -> None:
    with pytest.raises(TypeError, match="make one there"):
        pickle.dumps(ts.Batcher())
