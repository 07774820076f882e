"""What waits for itself: calls inside a function that runs a batch, and flushes that race with calls."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, Held, double, until


def bring(call: Callable[[int, Any], Any]) -> None:
    with contextlib.suppress(ts.BatcherClosedError):
        call(1, double)


@pytest.mark.parametrize("call", ["run", "submit"])
def test_a_flush_waits_for_no_window_of_an_item_that_is_the_first(call: str) -> None:
    switch = sys.getswitchinterval()
    # Other threads run whenever they can.
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            batcher = ts.Batcher(max_wait_ms=HOUR_MS)
            caller = threading.Thread(target=bring, args=(getattr(batcher, call),))
            caller.start()
            flusher = threading.Thread(target=batcher.flush)
            flusher.start()
            flusher.join(PATIENCE)
            assert not flusher.is_alive()
            batcher.close()
            caller.join(PATIENCE)
            assert not caller.is_alive()
    finally:
        sys.setswitchinterval(switch)


def test_an_executor_that_runs_alone_may_flush() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, backpressure="passthrough", max_queue=1) as batcher:
        first = batcher.submit(0, held)
        held.wait_entered()
        second = batcher.submit(1, held)

        def flushing(items: list[int]) -> list[int]:
            held.let_go()
            batcher.flush()
            return items

        assert batcher.run(2, flushing) == 2
        assert first.result(0) == 0
        assert second.result(0) == 2


def test_latencies_count_from_the_call_also_where_it_waited_for_a_place() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, max_queue=1) as batcher:
        futures: list[Any] = []
        feeders = [threading.Thread(target=lambda: futures.append(batcher.submit(1, held))) for _ in range(6)]
        for feeder in feeders:
            feeder.start()
        held.wait_entered()
        until(lambda: batcher.metrics().waiting == 4)
        # All of them are here for at least so long.
        time.sleep(0.05)
        held.let_go()
        for feeder in feeders:
            feeder.join(PATIENCE)
        for future in futures:
            future.result(PATIENCE)
        assert batcher.metrics().p50_ms >= 50


def test_a_plain_function_that_stops_or_calls_itself_is_told_so() -> None:
    found: list[str] = []

    async def both() -> None:
        for wrong in (inside.batcher.stop(), inside(2)):
            with pytest.raises(ts.ExecutorError, match="inside .*inside") as caught:
                await wrong
            found.append(str(caught.value))

    @ts.batch(max_batch_size=1)
    def inside(items: list[int]) -> list[int]:
        asyncio.run(both())
        return items

    async def main() -> None:
        assert await asyncio.wait_for(inside(1), PATIENCE) == 1
        await inside.batcher.stop()

    asyncio.run(main())
    assert len(found) == 2


def test_functions_that_call_each_other_in_a_circle_are_told_so() -> None:
    @ts.batch(max_batch_size=1)
    async def first(items: list[int]) -> list[int]:
        return [await second(item) for item in items]

    @ts.batch(max_batch_size=1)
    async def second(items: list[int]) -> list[int]:
        return [await third(item) if item else item for item in items]

    @ts.batch(max_batch_size=1)
    async def third(items: list[int]) -> list[int]:
        return [await first(item - 1) for item in items]

    async def main() -> None:
        with pytest.raises(ts.ExecutorError, match="a call inside .*first, which would wait for itself"):
            await asyncio.wait_for(first(2), PATIENCE)
        # Where nobody waits for it, a function may call what calls it.
        assert await asyncio.wait_for(third(1), PATIENCE) == 0
        for function in (first, second, third):
            await function.batcher.stop()

    asyncio.run(main())


def test_a_function_with_a_worker_that_waits_for_nobody_here_may_be_called() -> None:
    entered, waits = asyncio.Event(), asyncio.Event()

    @ts.batch(max_batch_size=1, workers=2)
    async def asking(items: list[int]) -> list[int]:
        if items == [1]:
            waits.set()
            return [await asked(10)]
        return [item * 2 for item in items]

    @ts.batch(max_batch_size=1)
    async def asked(items: list[int]) -> list[int]:
        if items == [0]:
            entered.set()
            await waits.wait()
            return [await asking(5)]
        return items

    async def main() -> None:
        unrelated = asyncio.create_task(asked(0))
        await entered.wait()
        asks = asyncio.create_task(asking(1))
        assert await asyncio.wait_for(unrelated, PATIENCE) == 10
        assert await asyncio.wait_for(asks, PATIENCE) == 10
        for function in (asking, asked):
            await function.batcher.stop()

    asyncio.run(main())


def test_a_function_that_calls_itself_may_do_so_as_often_as_it_has_workers() -> None:
    @ts.batch(max_batch_size=1, workers=3)
    async def deeper(items: list[int]) -> list[int]:
        return [await deeper(item - 1) + 1 if item else 0 for item in items]

    async def main() -> None:
        assert await asyncio.wait_for(deeper(2), PATIENCE) == 2
        with pytest.raises(ts.ExecutorError, match="a call inside .*deeper, which would wait for itself"):
            await asyncio.wait_for(deeper(3), PATIENCE)
        await deeper.batcher.stop()

    asyncio.run(main())


def test_a_circle_is_told_also_where_the_called_function_is_faster_than_the_call() -> None:
    refused = threading.Event()

    class Slow:
        """Returns from `send` only when what was sent has run."""

        def __init__(self, core: Any) -> None:
            self._core = core

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

        def send(self, *arguments: Any) -> Any:
            pending = self._core.send(*arguments)
            refused.wait(PATIENCE)
            return pending

    @ts.batch(max_batch_size=1, max_wait_time=0)
    async def calling(items: list[int]) -> list[int]:
        return [await called(item) for item in items]

    @ts.batch(max_batch_size=1, max_wait_time=0)
    def called(items: list[int]) -> list[int]:
        if items == [1]:
            with pytest.raises(ts.ExecutorError, match="which would wait for itself"):
                asyncio.run(asyncio.wait_for(calling(2), 1))
            refused.set()
        return items

    async def main() -> None:
        assert await called(0) == 0
        (worker,) = called.batcher._workers  # pyright: ignore[reportPrivateUsage]
        worker._core = Slow(worker._core)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        assert await asyncio.wait_for(calling(1), PATIENCE) == 1
        for function in (calling, called):
            await function.batcher.stop()

    asyncio.run(main())


@pytest.mark.parametrize("call", ["run", "map"])
def test_executors_that_call_each_other_in_a_circle_are_told_so(call: str) -> None:
    with (
        ts.Batcher(max_batch=1) as first,
        ts.Batcher(max_batch=1) as second,
        ts.Batcher(max_batch=1) as third,
    ):

        def ask(batcher: ts.Batcher, item: int, executor: Any) -> int:
            return batcher.run(item, executor) if call == "run" else batcher.map([item], executor)[0]

        def in_first(items: list[int]) -> list[int]:
            return [ask(second, item, in_second) for item in items]

        def in_second(items: list[int]) -> list[int]:
            return [ask(third, item, in_third) if item else item for item in items]

        def in_third(items: list[int]) -> list[int]:
            return [ask(first, item - 1, in_first) for item in items]

        with pytest.raises(ts.ExecutorError, match="inside an executor that this batcher waits for"):
            first.submit(2, in_first).result(PATIENCE)
        # Where nobody waits for it, an executor may call what calls it.
        assert third.submit(1, in_third).result(PATIENCE) == 0


def test_a_circle_is_told_also_while_the_items_of_a_map_are_made_by_another_batcher() -> None:
    first, second, third = (ts.Batcher(max_batch=1) for _ in range(3))
    nested, let_go = threading.Event(), threading.Event()

    def in_third(items: list[int]) -> list[int]:
        nested.set()
        let_go.wait(PATIENCE)
        return items

    def made() -> Iterator[int]:
        yield third.run(1, in_third)

    def in_first(items: list[int]) -> list[int]:
        return second.map(made(), double)

    def in_second(items: list[int]) -> list[int]:
        assert nested.wait(PATIENCE)
        with pytest.raises(ts.ExecutorError, match="inside an executor that this batcher waits for"):
            first.run(2, double)
        let_go.set()
        return items

    asked = second.submit(3, in_second)
    assert first.submit(0, in_first).result(PATIENCE) == 2
    assert asked.result(PATIENCE) == 3
    # Not before: a circle would keep them from closing.
    for batcher in (first, second, third):
        batcher.close()


def test_who_runs_an_item_alone_waits_for_no_batcher() -> None:
    first = ts.Batcher(max_batch=1)
    second = ts.Batcher(max_batch=1, max_queue=1, backpressure="passthrough")
    asks, runs_alone, asked = threading.Event(), threading.Event(), threading.Event()

    def alone(items: list[int]) -> list[int]:
        runs_alone.set()
        assert asked.wait(PATIENCE)
        return items

    def in_first(items: list[int]) -> list[int]:
        return [second.run(item, alone) for item in items]

    async def ask() -> int:
        call = asyncio.ensure_future(first.arun(1, double))
        await asyncio.sleep(0)
        asked.set()
        return await call

    def in_second(items: list[int]) -> list[int]:
        asks.set()
        assert runs_alone.wait(PATIENCE)
        return [asyncio.run(ask())]

    asking = second.submit(0, in_second)
    assert asks.wait(PATIENCE)
    queued = second.submit(4, double)
    assert first.submit(5, in_first).result(PATIENCE) == 5
    assert asking.result(PATIENCE) == 2
    assert queued.result(PATIENCE) == 8
    first.close()
    second.close()


def test_a_task_of_a_function_may_call_it_once_its_batch_is_over() -> None:
    tasks: list[asyncio.Task[int]] = []

    async def again() -> int:
        await over.wait()
        return await beginning(2)

    @ts.batch(max_batch_size=1)
    async def beginning(items: list[int]) -> list[int]:
        if items == [1]:
            tasks.append(asyncio.get_running_loop().create_task(again()))
        return items

    over = asyncio.Event()

    async def main() -> None:
        assert await beginning(1) == 1
        over.set()
        assert await asyncio.wait_for(tasks[0], PATIENCE) == 2
        await beginning.batcher.stop()

    asyncio.run(main())
