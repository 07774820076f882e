"""`Batcher` at a full queue, with callers that leave, flushed, closed, and over event loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, Held, double, own_threads, raising, until


def wait_for_waiting(batcher: ts.Batcher, callers: int) -> None:
    until(lambda: batcher.metrics().waiting == callers)


def test_drop_refuses_at_once_and_counts() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, backpressure="drop", max_queue=2) as batcher:
        first = batcher.submit(0, held)
        held.wait_entered()
        queued = [batcher.submit(item, held) for item in (1, 2)]
        for call in (batcher.run, batcher.submit):
            with pytest.raises(ts.QueueFullError):
                call(3, held)
        with pytest.raises(ts.QueueFullError):
            asyncio.run(batcher.arun(3, held))
        held.let_go()
        assert [future.result(PATIENCE) for future in (first, *queued)] == [0, 2, 4]
        assert batcher.metrics().dropped == 3


def test_passthrough_runs_alone_at_once() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, backpressure="passthrough", max_queue=1) as batcher:
        futures: list[Future[int]] = [batcher.submit(0, held)]
        held.wait_entered()
        futures.append(batcher.submit(1, held))
        assert batcher.run(2, double) == 4
        assert batcher.submit(3, double).result(0) == 6
        assert asyncio.run(batcher.arun(4, double)) == 8
        with pytest.raises(ts.ExecutorError, match="raising raised ValueError"):
            batcher.run(5, raising)
        with pytest.raises(ts.ExecutorError, match="raising raised ValueError"):
            batcher.submit(5, raising).result(0)
        held.let_go()
        assert [future.result(PATIENCE) for future in futures] == [0, 2]
        assert batcher.metrics().items == 7


def test_block_waits_for_a_place_in_order() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, max_queue=1) as batcher:
        futures = [batcher.submit(0, held)]
        held.wait_entered()
        futures.append(batcher.submit(1, held))
        order: list[int] = []
        threads: list[threading.Thread] = []
        for item in (2, 3, 4):
            thread = threading.Thread(target=lambda item: order.append(batcher.run(item, held)), args=(item,))
            thread.start()
            threads.append(thread)
            wait_for_waiting(batcher, len(threads))
        submitter = threading.Thread(target=lambda: futures.append(batcher.submit(5, held)))
        submitter.start()
        wait_for_waiting(batcher, 4)
        assert len(futures) == 2, "a submit waits for its place"
        held.let_go()
        for thread in [*threads, submitter]:
            thread.join(PATIENCE)
        wait_for_waiting(batcher, 0)
        assert [future.result(PATIENCE) for future in futures] == [0, 2, 10]
        assert held.batches == [[item] for item in range(6)]
        assert sorted(order) == [4, 6, 8]


def test_asyncio_callers_wait_for_a_place_without_blocking_the_loop() -> None:
    held = Held()

    async def main() -> list[int]:
        tasks = [asyncio.create_task(batcher.arun(item, held)) for item in range(50)]
        # One batch runs, one waits, and the others wait for places.
        await asyncio.to_thread(wait_for_waiting, batcher, 46)
        held.let_go()
        return await asyncio.gather(*tasks)

    with ts.Batcher(max_batch=2, max_wait_ms=1, max_queue=2) as batcher:
        assert asyncio.run(main()) == [item * 2 for item in range(50)]


def test_a_cancelled_future_never_runs_and_leaves_its_place() -> None:
    held = Held()
    with ts.Batcher(max_batch=1, backpressure="drop", max_queue=1) as batcher:
        running = batcher.submit(0, held)
        held.wait_entered()
        waiting = batcher.submit(1, held)
        assert not running.cancel(), "it runs"
        assert waiting.cancel()
        after = batcher.submit(2, held)
        held.let_go()
        assert (running.result(PATIENCE), after.result(PATIENCE)) == (0, 4)
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result(0)
    assert held.batches == [[0], [2]]


def test_a_cancelled_task_never_runs_and_leaves_its_place() -> None:
    held = Held()

    async def main() -> list[int]:
        running = asyncio.create_task(batcher.arun(0, held))
        await asyncio.to_thread(held.wait_entered)
        waiting = asyncio.create_task(batcher.arun(1, held))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        after = asyncio.create_task(batcher.arun(2, held))
        await asyncio.sleep(0)
        held.let_go()
        return [await running, await after]

    with ts.Batcher(max_batch=1, backpressure="drop", max_queue=1) as batcher:
        assert asyncio.run(main()) == [0, 4]
    assert held.batches == [[0], [2]]


def test_cancelling_some_of_a_batch_leaves_the_others_their_results() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(batcher.arun(item, double)) for item in range(400)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for item, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) if item % 3 == 0 else result == item * 2

    with ts.Batcher() as batcher:
        asyncio.run(main())
        futures = [batcher.submit(item, double) for item in range(400)]
        cancelled = [future.cancel() for future in futures]
        for item, future in enumerate(futures):
            assert cancelled[item] or future.result(PATIENCE) == item * 2


def test_flush_runs_what_is_queued_and_returns_when_it_is_done() -> None:
    with ts.Batcher(max_batch=8, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(item, executor) for item in range(5) for executor in (double, tuple)]
        assert not any(future.done() for future in futures)
        batcher.flush()
        assert all(future.done() for future in futures)
        batcher.flush()
        later = batcher.submit(1, double)
        full = [batcher.submit(item, tuple) for item in range(8)]
        assert [future.result(PATIENCE) for future in full] == list(range(8))
        assert not later.done(), "what comes after a flush waits its window"


def crowd(batcher: ts.Batcher, held: Held) -> tuple[list[Future[int]], threading.Thread, list[int]]:
    """Fills a batcher of batches and places of two: one runs, one waits, and a thread waits for a place.

    With the thread comes the list that gets its result.
    """
    futures: list[Future[int]] = [batcher.submit(item, held) for item in range(2)]
    held.wait_entered()
    futures += [batcher.submit(item, held) for item in range(2, 4)]
    late: list[int] = []
    thread = threading.Thread(target=lambda: late.append(batcher.run(4, held)))
    thread.start()
    wait_for_waiting(batcher, 1)
    return futures, thread, late


def test_flush_waits_for_what_runs_and_for_who_waits_for_a_place() -> None:
    held = Held()
    with ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS, max_queue=2) as batcher:
        futures, thread, late = crowd(batcher, held)
        flushers = [threading.Thread(target=batcher.flush) for _ in range(3)]
        for flusher in flushers:
            flusher.start()
        time.sleep(0.02)
        assert all(flusher.is_alive() for flusher in flushers)
        held.let_go()
        for flusher in flushers:
            flusher.join(PATIENCE)
        thread.join(PATIENCE)
        assert all(future.done() for future in futures)
        assert late == [8]


def test_close_answers_everyone_and_then_refuses() -> None:
    held = Held()
    batcher = ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS, max_queue=2)
    futures, thread, blocked = crowd(batcher, held)
    closers = [threading.Thread(target=batcher.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    held.let_go()
    for closer in [*closers, thread]:
        closer.join(PATIENCE)
        assert not closer.is_alive()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6]
    assert blocked == [8]
    for call in (batcher.run, batcher.submit, lambda item, executor: batcher.map([item], executor)):
        with pytest.raises(ts.BatcherClosedError):
            call(1, double)
    with pytest.raises(ts.BatcherClosedError):
        asyncio.run(batcher.arun(1, double))
    batcher.close()


def test_nothing_is_started_before_the_first_item_and_no_thread_is_left() -> None:
    before = own_threads()
    batcher = ts.Batcher()
    assert own_threads() <= before
    batcher.run(1, double)
    assert len(own_threads() - before) == 1
    batcher.close()
    assert own_threads() <= before
    ts.Batcher().close()


def test_a_batcher_that_nobody_holds_answers_who_waits_and_ends() -> None:
    before = own_threads()
    batcher = ts.Batcher(max_wait_ms=HOUR_MS)
    future = batcher.submit(1, double)
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    assert future.result(PATIENCE) == 2
    until(lambda: own_threads() <= before)


def test_items_results_and_executors_are_not_kept() -> None:
    class Thing:
        pass

    things = [Thing() for _ in range(20)]
    refs = [weakref.ref(thing) for thing in things]

    def make() -> Callable[[list[Thing]], list[Thing]]:
        return lambda items: [*items]

    executor = make()
    refs.append(cast("Any", weakref.ref(executor)))
    with ts.Batcher(max_batch=4, max_wait_ms=1) as batcher:
        batcher.map(things, executor)
        batcher.submit(things[0], executor).result(PATIENCE)
        asyncio.run(batcher.arun(things[0], executor))
        batcher.run(things[0], executor)
        del things, executor
        until(lambda: gc.collect() >= 0 and all(ref() is None for ref in refs))


def test_several_event_loops_at_once_get_their_own_results() -> None:
    async def call(start: int) -> bool:
        results = await asyncio.gather(*(batcher.arun(start + item, double) for item in range(200)))
        return results == [(start + item) * 2 for item in range(200)]

    with ts.Batcher() as batcher, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda start: asyncio.run(call(start)), range(0, 8000, 1000)))


def test_a_loop_that_closes_with_items_under_way_disturbs_nobody() -> None:
    held = Held()
    with ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS) as batcher:
        loop = asyncio.new_event_loop()

        async def leave() -> asyncio.Task[int]:
            task = loop.create_task(batcher.arun(1, held))
            await asyncio.sleep(0)
            return task

        task = loop.run_until_complete(leave())
        future = batcher.submit(2, held)
        held.wait_entered()
        loop.close()
        held.let_go()
        assert future.result(PATIENCE) == 4
        del task
        gc.collect()
        assert asyncio.run(full_batch(batcher)) == [6, 8]


async def full_batch(batcher: ts.Batcher) -> list[int]:
    return list(await asyncio.gather(batcher.arun(3, double), batcher.arun(4, double)))


def test_an_executor_that_calls_its_own_batcher_is_told_so() -> None:
    def nested(items: list[int]) -> list[Any]:
        errors: list[Any] = []
        for call in (batcher.flush, lambda: batcher.run(1, double), lambda: batcher.map([1], double)):
            try:
                call()
            except ts.ExecutorError as error:
                errors.append(str(error))
        batcher.submit(7, double).add_done_callback(lambda future: done.append(future.result()))
        return [errors]

    done: list[int] = []
    with ts.Batcher(max_batch=1, max_queue=1) as batcher:
        errors = batcher.run(0, nested)
    assert len(errors) == 3
    assert all("from inside an executor" in error for error in errors)
    assert done == [14]


def test_an_executor_may_close_its_batcher() -> None:
    def closing(items: list[int]) -> list[int]:
        batcher.close()
        return items

    batcher = ts.Batcher(max_batch=1)
    assert batcher.run(5, closing) == 5
    with pytest.raises(ts.BatcherClosedError):
        batcher.run(5, closing)


def test_no_python_runs_below_the_wait_of_a_call() -> None:
    # The interpreter that ends meanwhile would end a thread there, and with it the process.
    held = Held()
    ran: list[str] = []

    def call() -> None:
        sys.setprofile(lambda frame, event, _: ran.append(frame.f_code.co_name) if event == "call" else None)
        batcher.run(1, held)
        sys.setprofile(None)

    with ts.Batcher(max_batch=1) as batcher:
        batcher.run(0, double)  # starts its thread
        thread = threading.Thread(target=call)
        thread.start()
        held.wait_entered()
        held.let_go()
        thread.join(PATIENCE)
    assert ran == ["run"]
