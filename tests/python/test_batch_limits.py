"""`batch`: what its arguments must be, who is refused, who goes first, and stopping."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import trustformers_serve as ts
from executors import PATIENCE, until

HOUR = 3600.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be >= 1"),
        ({"workers": -2}, "workers must be >= 1"),
        ({"max_batch_size": 0}, "max_batch_size must be >= 1"),
        ({"max_batch_size": 2**40}, "max_batch_size must be"),
        ({"max_queue_size": 0}, "max_queue_size must be >= 1"),
        ({"max_wait_time": -0.1}, "max_wait_time must be >= 0"),
        ({"max_wait_time": float("inf")}, "max_wait_time must be finite, not inf"),
        ({"target_latency": 0}, "target_latency must be > 0"),
        ({"latency_slo": float("nan")}, "latency_slo must be finite"),
        ({"priority_ageing": 0}, "priority_ageing must be > 0"),
        ({"breaker": ts.Breaker(failures=-1)}, "breaker.failures must be >= 0"),
        ({"breaker": ts.Breaker(window=0)}, "breaker.window must be > 0"),
        ({"breaker": ts.Breaker(open=-1)}, "breaker.open must be > 0"),
        ({"isolation": "halves"}, "isolation must be 'bisect' or 'none', not 'halves'"),
        ({"target_latency": 0.1, "latency_slo": 0.1}, "give one of them"),
    ],
)
def test_an_argument_out_of_range_is_named_before_anything_is_decorated(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ts.batch(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_size": 2.5}, "max_batch_size must be an integer, not 2.5"),
        ({"workers": "2"}, "workers must be an integer, not '2'"),
        ({"max_wait_time": "1"}, "max_wait_time must be a number, not '1'"),
        ({"breaker": 3}, "breaker must be a Breaker, not 3"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named_before_anything_is_decorated(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ts.batch(**arguments)


def test_a_window_may_be_as_long_as_one_likes() -> None:
    @ts.batch(max_batch_size=1, max_wait_time=1e300)
    async def patient(items: list[int]) -> list[int]:
        return items

    async def main() -> None:
        assert await patient(1) == 1
        await patient.batcher.stop()

    asyncio.run(main())
    with ts.Batcher(max_batch=1, max_wait_ms=1e300) as batcher:
        assert batcher.run(1, list) == 1


async def streaming(items: list[int]) -> Any:
    for item in items:
        yield item


def generating(items: list[int]) -> Any:
    yield from items


def nothing_taken() -> list[int]:
    return []


def two_lists_more(items: list[int], others: list[int], more: list[int]) -> list[int]:
    return items


def by_name(*, items: list[int]) -> list[int]:
    return items


class Holder:
    @staticmethod
    def static(items: list[int]) -> list[int]:
        return items


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (streaming, "streaming is a generator"),
        (generating, "generating is a generator"),
        (nothing_taken, "nothing_taken must take one list"),
        (two_lists_more, "two_lists_more must take one list"),
        (by_name, "by_name must take one list"),
        (Holder, "Holder"),
        (vars(Holder)["static"], "static is a staticmethod"),
        (3, "3"),
        (None, "None"),
    ],
)
def test_the_wrong_kind_of_function_is_named_at_decoration(function: Any, name: str) -> None:
    with pytest.raises(ts.DecorationError, match=name) as caught:
        ts.batch()(function)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ts.ConfigurationError)


def test_forgotten_parentheses_are_named() -> None:
    with pytest.raises(ts.DecorationError, match=r"@batch\(\)` above .*nothing_taken"):
        ts.batch(nothing_taken)  # pyright: ignore[reportArgumentType]


class Gate:
    """A function of a list that enters when it is called, and waits to be let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def run(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.entered.release()
        await self.go.wait()
        return items


async def begun(call: Any, gate: Gate) -> asyncio.Task[Any]:
    task = asyncio.create_task(call)
    await asyncio.wait_for(gate.entered.acquire(), PATIENCE)
    return task


async def queued(*calls: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_batch_size=1, max_queue_size=2)(gate.run)
        first = await begun(held(0), gate)
        waiting = await queued(held(1), held(2))
        with pytest.raises(ts.OverloadedError, match="2 items are waiting") as caught:
            await held(3)
        assert isinstance(caught.value, ts.QueueFullError)
        gate.go.set()
        assert await asyncio.gather(first, *waiting) == [0, 1, 2]
        assert await held(4) == 4
        await held.batcher.stop()

    asyncio.run(main())


def test_each_worker_has_a_queue_of_its_own_size() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_batch_size=1, max_wait_time=0, max_queue_size=3, workers=2)(gate.run)
        running = [await begun(held(item), gate) for item in range(2)]
        waiting = await queued(*(held(item) for item in range(2, 8)))
        late = await queued(held(8), held(9))
        for task in late:
            with pytest.raises(ts.QueueFullError, match="3 items are waiting"):
                await asyncio.wait_for(task, PATIENCE)
        gate.go.set()
        assert await asyncio.gather(*running, *waiting) == list(range(8))
        await held.batcher.stop()

    asyncio.run(main())


def test_who_would_wait_far_longer_than_the_objective_is_refused_but_not_when_critical() -> None:
    @ts.batch(max_batch_size=1, max_wait_time=0, latency_slo=0.001)
    async def slow(items: list[int]) -> list[int]:
        await asyncio.sleep(0.01)
        return items

    async def main() -> None:
        for item in range(20):
            await slow(item)
        calls = await queued(*map(slow, range(20)))
        with pytest.raises(ts.OverloadedError, match="would wait") as caught:
            await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        assert await slow(1, priority="critical") == 1
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert 0 in results, "those before are answered"
        await slow.batcher.stop()

    asyncio.run(main())


def test_a_target_latency_makes_batches_smaller_until_their_p95_keeps_it() -> None:
    sizes: list[int] = []

    @ts.batch(max_batch_size=32, max_wait_time=0, target_latency=0.02, max_queue_size=10_000)
    async def slow(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(0.002 * len(items))
        return items

    async def main() -> None:
        for _ in range(100):
            # Each round fits one batch of the first size, so that nobody is refused.
            calls = [slow(item, priority="critical") for item in range(32)]
            assert await asyncio.gather(*calls) == list(range(32))
            if max(sizes[-8:]) <= 12:
                break
        await slow.batcher.stop()

    asyncio.run(main())
    assert max(sizes) == 32
    assert max(sizes[-8:]) <= 12


def test_the_more_urgent_leave_first() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_batch_size=1)(gate.run)
        first = await begun(held("first"), gate)
        names: list[Any] = ["low", "normal", "high", "critical"]
        waiting = await queued(*(held(name, priority=name) for name in names), held("unsaid"))
        gate.go.set()
        await asyncio.gather(first, *waiting)
        assert [items[0] for items in gate.batches[1:]] == ["critical", "high", "normal", "unsaid", "low"]
        with pytest.raises(ValueError, match="priority must be 'low', .* not 'urgent'"):
            await held("x", priority="urgent")  # pyright: ignore[reportArgumentType]
        await held.batcher.stop()

    asyncio.run(main())


def test_priorities_may_be_off() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_batch_size=1, enable_priority_scheduling=False)(gate.run)
        first = await begun(held(0), gate)
        waiting = await queued(held(1), held(2, priority="critical"))
        gate.go.set()
        assert await asyncio.gather(first, *waiting) == [0, 1, 2]
        assert gate.batches == [[0], [1], [2]]
        await held.batcher.stop()

    asyncio.run(main())


def test_who_waited_for_longer_than_the_ageing_gets_some_places() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_batch_size=1, max_wait_time=0, priority_ageing=0.001)(gate.run)
        first = await begun(held("first"), gate)
        waiting = await queued(held("low", priority="low"))
        waiting += await queued(*(held(number, priority="high") for number in range(40)))
        await asyncio.sleep(0.01)
        gate.go.set()
        await asyncio.gather(first, *waiting)
        assert gate.batches.index(["low"]) < 20
        await held.batcher.stop()

    asyncio.run(main())


def test_a_function_that_keeps_failing_is_left_alone_for_a_while() -> None:
    broken = True
    calls = 0

    @ts.batch(max_wait_time=0, breaker=ts.Breaker(failures=3, open=0.05))
    async def fragile(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if broken:
            raise ValueError("broken")
        return items

    async def main() -> None:
        nonlocal broken
        for item in range(3):
            with pytest.raises(ts.ExecutorError, match="broken"):
                await fragile(item)
        with pytest.raises(ts.BreakerOpenError) as caught:
            await fragile(4)
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 0.05
        assert calls == 3
        broken = False
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            try:
                assert await fragile(5) == 5
                break
            except ts.BreakerOpenError:
                await asyncio.sleep(0.01)
        assert await fragile(6) == 6
        await fragile.batcher.stop()

    asyncio.run(main())


def test_a_breaker_of_no_failures_never_opens() -> None:
    @ts.batch(max_wait_time=0, breaker=ts.Breaker(failures=0))
    async def broken(items: list[int]) -> list[int]:
        raise ValueError("broken")

    async def main() -> None:
        for item in range(12):
            with pytest.raises(ts.ExecutorError):
                await broken(item)
        await broken.batcher.stop()

    asyncio.run(main())


@pytest.fixture
def threads_before() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.mark.parametrize("kind", ["coroutine", "plain"])
def test_stop_answers_everyone_may_be_repeated_and_the_next_call_starts_again(
    kind: str, threads_before: set[threading.Thread]
) -> None:
    def work(items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    async def work_async(items: list[int]) -> list[int]:
        return work(items)

    function: Any = ts.batch(max_batch_size=8, max_wait_time=HOUR, workers=2)(
        work if kind == "plain" else work_async
    )

    async def main() -> None:
        await function.batcher.stop()
        for _ in range(3):
            calls = await queued(*map(function, range(5)))
            assert not any(call.done() for call in calls)
            stops = [asyncio.create_task(function.batcher.stop()) for _ in range(3)]
            await asyncio.wait_for(asyncio.gather(*stops), PATIENCE)
            assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8]
            await function.batcher.stop()
            assert function.batcher.metrics() == []

    asyncio.run(main())
    until(lambda: set(threading.enumerate()) <= threads_before)


def test_stop_waits_for_what_runs() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_wait_time=0)(gate.run)
        call = await begun(held(1), gate)
        stops = await queued(held.batcher.stop(), held.batcher.stop())
        done, _ = await asyncio.wait(stops, timeout=0.02)
        assert not done
        gate.go.set()
        await asyncio.wait_for(asyncio.gather(*stops), PATIENCE)
        assert call.done()

    asyncio.run(main())


def test_a_call_during_a_stop_starts_it_again() -> None:
    async def main() -> None:
        gate = Gate()
        held = ts.batch(max_wait_time=0)(gate.run)
        call = await begun(held(1), gate)
        stop = asyncio.create_task(held.batcher.stop())
        await asyncio.sleep(0.01)
        later = await begun(held(2), gate)
        gate.go.set()
        assert await asyncio.gather(call, later) == [1, 2]
        await stop
        await held.batcher.stop()

    asyncio.run(main())


def test_nothing_is_started_before_the_first_call(threads_before: set[threading.Thread]) -> None:
    @ts.batch(workers=4)
    async def idle(items: list[int]) -> list[int]:
        return items

    assert set(threading.enumerate()) <= threads_before
    assert idle.batcher.metrics() == []


def test_a_function_that_nobody_holds_leaves_no_thread(threads_before: set[threading.Thread]) -> None:
    import gc

    async def main() -> int:
        @ts.batch(max_wait_time=0)
        async def short_lived(items: list[int]) -> list[int]:
            return items

        return await short_lived(1)

    assert asyncio.run(main()) == 1
    until(lambda: gc.collect() >= 0 and set(threading.enumerate()) <= threads_before)
