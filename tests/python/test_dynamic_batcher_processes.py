"""`DynamicBatcher` with several event loops, loops that end early, forks, spawned processes and exits."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustformers_serve as ts
from executors import PATIENCE, until
from records import HOUR, HeldBatches, soon, turns, twice


def test_it_says_that_it_belongs_to_another_loop() -> None:
    async def elsewhere() -> None:
        for call in (batcher.submit(1), batcher.submit_batch([1]), batcher.stop()):
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await call
        with pytest.raises(RuntimeError, match="already running"):
            await batcher.start()

    async def main() -> None:
        async with batcher:
            future = await batcher.submit(1)
            await asyncio.to_thread(asyncio.run, elsewhere())
        assert future.result() == 2

    batcher = ts.DynamicBatcher(twice, batch_timeout_s=HOUR)
    asyncio.run(main())


def test_without_a_loop_submit_says_so() -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(twice) as batcher:

            def without() -> None:
                with pytest.raises(RuntimeError, match="belongs to another event loop"):
                    batcher.submit(1).send(None)

            await asyncio.to_thread(without)

    asyncio.run(main())


def test_each_loop_may_have_its_own() -> None:
    async def main(start: int) -> bool:
        async with ts.DynamicBatcher(twice) as batcher:
            futures = await batcher.submit_batch(range(start, start + 300))
            return await soon(asyncio.gather(*futures)) == [
                record * 2 for record in range(start, start + 300)
            ]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda start: asyncio.run(main(start)), range(0, 8000, 1000)))


def test_a_loop_that_is_closed_with_records_under_way_leaves_nothing_to_complain_of(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        await batcher.start()
        await batcher.submit(1)

    batcher = ts.DynamicBatcher(twice, batch_timeout_s=HOUR)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    assert not batcher.is_running

    async def again() -> int:
        for call in (batcher.submit(1), batcher.submit_batch([1])):
            with pytest.raises(ts.BatcherClosedError, match="not running"):
                await call
        async with batcher:
            future = await batcher.submit(4)
        return future.result()

    assert asyncio.run(again()) == 8
    assert batcher.stats.total_submitted == 2
    assert (list(recwarn), caplog.records) == ([], [])


def test_a_batcher_whose_loop_was_closed_can_be_stopped_from_anywhere() -> None:
    futures: list[asyncio.Future[int]] = []

    async def leave() -> None:
        await batcher.start()
        futures.append(await batcher.submit(1))

    batcher = ts.DynamicBatcher(twice, batch_timeout_s=HOUR)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    for _ in range(2):
        asyncio.run(batcher.stop())
        assert not batcher.is_running
    assert isinstance(futures[0].exception(), ts.BatcherClosedError), "nobody is left waiting"
    with pytest.raises(RuntimeError, match="not running"):
        asyncio.run(batcher.submit(2))
    assert in_a_loop(batcher, 3) == 6


def in_a_loop(batcher: ts.DynamicBatcher[int, int], record: int) -> int:
    async def main() -> int:
        async with batcher:
            future = await batcher.submit(record)
        return future.result()

    return asyncio.run(main())


@pytest.mark.parametrize("then", ["start", "stop"])
def test_a_function_that_outlives_its_loop_does_not_hold_up_who_starts_or_stops_the_batcher(
    then: str,
) -> None:
    go = threading.Event()
    entered = threading.Event()
    ended: list[bool] = []

    def held(records: list[int]) -> list[int]:
        entered.set()
        ended.append(go.wait(PATIENCE))
        return records

    async def leave() -> None:
        await batcher.start()
        await batcher.submit(1)
        await asyncio.to_thread(entered.wait, PATIENCE)

    async def go_on() -> None:
        if then == "start":
            await batcher.start()
        await batcher.stop()

    before = threading.active_count()
    batcher = ts.DynamicBatcher(held, batch_timeout_s=0)
    asyncio.run(leave())
    asyncio.run(go_on())
    assert ended == []
    go.set()
    until(lambda: threading.active_count() == before)


def test_a_loop_that_ends_while_a_batch_runs_ends_the_batcher(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[BaseException] = []

    async def wait_for(future: asyncio.Future[int]) -> None:
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            # Stays, to see what its future ends with.
            (error,) = await asyncio.gather(future, return_exceptions=True)
            assert isinstance(error, BaseException)
            ended.append(error)

    async def main() -> None:
        held = HeldBatches()
        await batcher.start()
        batcher_function.append(held)
        futures = [await batcher.submit(record) for record in range(5)]
        tasks.extend(asyncio.create_task(wait_for(future)) for future in futures)
        tasks.append(asyncio.create_task(batcher.stop()))
        tasks.extend(asyncio.create_task(batcher.submit(record)) for record in range(6, 8))
        await held.wait_entered()

    async def function(records: list[int]) -> list[int]:
        return await batcher_function[0](records)

    tasks: list[asyncio.Task[object]] = []
    batcher_function: list[HeldBatches] = []
    batcher = ts.DynamicBatcher(function, max_batch_size=2, max_queue_size=1, prefetch_batches=0)
    asyncio.run(main())
    assert [type(error) for error in ended] == [ts.BatcherClosedError] * 5
    assert not batcher.is_running
    assert caplog.records == []


def test_a_plain_function_that_outlives_its_loop_leaves_no_thread() -> None:
    go = threading.Event()
    entered = threading.Event()

    def held(records: list[int]) -> list[int]:
        entered.set()
        assert go.wait(20)
        return records

    async def main() -> None:
        batcher = ts.DynamicBatcher(held, batch_timeout_s=0)
        await batcher.start()
        await batcher.submit(1)
        await asyncio.to_thread(entered.wait, 20)

    before = threading.active_count()
    asyncio.run(main())
    go.set()
    until(lambda: threading.active_count() == before)


HEAD = """
import asyncio, os, sys, threading, time
import trustformers_serve as ts
async def twice(records): return [record * 2 for record in records]
def endless(records):
    while True: time.sleep(3600)
async def endless_task(records): await asyncio.sleep(3600)
"""


def run(code: str) -> tuple[str, float]:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout, time.monotonic() - began


@pytest.mark.parametrize("function", ["twice", "endless", "endless_task"])
def test_the_interpreter_ends_with_records_queued(function: str) -> None:
    code = f"""
async def main():
    batcher = ts.DynamicBatcher({function}, max_batch_size=2, batch_timeout_s=3600, max_queue_size=1)
    await batcher.start()
    for record in range(9): await asyncio.wait_for(batcher.submit(record), 10)
    asyncio.create_task(batcher.submit(8))
    asyncio.create_task(batcher.submit(9))
    await asyncio.sleep(0.05)
    print("left")
asyncio.run(main())
"""
    assert run(code)[0] == "left\n"


def test_the_interpreter_ends_with_a_loop_that_nobody_closed() -> None:
    code = """
async def main():
    batcher = ts.DynamicBatcher(endless, batch_timeout_s=0)
    await batcher.start()
    future = await batcher.submit(1)
    await asyncio.sleep(0.05)
    return batcher, future
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(main())
print("left")
os.close(2)  # what asyncio says of the loop and of the task that were left
"""
    assert run(code)[0] == "left\n"


batcher_of_the_module = ts.DynamicBatcher(twice, batch_timeout_s=0.001)


async def one(record: int) -> int:
    async with batcher_of_the_module as batcher:
        return await (await batcher.submit(record))


def in_a_process(record: int) -> int:
    return asyncio.run(one(record))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_process_made_after_it_was_in_use(method: str) -> None:
    assert in_a_process(1) == 2
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(in_a_process, range(20)).get(60) == [record * 2 for record in range(20)]


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_it_not_started_and_the_parent_keeps_its_records() -> None:
    async def main() -> None:
        async with ts.DynamicBatcher(twice, batch_timeout_s=HOUR) as batcher:
            future = await batcher.submit(1)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    # The parent's loop is not the child's.
                    code = 2 if batcher.is_running else 3
                    with pytest.raises(RuntimeError, match="not running"):
                        batcher.submit(1).send(None)
                    code = 0 if batcher.stats == ts.BatchStats() else 4
                finally:
                    os._exit(code)
            await turns()
            assert await asyncio.to_thread(status, child) == 0
            assert batcher.is_running
        assert future.result() == 2

    asyncio.run(main())
