"""Batchers under many asyncio callers, beside bare futures and batchers of plain asyncio.

Each makes batches of up to `MAX_BATCH` and waits up to `WINDOW` for company, unless its name says otherwise,
and lets all callers in at once. Flyte's batcher is among them where its package can be installed.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trustformers_serve as ts
from harness import HERE, BenchError
from peers import environment

Call = Callable[[int], Awaitable[int]]

MAX_BATCH = 256
WINDOW = 0.05
MAX_QUEUE = 5_000
FLYTE = "Flyte's TokenBatcher"


async def double(records: list[int]) -> list[int]:
    """The function: as little as there can be."""
    return [record * 2 for record in records]


def double_plain(records: list[int]) -> list[int]:
    """The same, for a thread."""
    return [record * 2 for record in records]


async def gather(call: Callable[[int], Awaitable[int]], callers: int, items: int) -> float:
    """Items a second of so many tasks, each of which sends its next item when it has its answer."""

    async def send(start: int) -> None:
        for item in range(start, start + items // callers):
            if await call(item) != item * 2:
                raise RuntimeError("somebody got another's result")

    began = time.perf_counter()
    await asyncio.gather(*(send(index * items) for index in range(callers)))
    return items / (time.perf_counter() - began)


async def bare_future(item: int) -> int:
    """The round trip of a future and nothing else."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    loop.call_soon(future.set_result, item * 2)
    return await future


class QueueBatcher:
    """The plain baseline: a queue, futures, and a task that takes what waits; no costs, nothing ahead."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue(MAX_QUEUE)
        self._task = asyncio.create_task(self._work())

    async def call(self, record: int) -> int:
        """The result of a record."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await self._queue.put((record, future))
        return await future

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            await self._fill(batch)
            for (_, future), result in zip(batch, await double([record for record, _ in batch]), strict=True):
                if not future.done():
                    future.set_result(result)

    async def _fill(self, batch: list[tuple[int, asyncio.Future[int]]]) -> None:
        deadline = time.monotonic() + WINDOW
        while len(batch) < MAX_BATCH:
            if self._queue.empty():
                # One turn for those who just got their answers; then whoever comes within the window.
                await asyncio.sleep(0)
            if self._queue.empty():
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), deadline - time.monotonic()))
                except asyncio.TimeoutError:
                    return
            else:
                batch.append(self._queue.get_nowait())

    def close(self) -> None:
        """Ends the task."""
        self._task.cancel()


class TimedBatcher(QueueBatcher):
    """The same with `asyncio.wait_for` for each record, as such batchers are mostly written."""

    async def _fill(self, batch: list[tuple[int, asyncio.Future[int]]]) -> None:
        deadline = time.monotonic() + WINDOW
        while len(batch) < MAX_BATCH:
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), deadline - time.monotonic()))
            except asyncio.TimeoutError:
                return


@asynccontextmanager
async def bare() -> AsyncGenerator[Call]:
    """Bare futures in the place of a batcher."""
    yield bare_future


@asynccontextmanager
async def queue_batcher(kind: type[QueueBatcher]) -> AsyncGenerator[Call]:
    """A batcher of plain asyncio."""
    batcher = kind()
    yield batcher.call
    batcher.close()


@asynccontextmanager
async def streamed(batcher: Any) -> AsyncGenerator[Call]:
    """A batcher whose `submit` gives a future: ours, or Flyte's."""
    async with batcher:
        submit = batcher.submit

        async def call(record: int) -> int:
            return await (await submit(record))

        yield call


@asynccontextmanager
async def awaited() -> AsyncGenerator[Call]:
    """`Batcher.arun`, whose executor runs on a thread."""
    with ts.Batcher(MAX_BATCH, WINDOW * 1e3, max_queue=MAX_QUEUE) as batcher:
        arun = batcher.arun
        yield lambda record: arun(record, double_plain)


@asynccontextmanager
async def decorated(max_batch: int) -> AsyncGenerator[Call]:
    """A function under `batch`, with room in its queue for every caller."""
    function = ts.batch(max_batch, WINDOW, max_queue_size=MAX_QUEUE)(double)
    yield function
    await function.batcher.stop()


@functools.cache
def flyte_batcher() -> Callable[..., Any] | None:
    """Flyte's `TokenBatcher`, or None, after a word on why, where it cannot be installed or imported."""
    try:
        venv = environment("flyte", HERE / "flyte.txt")
        # Last, so that what both have is this environment's.
        sys.path.append(sysconfig.get_path("purelib", vars={"base": str(venv)}))
        found: Any = importlib.import_module("flyte.extras")
    except (BenchError, ImportError) as error:
        print(f"{FLYTE} is left out: {error}", file=sys.stderr)
        return None
    return found.TokenBatcher


def contestants() -> dict[str, Callable[[], AbstractAsyncContextManager[Call]]]:
    """What is measured, by name; each is made on the loop that it runs on."""
    found: dict[str, Callable[[], AbstractAsyncContextManager[Call]]] = {
        "bare future": bare,
        "Batcher": awaited,
        "@batch": lambda: decorated(MAX_BATCH),
        "@batch of up to 32": lambda: decorated(32),
        "DynamicBatcher": lambda: streamed(ts.DynamicBatcher(double)),
        "DynamicBatcher, plain function": lambda: streamed(ts.DynamicBatcher(double_plain)),
        "TokenBatcher": lambda: streamed(ts.TokenBatcher(double)),
        "asyncio queue": lambda: queue_batcher(QueueBatcher),
        "wait_for per record": lambda: queue_batcher(TimedBatcher),
    }
    theirs = flyte_batcher()
    if theirs is not None:
        found[FLYTE] = lambda: streamed(theirs(inference_fn=double))
    return found


async def percentile(call: Call, callers: int, records: int) -> float:
    """The 99th percentile of the milliseconds from call to result, of so many tasks."""
    taken: list[float] = []

    async def timed(record: int) -> int:
        began = time.perf_counter()
        result = await call(record)
        taken.append(time.perf_counter() - began)
        return result

    await gather(timed, callers, records)
    return sorted(taken)[len(taken) * 99 // 100] * 1e3


async def measure(callers: int, records: int) -> dict[str, float]:
    """Records a second by what was measured, side by side, and milliseconds."""
    found: dict[str, float] = {}
    for name, make in contestants().items():
        async with make() as call:
            found[f"{name}, {callers:,} tasks"] = await gather(call, callers, records)
            found[f"{name}, {callers:,} tasks, p99 ms"] = await percentile(call, callers, records // 4)
    return found
