"""Batching in process: calls with one item, from any number of threads and event loops, run together.

What is batched with what, and when, is decided by the scheduler of the server; here are only the callers
of it, and the thread that runs executors.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NoReturn, TextIO, TypeVar, cast, overload

from trustformers_serve import _core, _threads
from trustformers_serve._limits import MOST, check_count, check_time
from trustformers_serve._sizes import check_limit, check_size
from trustformers_serve.errors import ItemTooLargeError

T = TypeVar("T")
R = TypeVar("R")

Executor = Callable[[list[T]], Sequence["R | Exception"]]
"""What runs a batch: a list of items in, one result an item out, in order.

An exception among the results is raised for its item alone. Anything else that goes wrong, be it an
exception that the executor raises, a wrong number of results or no list, is an `ExecutorError` for every
caller of the batch.
"""

Backpressure = Literal["block", "drop", "passthrough"]
"""What happens at a full queue: wait for a place, raise `QueueFullError`, or run at once and alone."""

_EXIT_SECONDS = 2.0
"""How long queued work may go on at the interpreter's exit."""


@dataclass(frozen=True)
class BatcherMetrics:
    """What a batcher did since it was made.

    Attributes:
        items: Items that were run, those that failed included.
        batches: Calls of executors.
        avg_batch: Items a batch; 0 before the first.
        p50_ms: The median of the times from call to result, in milliseconds; 0 before the first.
        p99_ms: Their 99th percentile.
        dropped: Items refused because the queue was full.
        waiting: Callers that wait for a place in the queue now.
    """

    items: int
    batches: int
    avg_batch: float
    p50_ms: float
    p99_ms: float
    dropped: int
    waiting: int


class Batcher:
    """Runs in batches what many callers bring one by one.

        with Batcher(max_batch=32, max_wait_ms=10) as batcher:
            print(batcher.run(3, executor=lambda items: [item * 2 for item in items]))

    A batch leaves when it is full, or when its first item has waited for `max_wait_ms`. Executors run one
    at a time, on a thread that starts with the first item; items with different executors never share a
    batch. All methods may be called from any thread, and `arun` from any event loop.

    After a fork the child's batcher is empty and works by itself; what waited in the parent stays there.
    """

    _max_item_bytes: int | None = None

    def __init__(
        self,
        max_batch: int = 32,
        max_wait_ms: float = 10,
        backpressure: Backpressure = "block",
        max_queue: int | None = None,
        max_item_bytes: int | None = None,
    ) -> None:
        """Checks the limits; nothing is started yet.

        Args:
            max_batch: Most items in a batch.
            max_wait_ms: Longest wait of an item for others to join it, in milliseconds.
            backpressure: What a call meets at a full queue: "block" waits for a place, "drop" raises
                `QueueFullError` at once, "passthrough" runs the item at once in a batch of its own.
            max_queue: Most items that wait; by default 16 times `max_batch`.
            max_item_bytes: Items with more bytes than this are refused before they are queued: arrays,
                tensors, buffers, texts, and containers by their members; of other objects only their own
                memory counts, not what they refer to. By default no item is too large.

        Raises:
            ValueError: A limit is out of range.
            TypeError: A limit is no number.
        """
        check_count("max_batch", max_batch, 1)
        check_time("max_wait_ms", max_wait_ms, may_be_zero=True)
        if max_queue is None:
            max_queue = min(16 * max_batch, MOST)
        check_count("max_queue", max_queue, 1)
        check_limit(max_item_bytes)
        self._max_item_bytes = max_item_bytes
        self._open(max_batch, max_wait_ms / 1000, backpressure, max_queue)

    def _open(
        self,
        max_batch: int,
        max_wait_seconds: float,
        backpressure: Backpressure,
        max_queue: int,
        terms: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = (max_batch, max_wait_seconds, backpressure, max_queue)
        self._terms = terms
        self._begin()
        _batchers.add(self)

    def _begin(self) -> None:
        self._core = _core.Batcher(*self._settings, _start, self._terms)
        self._ports: dict[asyncio.AbstractEventLoop, _core.LoopPort] = {}
        # A batcher that nobody holds any more answers who waits, and its thread ends.
        self._finalizer = weakref.finalize(self, self._core.close)
        self._finalizer.atexit = False

    def run(self, item: T, executor: Executor[T, R]) -> R:
        """The result of `item`, which runs in a batch with the items of other callers.

        Raises:
            ExecutorError: The executor failed the whole batch; its cause is what the executor raised.
            QueueFullError: The queue is full, and `backpressure` is "drop".
            BatcherClosedError: The batcher is closed.
            ItemTooLargeError: The item has more bytes than `max_item_bytes`.
            Exception: The one that the executor returned for this item.
        """
        if self._max_item_bytes is not None:
            self._check_size(item, executor)
        return self._core.run(item, executor)

    async def arun(self, item: T, executor: Executor[T, R]) -> R:
        """As `run`, without blocking the event loop. A cancelled call never runs if it still waits."""
        if self._max_item_bytes is not None:
            self._check_size(item, executor)
        loop = asyncio.get_running_loop()
        port = self._ports.get(loop)
        if port is None:
            port = self._port(loop)
        future: asyncio.Future[R] = loop.create_future()
        pending = self._core.send(item, executor, future, port)
        if pending is None:
            return await _threads.run(self._core.alone, item, executor)
        try:
            return await future
        except asyncio.CancelledError:
            pending.cancel()
            raise

    def submit(self, item: T, executor: Executor[T, R]) -> concurrent.futures.Future[R]:
        """A future of the result of `item`; `cancel` works until its batch starts.

        Returns once the item has its place in the queue, or has run alone.

        Raises:
            QueueFullError: The queue is full, and `backpressure` is "drop".
            BatcherClosedError: The batcher is closed.
            ItemTooLargeError: The item has more bytes than `max_item_bytes`.
        """
        if self._max_item_bytes is not None:
            self._check_size(item, executor)
        future: _Future[R] = _Future()
        future.pending = self._core.submit(item, executor, future)
        if future.pending is None:
            _run_alone(self._core, item, executor, future)
        return future

    @overload
    def map(
        self,
        items: Iterable[T],
        executor: Executor[T, R],
        *,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...
    @overload
    def map(
        self, items: Iterable[T], executor: Executor[T, R], *, progress: bool = False, return_exceptions: bool
    ) -> list[R | Exception]: ...
    def map(
        self,
        items: Iterable[T],
        executor: Executor[T, R],
        *,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[R] | list[R | Exception]:
        """The results of all `items`, in order.

        Items wait for their places in the queue, whatever `backpressure` says. After a failure no more
        items are taken, those already queued are run, and the first failure is raised.

        Args:
            items: Taken one by one, as there is room for them.
            executor: What runs them.
            progress: Show a progress bar on standard error.
            return_exceptions: Put failures among the results instead.
        """
        count = len(items) if isinstance(items, Sequence) else None
        refused: list[tuple[int, Exception]] = []
        if self._max_item_bytes is not None:
            items = self._checked(items, executor, refused if return_exceptions else None)
        if not progress:
            results = self._core.map(items, executor, return_exceptions, None)
        else:
            bar = _Bar(count, sys.stderr)
            try:
                results = self._core.map(items, executor, return_exceptions, bar.show)
                bar.show(len(results) + len(refused))
            finally:
                bar.end()
        for place, error in refused:
            cast("list[R | Exception]", results).insert(place, error)
        return results

    def flush(self) -> None:
        """Lets what is queued run now, and returns when all of it has been answered."""
        self._core.flush()

    def metrics(self) -> BatcherMetrics:
        """What it did since it was made."""
        items, batches, p50, p99, dropped, waiting = self._core.metrics()
        return BatcherMetrics(items, batches, items / max(batches, 1), p50 * 1e3, p99 * 1e3, dropped, waiting)

    def close(self) -> None:
        """Takes nothing new, runs what is queued, and returns when everybody has been answered.

        Closing a closed batcher does nothing. Called by an executor, it does not wait.
        """
        self._core.close()
        thread = self._core.thread()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Batcher:
        """The batcher itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuses: a batcher belongs to its process."""
        raise TypeError("a Batcher cannot be copied or sent to another process; make one there")

    def __repr__(self) -> str:
        """Its limits."""
        max_batch, max_wait, backpressure, max_queue = self._settings
        most = "" if self._max_item_bytes is None else f" max_item_bytes={self._max_item_bytes}"
        return (
            f"<Batcher max_batch={max_batch} max_wait_ms={max_wait * 1e3:g} "
            f"backpressure={backpressure!r} max_queue={max_queue}{most}>"
        )

    def _hand(self, item: T, executor: Executor[T, R], future: Any) -> Callable[[], None]:
        """As `arun`, for what stands for a future: it has `set_result`, `set_exception` and `cancelled`.

        Returns what is to be called when it was told or cancelled.
        """
        if self._max_item_bytes is not None:
            self._check_size(item, executor)
        loop = asyncio.get_running_loop()
        pending = self._core.send(item, executor, future, self._ports.get(loop) or self._port(loop))
        if pending is None:
            pending = _threads.begin(self._core.alone, item, executor)
            pending.add_done_callback(functools.partial(_hand_on, future))

        def forget() -> None:
            if future.cancelled():
                pending.cancel()

        return forget

    def _check_size(self, item: Any, executor: Any) -> None:
        if self._max_item_bytes is not None:
            check_size(item, self._max_item_bytes, executor)

    def _checked(
        self, items: Iterable[T], executor: Any, refused: list[tuple[int, Exception]] | None
    ) -> Iterator[T]:
        """The items that are not too large; the others raise, or are noted with their places in `refused`."""
        for place, item in enumerate(items):
            try:
                self._check_size(item, executor)
            except ItemTooLargeError as error:
                if refused is None:
                    raise
                refused.append((place, error))
            else:
                yield item

    def _port(self, loop: asyncio.AbstractEventLoop) -> _core.LoopPort:
        for known in [known for known in self._ports if known.is_closed()]:
            self._ports.pop(known, None)
        return self._ports.setdefault(loop, _core.LoopPort(loop))


class _Future(concurrent.futures.Future[R]):
    """A future whose item leaves the queue when it is cancelled."""

    pending: _core.Pending | None = None

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled and self.pending is not None:
            self.pending.cancel()
        return cancelled


def _hand_on(future: Any, done: asyncio.Future[Any]) -> None:
    if done.cancelled():
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(error)


def _run_alone(core: _core.Batcher, item: Any, executor: Any, future: concurrent.futures.Future[Any]) -> None:
    future.set_running_or_notify_cancel()
    try:
        result = core.alone(item, executor)
    except Exception as error:  # noqa: BLE001 - it is the future's to raise
        future.set_exception(error)
    else:
        future.set_result(result)


class _Bar:
    """A progress bar: how many are done, of how many where that is known, and how fast."""

    def __init__(self, total: int | None, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._began = time.perf_counter()

    def show(self, done: int) -> None:
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        bar, of = "", ""
        if self._total:
            filled = 30 * done // self._total
            bar, of = f"[{'#' * filled}{'.' * (30 - filled)}] ", f" of {self._total:,}"
        self._stream.write(f"\r{bar}{done:,}{of} items, {rate:,.0f} a second\x1b[K")
        self._stream.flush()

    def end(self) -> None:
        self._stream.write("\n")
        self._stream.flush()


_batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()
_running: set[_core.Batcher] = set()
"""Those with a thread, also where nobody holds the batcher any more."""


def _start(core: _core.Batcher) -> threading.Thread:
    # A daemon, because an executor that never returns must not keep the interpreter from its exit.
    thread = threading.Thread(target=_work, args=(core,), name="trustformers-batcher", daemon=True)
    _running.add(core)
    thread.start()
    return thread


def _work(core: _core.Batcher) -> None:
    try:
        while (batch := core.next()) is not None:
            executor, items = batch
            try:
                results = executor(items)
            except BaseException as error:  # noqa: BLE001 - its callers raise it; the thread serves others
                core.fail(error)
            else:
                core.complete(results)
                # Nothing of a batch is kept while the next one is awaited.
                del results
            del batch, executor, items
    finally:
        # Ends nothing but what a failure of the loop itself would leave unanswered.
        core.abort()
        _running.discard(core)


def _end() -> None:
    """Ends every batcher within bounded time, so that nobody waits for what will not run."""
    until = time.monotonic() + _EXIT_SECONDS
    cores = list(_running)
    for core in cores:
        core.close()
    for core in cores:
        thread = core.thread()
        if thread is not None:
            thread.join(max(until - time.monotonic(), 0))
        core.abort()


def _forked() -> None:
    _core.set_main_thread(threading.get_ident())
    _running.clear()
    for batcher in list(_batchers):
        batcher._finalizer.detach()  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
        batcher._begin()  # pyright: ignore[reportPrivateUsage] # noqa: SLF001


_core.set_main_thread(threading.main_thread().ident or 0)
atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
