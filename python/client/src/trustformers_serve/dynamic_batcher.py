"""Batching of record streams on one event loop: many tasks bring records, one function runs them in batches.

What is batched with what, and when, is decided by the scheduler of the server; here are only the function's
calls, as tasks of the loop or on a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, runtime_checkable

from trustformers_serve import _core, _functions
from trustformers_serve._batch_function import FunctionThread, begin, check_function
from trustformers_serve._costs import check_estimator, is_cost
from trustformers_serve._limits import check_count, check_time
from trustformers_serve.errors import BatcherClosedError, ExecutorError

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")

ProcessFunction = Callable[[list[T]], "Awaitable[Sequence[R | Exception]] | Sequence[R | Exception]"]
"""What runs a batch: a list of records in, one result a record out, in order.

A coroutine function is awaited on the event loop; a plain one runs on a thread. An exception among the
results is raised for its record alone.
"""


@runtime_checkable
class CostEstimator(Protocol):
    """A record that knows what it costs."""

    def estimate_cost(self) -> int:
        """Its cost, in whatever unit `target_batch_cost` has."""
        ...


@dataclass
class BatchStats:
    """What a batcher did since it was made.

    Attributes:
        total_submitted: Records that got a place in the queue.
        total_completed: Records that were run, those that failed included.
        total_batches: Batches that were run.
        total_batch_cost: The summed cost of what was run.
        avg_batch_size: Records a batch; 0 before the first.
        avg_batch_cost: Cost a batch; 0 before the first.
        busy_time_s: Seconds in which a batch was running.
        idle_time_s: Seconds in which the batcher was started and none was.
    """

    total_submitted: int = 0
    total_completed: int = 0
    total_batches: int = 0
    total_batch_cost: int = 0
    avg_batch_size: float = 0.0
    avg_batch_cost: float = 0.0
    busy_time_s: float = 0.0
    idle_time_s: float = 0.0

    @property
    def utilization(self) -> float:
        """The share of time in which a batch was running, from 0 to 1; 0 before any time passed."""
        whole = self.busy_time_s + self.idle_time_s
        return self.busy_time_s / whole if whole > 0 else 0.0


class DynamicBatcher(Generic[T, R]):
    """Runs the records of many tasks in batches, through one function, one batch at a time.

        async def process(records: list[str]) -> list[int]:
            return [len(record) for record in records]

        async with DynamicBatcher(process) as batcher:
            future = await batcher.submit("hello")
            print(await future)

    A batch ends when the next record would lift it above `target_batch_cost`, when it has `max_batch_size`
    records, or when its first record has waited for `batch_timeout_s`; a record above the target runs alone.
    Up to `prefetch_batches` are assembled ahead while one runs. What may be waiting in all is the batch that
    runs, those ahead, one that is being assembled, and `max_queue_size` records behind it.

    A batcher belongs to the event loop on which it was started, until it is stopped. A future that is
    cancelled before its batch starts never runs. After a fork the child's batcher is not started.
    """

    def __init__(
        self,
        process_fn: ProcessFunction[T, R] | None = None,
        cost_estimator: Callable[[T], int] | None = None,
        target_batch_cost: int = 32_000,
        default_cost: int = 1,
        max_batch_size: int = 256,
        min_batch_size: int = 1,
        batch_timeout_s: float = 0.05,
        max_queue_size: int = 5_000,
        prefetch_batches: int = 2,
    ) -> None:
        """Checks the function and the limits; nothing is started yet.

        Args:
            process_fn: Runs a batch: a coroutine function, or a plain one, which runs on a thread.
            cost_estimator: The cost of a record, where `submit` is not told. Where it raises, or returns what
                is no number from 0, the record's `estimate_tokens()` or `estimate_cost()` is asked.
            target_batch_cost: The cost at which a batch ends.
            default_cost: The cost of a record of which nothing else is known.
            max_batch_size: Most records in a batch.
            min_batch_size: A smaller batch is not assembled ahead: it grows until no other batch runs. While
                none does, every batch leaves by the timeout, whatever its size.
            batch_timeout_s: Longest wait of a record for others to join it, in seconds.
            max_queue_size: Most records behind the batches; `submit` waits while there are as many.
            prefetch_batches: Batches assembled ahead while one runs.

        Raises:
            TypeError: The function is none, or generates, or an estimator returns no number; the message
                names it.
            ValueError: A limit is out of range.
        """
        function = check_function(type(self).__name__, process_fn)
        check_estimator("cost_estimator", cost_estimator)
        for name, value, least in (
            ("target_batch_cost", target_batch_cost, 1),
            ("default_cost", default_cost, 0),
            ("max_batch_size", max_batch_size, 1),
            ("min_batch_size", min_batch_size, 1),
            ("max_queue_size", max_queue_size, 1),
            ("prefetch_batches", prefetch_batches, 0),
        ):
            check_count(name, value, least)
        if min_batch_size > max_batch_size:
            raise ValueError(f"min_batch_size must be at most max_batch_size, not {min_batch_size}")
        check_time("batch_timeout_s", batch_timeout_s, may_be_zero=True)
        self._function = function
        self._make = functools.partial(
            _core.RecordStream,
            estimator=cost_estimator,
            default_cost=default_cost,
            target_cost=target_batch_cost,
            max_batch_size=max_batch_size,
            min_batch_size=min_batch_size,
            max_wait_seconds=batch_timeout_s,
            max_queue_size=max_queue_size,
            prefetch_batches=prefetch_batches,
        )
        self._forget()
        _batchers.add(self)

    def _forget(self) -> None:
        self._core: _core.RecordStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: FunctionThread | None = None
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._past = (0, 0, 0, 0, 0.0, 0.0)

    async def start(self) -> None:
        """Takes records from now on, on the event loop that runs.

        Raises:
            RuntimeError: It is already running.
        """
        loop = asyncio.get_running_loop()
        if self._core is not None:
            if not self._is_left() and not self._core.is_drained():
                raise RuntimeError(f"this {type(self).__name__} is already running; `stop` it first")
            self._end(self._core)
        thread = None if _functions.is_coroutine(self._function) else FunctionThread(self._function)
        call = self._function if thread is None else thread.call
        self._loop = loop
        context = contextvars.copy_context()
        run = functools.partial(begin, loop, context, call, thread, self._tasks)
        self._core = self._make(loop, self._function, run)
        self._thread = thread
        if thread is not None:
            # Also where nobody stops it: the core lives while anything is queued.
            weakref.finalize(self._core, thread.close).atexit = False

    async def stop(self) -> None:
        """Takes nothing new, runs what is queued, and returns when everybody has been answered.

        Callers that wait for a place are still let in. Stopping a stopped batcher does nothing; it may be
        started again. One whose event loop was closed has nobody left to answer, and is stopped at once.

        Raises:
            RuntimeError: It belongs to another event loop.
            ExecutorError: Its function itself calls it.
        """
        core = self._core
        if core is None:
            return
        if not self._is_left():
            if asyncio.current_task() in self._tasks:
                name = _functions.name(self._function)
                raise ExecutorError(f"`stop` was called inside {name}, which would wait for itself")
            # A caller that leaves must not take the others' future with it.
            await asyncio.shield(core.drain())
        if self._core is core:
            self._end(core)

    def _is_left(self) -> bool:
        """Whether its event loop was closed before it was stopped."""
        return self._loop is not None and self._loop.is_closed()

    def _end(self, core: _core.RecordStream) -> None:
        if self._is_left():
            core.abandon()
        self._past = self._totals()
        self._core = self._loop = None
        if self._thread is not None:
            self._thread.close(wait=True)
            self._thread = None

    async def submit(self, record: T, *, estimated_cost: float | None = None) -> asyncio.Future[R]:
        """The future of the record's result; waits for a place while the queue is full.

        Args:
            record: What is to be run.
            estimated_cost: Its cost, where that is known better than by the estimators.

        Raises:
            RuntimeError: The batcher is not running, or belongs to another event loop.
            ValueError: `estimated_cost` is no number from 0.
        """
        core = self._core
        if core is None:
            raise self._not_running()
        try:
            future = core.submit(record, estimated_cost)
        except RuntimeError:
            if self._is_left():
                raise self._not_running() from None
            raise
        if isinstance(future, _core.Place):
            return await _admitted(future)
        return future

    async def submit_batch(
        self, records: Iterable[T], *, estimated_cost: Sequence[float] | None = None
    ) -> list[asyncio.Future[R]]:
        """The futures of the results of `records`, each of which is brought as by `submit`.

        Where not all can be brought, or the caller is cancelled meanwhile, those that were are cancelled.

        Args:
            records: What is to be run.
            estimated_cost: The cost of each record, as many as there are records.

        Raises:
            RuntimeError: The batcher is not running, or belongs to another event loop.
            ValueError: There are not as many costs as records, or one is no number from 0.
        """
        records = list(records)
        costs: Sequence[float | None] = [None] * len(records) if estimated_cost is None else estimated_cost
        if len(costs) != len(records):
            raise ValueError(f"there are {len(records)} records and {len(costs)} estimated costs")
        for cost in costs:
            if cost is not None and not is_cost(cost):
                raise ValueError(f"an estimated cost must be a number from 0, not {cost!r}")
        futures: list[asyncio.Future[R]] = []
        try:
            for record, cost in zip(records, costs, strict=True):
                futures.append(await DynamicBatcher[T, R].submit(self, record, estimated_cost=cost))
        except BaseException:
            # Nobody else has them.
            for future in futures:
                future.cancel()
            raise
        return futures

    @property
    def is_running(self) -> bool:
        """Whether it takes records."""
        core, loop = self._core, self._loop
        return core is not None and core.is_open() and loop is not None and not loop.is_closed()

    @property
    def stats(self) -> BatchStats:
        """What it did since it was made."""
        submitted, completed, batches, cost, busy, idle = self._totals()
        each = max(batches, 1)
        return BatchStats(submitted, completed, batches, cost, completed / each, cost / each, busy, idle)

    async def __aenter__(self) -> Self:
        """Starts it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        await self.stop()

    def __reduce__(self) -> NoReturn:
        """Refuses: a batcher belongs to its process."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or sent to another process; make one there"
        )

    def __repr__(self) -> str:
        """Its function, and whether it runs."""
        state = "running" if self.is_running else "not running"
        return f"<{type(self).__name__} of {_functions.name(self._function)}, {state}>"

    def _totals(self) -> tuple[int, int, int, int, float, float]:
        if self._core is None:
            return self._past
        past, now = self._past, self._core.stats()
        return (
            past[0] + now[0],
            past[1] + now[1],
            past[2] + now[2],
            past[3] + now[3],
            past[4] + now[4],
            past[5] + now[5],
        )

    def _not_running(self) -> BatcherClosedError:
        name = type(self).__name__
        return BatcherClosedError(f"this {name} is not running: call `start`, or use `async with`")


async def _admitted(place: _core.Place) -> asyncio.Future[Any]:
    gate = place.gate
    try:
        return await gate
    except asyncio.CancelledError:
        # It may have got its place in the same turn of the loop: then nobody awaits its result.
        if gate.done() and not gate.cancelled() and gate.exception() is None:
            gate.result().cancel()
        raise


_batchers: weakref.WeakSet[DynamicBatcher[Any, Any]] = weakref.WeakSet()


def _forked() -> None:
    for batcher in list(_batchers):
        batcher._forget()  # pyright: ignore[reportPrivateUsage] # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
