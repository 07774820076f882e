"""`DynamicBatcher`: what each caller gets, when batches end, who waits, and what is counted."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
import weakref
from typing import Any, cast

import pytest
import trustformers_serve as ts
from records import HOUR, HeldBatches, soon, turns, twice


def test_one_record_alone_is_answered_by_the_timeout() -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(twice, batch_timeout_s=0.02, min_batch_size=100) as batcher:
            began = time.monotonic()
            assert await soon(await batcher.submit(21)) == 42
            assert time.monotonic() - began >= 0.02

    asyncio.run(main())


def test_a_thousand_tasks_get_exactly_their_own_results() -> None:
    async def call(batcher: ts.DynamicBatcher[int, int], index: int) -> bool:
        results = [await (await batcher.submit(index * 10 + turn)) for turn in range(5)]
        return results == [(index * 10 + turn) * 2 for turn in range(5)]

    async def main() -> None:
        async with ts.DynamicBatcher(twice, batch_timeout_s=0.001) as batcher:
            assert all(await soon(asyncio.gather(*(call(batcher, index) for index in range(1000)))))
            stats = batcher.stats
        assert (stats.total_submitted, stats.total_completed) == (5000, 5000)

    asyncio.run(main())


def test_a_plain_function_runs_off_the_loop_and_leaves_no_thread() -> None:
    threads: set[threading.Thread] = set()

    def plain(records: list[int]) -> list[int]:
        threads.add(threading.current_thread())
        return [record * 2 for record in records]

    async def main() -> None:
        async with ts.DynamicBatcher(plain, max_batch_size=8) as batcher:
            assert threading.active_count() == before, "nothing is started before the first batch"
            futures = await batcher.submit_batch(range(100))
            assert await soon(asyncio.gather(*futures)) == [record * 2 for record in range(100)]
        assert len(threads) == 1
        assert threading.current_thread() not in threads
        assert threading.active_count() == before

    before = threading.active_count()
    asyncio.run(main())


def test_a_plain_function_may_return_an_awaitable() -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(lambda records: twice(cast("list[int]", records))) as batcher:
            assert await soon(await batcher.submit(4)) == 8

    asyncio.run(main())


def test_batches_end_at_their_size_and_at_their_cost_without_waiting() -> None:
    async def main() -> None:
        held = HeldBatches()
        limits: dict[str, Any] = {"batch_timeout_s": HOUR, "max_batch_size": 3, "target_batch_cost": 100}
        async with ts.DynamicBatcher(held, **limits) as batcher:
            held.let_go()
            costs = [1, 1, 1, 50, 50, 101, 60, 60]
            futures = await batcher.submit_batch(range(8), estimated_cost=costs)
            await soon(asyncio.gather(*futures[:7]))
            assert held.batches == [[0, 1, 2], [3, 4], [5], [6]]
            assert not futures[7].done(), "it waits for company"
        assert futures[7].result() == 14
        assert held.batches[-1] == [7]
        stats = batcher.stats
        assert (stats.total_batches, stats.total_batch_cost) == (5, sum(costs))
        assert (stats.avg_batch_size, stats.avg_batch_cost) == (8 / 5, sum(costs) / 5)

    asyncio.run(main())


def test_a_record_above_the_target_runs_alone_whatever_its_cost() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, target_batch_cost=10, batch_timeout_s=0.001) as batcher:
            held.let_go()
            futures = [await batcher.submit(cost, estimated_cost=cost) for cost in (0, 11, 0, 2**40, 1e300)]
            await soon(asyncio.gather(*futures))
        assert held.batches == [[0], [11], [0], [2**40], [1e300]]

    asyncio.run(main())


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_submit_waits_once_the_batches_and_the_queue_are_full(prefetch: int) -> None:
    async def main() -> None:
        held = HeldBatches()
        limits: dict[str, Any] = {"max_batch_size": 4, "max_queue_size": 3, "prefetch_batches": prefetch}
        async with ts.DynamicBatcher(held, batch_timeout_s=HOUR, **limits) as batcher:
            # Running, ahead, being assembled, and queued.
            most = 4 + 4 * prefetch + 4 + 3
            futures = [await soon(batcher.submit(record)) for record in range(4)]
            await held.wait_entered()
            futures += [await soon(batcher.submit(record)) for record in range(4, most)]
            late = [asyncio.create_task(batcher.submit(record)) for record in range(most, most + 6)]
            await turns()
            assert not any(task.done() for task in late)
            assert batcher.stats.total_submitted == most
            held.let_go(1)
            await held.wait_entered()
            await turns()
            assert [task.done() for task in late] == [True] * 4 + [False] * 2, "in order of arrival"
            held.let_go()
            await soon(asyncio.wait(late))
            futures += [task.result() for task in late]
        assert [future.result() for future in futures] == [record * 2 for record in range(most + 6)]
        assert [record for batch in held.batches for record in batch] == list(range(most + 6))

    asyncio.run(main())


def test_who_comes_later_does_not_pass_those_who_wait_for_a_place() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, max_batch_size=1, max_queue_size=1, prefetch_batches=0) as batcher:
            await soon(batcher.submit_batch(range(3)))
            await held.wait_entered()
            tasks = [asyncio.create_task(batcher.submit(record)) for record in range(3, 20)]
            await turns()
            held.let_go()
            await soon(asyncio.wait(tasks))
        assert [batch[0] for batch in held.batches] == list(range(20))

    asyncio.run(main())


def test_submit_batch_waits_for_places_and_checks_its_costs() -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(twice, max_batch_size=2, max_queue_size=1) as batcher:
            futures = await soon(batcher.submit_batch(iter(range(500))))
            assert await soon(asyncio.gather(*futures)) == [record * 2 for record in range(500)]
            assert await batcher.submit_batch([]) == []
            with pytest.raises(ValueError, match="3 records and 2 estimated costs"):
                await batcher.submit_batch([1, 2, 3], estimated_cost=[1, 2])

    asyncio.run(main())


@pytest.mark.parametrize("cost", [-1, float("nan"), "many"])
def test_submit_batch_brings_nothing_where_a_cost_is_none(cost: Any) -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(twice) as batcher:
            with pytest.raises(ValueError, match="an estimated cost must be a number from 0, not"):
                await batcher.submit_batch(range(3), estimated_cost=[1, 2, cost])
        assert batcher.stats.total_submitted == 0

    asyncio.run(main())


def test_submit_batch_takes_back_what_it_brought_where_the_rest_cannot_be_brought() -> None:
    class Interrupting:
        def estimate_cost(self) -> int:
            raise KeyboardInterrupt

    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher[Any, Any](held, batch_timeout_s=HOUR) as batcher:
            with pytest.raises(KeyboardInterrupt):
                await batcher.submit_batch([1, 2, Interrupting(), 3])
            await batcher.submit(4)
            held.let_go()
        assert held.batches == [[4]]

    asyncio.run(main())


def test_a_cancelled_submit_batch_takes_back_what_it_brought() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, max_batch_size=1, max_queue_size=1, prefetch_batches=0) as batcher:
            first = await batcher.submit(0)
            await held.wait_entered()
            task = asyncio.create_task(batcher.submit_batch([1, 2, 3, 4]))
            await turns()
            task.cancel()
            held.let_go()
            assert await soon(first) == 0
            await soon(asyncio.wait([task]))
        assert task.cancelled()
        assert held.batches == [[0]]

    asyncio.run(main())


def test_batches_are_assembled_ahead_while_one_runs() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, max_batch_size=4, batch_timeout_s=0.01) as batcher:
            first = await batcher.submit_batch(range(4))
            await held.wait_entered()
            await batcher.submit(4)
            # Longer than its window: it is a batch of its own by the time another comes.
            await asyncio.sleep(0.05)
            last = await batcher.submit(5)
            held.let_go()
            await soon(asyncio.gather(*first, last))
        assert held.batches == [[0, 1, 2, 3], [4], [5]]

    asyncio.run(main())


def test_a_batch_below_the_least_size_grows_while_another_runs() -> None:
    async def main() -> None:
        held = HeldBatches()
        limits: dict[str, Any] = {"max_batch_size": 4, "min_batch_size": 2, "batch_timeout_s": 0.01}
        async with ts.DynamicBatcher(held, **limits) as batcher:
            first = await batcher.submit_batch(range(4))
            await held.wait_entered()
            await batcher.submit(4)
            await asyncio.sleep(0.05)
            last = await batcher.submit(5)
            held.let_go()
            await soon(asyncio.gather(*first, last))
        assert held.batches == [[0, 1, 2, 3], [4, 5]]

    asyncio.run(main())


def test_a_cancelled_future_never_runs() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, max_batch_size=2) as batcher:
            running = await batcher.submit_batch(range(2))
            await held.wait_entered()
            futures = await batcher.submit_batch(range(2, 7))
            for record in (2, 4, 5):
                futures[record - 2].cancel()
            running[0].cancel()
            held.let_go()
        assert held.batches == [[0, 1], [3], [6]]
        assert running[1].result() == 2
        assert [futures[1].result(), futures[4].result()] == [6, 12]
        assert batcher.stats.total_completed == 4
        assert batcher.stats.total_batches == 3

    asyncio.run(main())


def test_a_cancelled_task_leaves_the_others_their_results() -> None:
    async def call(batcher: ts.DynamicBatcher[int, int], record: int) -> int:
        return await (await batcher.submit(record))

    async def main() -> None:
        async with ts.DynamicBatcher(twice, max_batch_size=7) as batcher:
            tasks = [asyncio.create_task(call(batcher, record)) for record in range(400)]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            results = await soon(asyncio.gather(*tasks, return_exceptions=True))
        for record, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) if record % 3 == 0 else result == record * 2

    asyncio.run(main())


def test_a_caller_that_leaves_while_it_waits_for_a_place_brings_nothing() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, max_batch_size=1, max_queue_size=1, prefetch_batches=0) as batcher:
            await soon(batcher.submit_batch(range(3)))
            await held.wait_entered()
            tasks = [asyncio.create_task(batcher.submit(record)) for record in (3, 4, 5)]
            await turns()
            tasks[1].cancel()
            held.let_go()
            await soon(asyncio.wait(tasks))
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert held.batches == [[0], [1], [2], [3], [5]]

    asyncio.run(main())


def test_a_caller_that_leaves_in_the_turn_in_which_it_gets_its_place_brings_nothing() -> None:
    loop = asyncio.new_event_loop()
    batches: list[list[int]] = []
    tasks: list[asyncio.Task[Any]] = []

    async def leaving(records: list[int]) -> list[int]:
        batches.append(records)
        # Two turns on: after the end of this batch, and before who got a place knows it.
        loop.call_soon(lambda: loop.call_soon(lambda: [task.cancel() for task in tasks]))
        return records

    async def main() -> None:
        limits: dict[str, Any] = {"max_batch_size": 1, "max_queue_size": 1, "prefetch_batches": 0}
        async with ts.DynamicBatcher(leaving, **limits) as batcher:
            futures = await batcher.submit_batch(range(3))
            tasks.append(asyncio.create_task(batcher.submit(3)))
            await soon(asyncio.gather(*futures))
        assert tasks[0].cancelled()
        assert batcher.stats.total_submitted == 4, "it had its place"
        assert batches == [[0], [1], [2]]

    loop.run_until_complete(main())
    loop.close()


def test_stop_answers_everyone_and_then_refuses() -> None:
    async def main() -> None:
        held = HeldBatches()
        batcher = ts.DynamicBatcher(held, max_batch_size=2, max_queue_size=1, batch_timeout_s=HOUR)
        await batcher.start()
        futures = [await batcher.submit(record) for record in range(9)]
        late = [asyncio.create_task(batcher.submit(record)) for record in (9, 10)]
        await turns()
        stops = [asyncio.create_task(batcher.stop()) for _ in range(3)]
        await turns()
        assert not batcher.is_running
        with pytest.raises(RuntimeError, match="not running"):
            await batcher.submit(11)
        with pytest.raises(RuntimeError, match="already running"):
            await batcher.start()
        stops[0].cancel()
        held.let_go()
        await soon(asyncio.wait(stops))
        assert [stop.cancelled() for stop in stops] == [True, False, False]
        futures += [await task for task in late]
        assert [future.result() for future in futures] == [record * 2 for record in range(11)]
        await batcher.stop()

    asyncio.run(main())


def test_it_runs_only_between_start_and_stop_and_may_be_started_again() -> None:
    async def main() -> None:
        assert not batcher.is_running
        with pytest.raises(ts.BatcherClosedError, match="not running"):
            await batcher.submit(1)
        with pytest.raises(RuntimeError, match="not running"):
            await batcher.submit_batch([1])
        await batcher.stop()
        await batcher.start()
        assert batcher.is_running
        with pytest.raises(RuntimeError, match="already running"):
            await batcher.start()
        with pytest.raises(RuntimeError, match="already running"):
            await batcher.__aenter__()
        future = await batcher.submit(1)
        await batcher.stop()
        assert future.result() == 2
        assert not batcher.is_running

    batcher = ts.DynamicBatcher(twice, batch_timeout_s=HOUR)
    for turn in (1, 2):
        asyncio.run(main())
        assert batcher.stats.total_completed == turn


def test_async_with_stops_it_after_an_error_too() -> None:
    async def main() -> None:
        futures: list[asyncio.Future[int]] = []

        async def failing() -> None:
            async with batcher:
                futures.append(await batcher.submit(1))
                raise KeyError

        batcher = ts.DynamicBatcher(twice, batch_timeout_s=HOUR)
        with pytest.raises(KeyError):
            await failing()
        assert futures[0].result() == 2
        assert not batcher.is_running

    asyncio.run(main())


def test_stats_are_zeros_by_default_and_utilization_is_the_busy_share() -> None:
    assert ts.BatchStats() == ts.BatchStats(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    assert ts.BatchStats().utilization == 0.0
    assert ts.BatchStats(busy_time_s=3.0, idle_time_s=1.0).utilization == 0.75
    assert ts.DynamicBatcher(twice).stats == ts.BatchStats()


def test_time_counts_as_busy_or_idle_from_start_to_stop() -> None:
    async def main() -> None:
        held = HeldBatches()
        async with ts.DynamicBatcher(held, batch_timeout_s=0.02) as batcher:
            future = await batcher.submit(1)
            await held.wait_entered()
            assert batcher.stats.busy_time_s < batcher.stats.idle_time_s
            await asyncio.sleep(0.05)
            assert batcher.stats.busy_time_s >= 0.05, "also of the batch that runs"
            held.let_go()
            await soon(future)
        stats = batcher.stats
        assert stats.busy_time_s >= 0.05
        assert stats.idle_time_s >= 0.02
        assert 0 < stats.utilization < 1
        await asyncio.sleep(0.02)
        assert batcher.stats == stats, "nothing is counted while it is stopped"

    asyncio.run(main())


def test_records_results_and_functions_are_not_kept() -> None:
    class Thing:
        pass

    async def main() -> list[Any]:
        things = [Thing() for _ in range(20)]

        async def same(records: list[Thing]) -> list[Thing]:
            return records

        async with ts.DynamicBatcher(same, max_batch_size=4) as batcher:
            futures = await batcher.submit_batch(things)
            assert await soon(asyncio.gather(*futures)) == things
            refs = [weakref.ref(thing) for thing in things]
            del things, futures
            await turns()
            gc.collect()
            assert [ref() for ref in refs] == [None] * 20
        started = ts.DynamicBatcher(same)
        await started.start()
        return [weakref.ref(same), weakref.ref(batcher), weakref.ref(started)]

    refs = asyncio.run(main())
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_it_says_what_it_is_and_refuses_to_be_copied() -> None:
    batcher = ts.DynamicBatcher(twice)
    assert repr(batcher) == "<DynamicBatcher of twice, not running>"
    with pytest.raises(TypeError, match="DynamicBatcher cannot be copied"):
        pickle.dumps(batcher)
