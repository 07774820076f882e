"""`batch`: coroutine and plain functions of a list, awaited with one item."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustformers_serve as ts
from executors import PATIENCE, Held, until

HOUR = 3600.0


@ts.batch(max_batch_size=16, max_wait_time=0.002, max_queue_size=10_000)
async def double(items: list[int]) -> list[int]:
    """Twice each."""
    return [item * 2 for item in items]


@ts.batch(max_batch_size=16, max_wait_time=0.002, max_queue_size=10_000)
def triple(items: list[int]) -> list[int]:
    """Three times each."""
    return [item * 3 for item in items]


async def own_results(function: Any, factor: int, start: int = 0) -> bool:
    async def call(index: int) -> bool:
        results = [await function(start + index * 10 + turn) for turn in range(5)]
        return results == [(start + index * 10 + turn) * factor for turn in range(5)]

    return all(await asyncio.gather(*(call(index) for index in range(1000))))


@pytest.mark.parametrize(("function", "factor"), [(double, 2), (triple, 3)])
def test_a_thousand_callers_get_exactly_their_own_results(function: Any, factor: int) -> None:
    async def main() -> float:
        await function.batcher.stop()
        assert await own_results(function, factor)
        (metrics,) = function.batcher.metrics()
        assert metrics.items == 5000
        return metrics.avg_batch

    assert asyncio.run(main()) > 4


@pytest.mark.parametrize("workers", [1, 3])
def test_several_event_loops_at_once_get_their_own_results(workers: int) -> None:
    @ts.batch(max_queue_size=10_000, workers=workers)
    async def negative(items: list[int]) -> list[int]:
        return [-item for item in items]

    with ThreadPoolExecutor(4) as threads:
        starts = range(0, 80_000, 20_000)
        assert all(threads.map(lambda start: asyncio.run(own_results(negative, -1, start)), starts))
    asyncio.run(negative.batcher.stop())


def test_a_coroutine_function_runs_on_the_loop_of_its_callers_alone() -> None:
    loops: set[tuple[int, int]] = set()

    @ts.batch(max_batch_size=8)
    async def where(items: list[int]) -> list[int]:
        here = id(asyncio.get_running_loop())
        loops.update((here, item) for item in items)
        return [here] * len(items)

    async def main() -> None:
        here = id(asyncio.get_running_loop())
        assert await asyncio.gather(*(where(here) for _ in range(20))) == [here] * 20

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: asyncio.run(main()), range(4)))
    assert all(ran == called for ran, called in loops)
    asyncio.run(where.batcher.stop())


def test_a_plain_function_runs_off_the_loop() -> None:
    held = Held()

    @ts.batch(max_batch_size=1)
    def waits(items: list[int]) -> list[int]:
        return held(items)

    async def main() -> int:
        call = asyncio.create_task(waits(4))
        await asyncio.to_thread(held.wait_entered)
        # The loop turns although the function waits.
        await asyncio.sleep(0)
        assert not call.done()
        held.let_go()
        result = await call
        await waits.batcher.stop()
        return result

    assert asyncio.run(main()) == 8


def test_a_full_batch_does_not_wait_and_another_leaves_by_its_window() -> None:
    sizes: list[int] = []

    @ts.batch(max_batch_size=4, max_wait_time=HOUR)
    async def full(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    @ts.batch(max_batch_size=4, max_wait_time=0.001)
    async def windowed(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    async def main() -> None:
        assert await asyncio.wait_for(asyncio.gather(*map(full, range(8))), PATIENCE) == list(range(8))
        assert sizes == [4, 4]
        assert await asyncio.wait_for(asyncio.gather(*map(windowed, range(3))), PATIENCE) == [0, 1, 2]
        assert sum(sizes[2:]) == 3
        for function in (full, windowed):
            await function.batcher.stop()

    asyncio.run(main())


def test_a_function_keeps_its_name_signature_and_docstring() -> None:
    assert (double.__name__, double.__doc__) == ("double", "Twice each.")
    assert str(inspect.signature(double)) == "(items: 'list[int]') -> 'list[int]'"
    assert inspect.iscoroutinefunction(double)
    assert inspect.iscoroutinefunction(triple)
    assert pickle.loads(pickle.dumps(double)) is double


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.sizes: list[int] = []

    @ts.batch(max_batch_size=8, max_wait_time=0.02)
    async def scale(self, items: list[int]) -> list[int]:
        self.sizes.append(len(items))
        return [item * self.factor for item in items]

    @ts.batch(max_batch_size=8, max_wait_time=0.02)
    def add(self, items: list[int], worker_id: int) -> list[int]:
        self.sizes.append(len(items))
        return [item + self.factor + worker_id for item in items]


@pytest.mark.parametrize("method", ["scale", "add"])
def test_a_method_batches_each_instance_by_itself(method: str) -> None:
    async def main() -> None:
        two, three = Scaler(2), Scaler(3)
        calls = [getattr(two if item % 2 else three, method)(item) for item in range(100)]
        results = await asyncio.gather(*calls)
        factors = [2, 3] if method == "scale" else []
        for item, result in enumerate(results):
            own = two if item % 2 else three
            assert result == (item * own.factor if factors else item + own.factor)
        assert sum(two.sizes) == sum(three.sizes) == 50
        assert max(two.sizes) == 8
        await Scaler.scale.batcher.stop()
        await Scaler.add.batcher.stop()

    asyncio.run(main())


def test_each_worker_has_its_queue_its_number_and_a_batch_at_a_time() -> None:
    at_once = threading.Barrier(3)
    seen: list[tuple[int, list[int]]] = []

    @ts.batch(max_batch_size=2, max_wait_time=HOUR, workers=3)
    def numbered(items: list[int], worker_id: int) -> list[int]:
        seen.append((worker_id, list(items)))
        at_once.wait(PATIENCE)
        return [worker_id] * len(items)

    async def main() -> list[int]:
        results = await asyncio.wait_for(asyncio.gather(*map(numbered, range(6))), PATIENCE)
        assert [metrics.items for metrics in numbered.batcher.metrics()] == [2, 2, 2]
        await numbered.batcher.stop()
        return results

    # The next call goes to the worker with the fewest unanswered.
    assert asyncio.run(main()) == [0, 1, 2, 0, 1, 2]
    assert sorted(seen) == [(0, [0, 3]), (1, [1, 4]), (2, [2, 5])]


def test_a_coroutine_function_gets_its_workers_number_too() -> None:
    @ts.batch(workers=2, max_wait_time=0)
    async def numbered(items: list[int], *, worker_id: int) -> list[int]:
        return [worker_id] * len(items)

    async def main() -> set[int]:
        results = await asyncio.gather(*map(numbered, range(10)))
        await numbered.batcher.stop()
        return set(results)

    assert asyncio.run(main()) == {0, 1}


def test_an_exception_among_the_results_fails_its_item_alone() -> None:
    @ts.batch(max_batch_size=4, max_wait_time=HOUR)
    async def fussy(items: list[int]) -> list[int | Exception]:
        return [KeyError(item) if item == 2 else item for item in items]

    async def main() -> list[Any]:
        results = await asyncio.gather(*map(fussy, range(4)), return_exceptions=True)
        await fussy.batcher.stop()
        return results

    results = asyncio.run(main())
    assert [result for result in results if isinstance(result, int)] == [0, 1, 3]
    assert isinstance(results[2], KeyError)


@pytest.mark.parametrize("kind", ["coroutine", "plain"])
def test_an_item_that_makes_its_batch_raise_fails_alone_and_the_others_run_again(kind: str) -> None:
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        batches.append(list(items))
        if 5 in items:
            raise ValueError("five")
        return [item * 2 for item in items]

    async def work_async(items: list[int]) -> list[int]:
        return work(items)

    function: Any = ts.batch(max_batch_size=8, max_wait_time=HOUR)(
        work_async if kind == "coroutine" else work
    )

    async def main() -> list[Any]:
        results = await asyncio.gather(*map(function, range(8)), return_exceptions=True)
        await function.batcher.stop()
        return results

    results = asyncio.run(main())
    assert [result for result in results if isinstance(result, int)] == [0, 2, 4, 6, 8, 12, 14]
    error = results[5]
    assert isinstance(error, ts.ExecutorError)
    assert "raised ValueError: five" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert [5] in batches
    assert [0, 1, 2, 3] in batches


def test_without_isolation_the_whole_batch_fails() -> None:
    @ts.batch(max_batch_size=4, max_wait_time=HOUR, isolation="none")
    async def fussy(items: list[int]) -> list[int]:
        raise ValueError(items)

    async def main() -> list[Any]:
        results = await asyncio.gather(*map(fussy, range(4)), return_exceptions=True)
        await fussy.batcher.stop()
        return results

    results = asyncio.run(main())
    assert all(isinstance(result, ts.ExecutorError) for result in results)
    assert {str(result.__cause__) for result in results} == {"[0, 1, 2, 3]"}
    assert len({id(result) for result in results}) == 4


async def returns_none(items: list[int]) -> Any:
    return None


async def returns_generator(items: list[int]) -> Any:
    return (item for item in items)


async def returns_fewer(items: list[int]) -> Any:
    return items[1:]


def returns_more(items: list[int]) -> Any:
    return [*items, 1]


def returns_text(items: list[int]) -> Any:
    return "x" * len(items)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (returns_none, "None"),
        (returns_generator, "generator"),
        (returns_fewer, "3 results"),
        (returns_more, "5 results"),
        (returns_text, "str"),
    ],
)
def test_what_is_no_list_of_results_fails_everyone_once_and_names_the_function(
    function: Any, given: str
) -> None:
    batched: Any = ts.batch(max_batch_size=4, max_wait_time=HOUR)(function)

    async def main() -> None:
        results = await asyncio.gather(*map(batched, range(4)), return_exceptions=True)
        for error in results:
            assert isinstance(error, RuntimeError)
            assert f"{function.__qualname__} returned {given} for a batch of 4" in str(error)
        (metrics,) = batched.batcher.metrics()
        assert metrics.batches == 1, "running it again would be no help"
        await batched.batcher.stop()

    asyncio.run(main())


def test_a_function_may_change_its_list_even_if_it_then_raises() -> None:
    @ts.batch(max_batch_size=4, max_wait_time=HOUR)
    async def clearing(items: list[int]) -> list[int]:
        results = [item * 2 for item in items]
        items.clear()
        if 6 in results:
            raise ValueError("three")
        return results

    async def main() -> list[Any]:
        results = await asyncio.gather(*map(clearing, range(4)), return_exceptions=True)
        await clearing.batcher.stop()
        return results

    results = asyncio.run(main())
    assert results[:3] == [0, 2, 4]
    assert isinstance(results[3], ts.ExecutorError)


def test_a_cancelled_caller_never_runs_and_leaves_its_place() -> None:
    seen: list[int] = []

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        @ts.batch(max_batch_size=1, max_queue_size=1)
        async def held(items: list[int]) -> list[int]:
            seen.extend(items)
            entered.set()
            await go.wait()
            return items

        running = asyncio.create_task(held(0))
        await entered.wait()
        waiting = asyncio.create_task(held(1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        after = asyncio.create_task(held(2))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.wait_for(asyncio.gather(running, after), PATIENCE) == [0, 2]
        await held.batcher.stop()

    asyncio.run(main())
    assert seen == [0, 2]


def test_a_loop_that_closes_with_calls_under_way_disturbs_nobody() -> None:
    entered = threading.Semaphore(0)

    @ts.batch(max_batch_size=2, max_wait_time=0)
    async def endless(items: list[float]) -> list[float]:
        entered.release()
        await asyncio.sleep(max(items))
        return items

    async def leave() -> None:
        tasks = [asyncio.create_task(endless(HOUR)) for _ in range(5)]
        await asyncio.to_thread(entered.acquire)
        assert not any(task.done() for task in tasks)

    # `run` cancels what it leaves; the other loop is closed as it is.
    asyncio.run(leave())
    loop = asyncio.new_event_loop()
    task = loop.create_task(endless(HOUR))
    loop.run_until_complete(asyncio.sleep(0))
    while not entered.acquire(timeout=0.01):
        loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()

    async def other() -> float:
        result = await asyncio.wait_for(endless(0.0), PATIENCE)
        await endless.batcher.stop()
        return result

    assert asyncio.run(other()) == 0.0
    assert not task.done()


def test_a_call_inside_the_function_is_refused_because_it_would_wait_for_itself() -> None:
    @ts.batch()
    async def recursive(items: list[int]) -> list[int]:
        return [await recursive(items[0])]

    @ts.batch()
    async def stopping(items: list[int]) -> list[int]:
        await stopping.batcher.stop()
        return items

    @ts.batch()
    def recursive_plain(items: list[int]) -> list[int]:
        return [asyncio.run(recursive_plain(items[0]))]

    async def main() -> None:
        for function in (recursive, stopping, recursive_plain):
            with pytest.raises(ts.ExecutorError, match="wait for itself"):
                await asyncio.wait_for(function(1), PATIENCE)
            await function.batcher.stop()

    asyncio.run(main())


def test_items_and_results_are_not_kept() -> None:
    import gc
    import weakref

    class Thing:
        pass

    @ts.batch(max_wait_time=0)
    async def same(items: list[Thing]) -> list[Thing]:
        return items

    async def main() -> None:
        things = [Thing() for _ in range(20)]
        refs = [weakref.ref(thing) for thing in things]
        await asyncio.gather(*map(same, things))
        del things
        await asyncio.sleep(0)
        until(lambda: gc.collect() >= 0 and all(ref() is None for ref in refs))
        await same.batcher.stop()

    asyncio.run(main())
