"""`batch`: a function of a list becomes a coroutine function of an item, batched over its callers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload

from trustformers_serve import _core, _functions, _threads
from trustformers_serve._functions import WORKER_ID
from trustformers_serve._limits import check_count, check_time
from trustformers_serve._schemas import Schema
from trustformers_serve._sizes import check_limit, check_size
from trustformers_serve._workers import Worker, is_inside, refuse_inside, reserve, would_wait
from trustformers_serve.errors import BatcherClosedError

if TYPE_CHECKING:
    import pydantic

    from trustformers_serve.batcher import Backpressure, BatcherMetrics

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

Priority = Literal["low", "normal", "high", "critical"]
"""Who leaves first of those who wait."""


@dataclass(frozen=True)
class Breaker:
    """When a function that keeps failing is left alone; calls then raise `BreakerOpenError`.

    Attributes:
        failures: Failures in a row that open it; 0: it never opens.
        window: Seconds within which they must lie.
        open: Seconds for which it stays open before one call may try again.
    """

    failures: int = 5
    window: float = 10.0
    open: float = 10.0


@dataclass(frozen=True)
class Settings:
    """What `batch` was given, checked; see there."""

    max_batch_size: int = 32
    max_wait_time: float = 0.01
    max_queue_size: int = 128
    workers: int = 1
    target_latency: float | None = None
    latency_slo: float | None = None
    isolation: Literal["bisect", "none"] = "bisect"
    enable_priority_scheduling: bool = True
    priority_ageing: float = 10.0
    breaker: Breaker = field(default_factory=Breaker)
    backpressure: Backpressure = "drop"
    max_item_bytes: int | None = None

    def __post_init__(self) -> None:
        """Checks each.

        Raises:
            ValueError: One is out of range; the message names it.
            TypeError: One is no number.
        """
        if not isinstance(self.breaker, Breaker):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"breaker must be a Breaker, not {self.breaker!r}")
        for name in ("max_batch_size", "max_queue_size", "workers"):
            check_count(name, getattr(self, name), 1)
        check_count("breaker.failures", self.breaker.failures, 0)
        check_limit(self.max_item_bytes)
        check_time("max_wait_time", self.max_wait_time, may_be_zero=True)
        seconds = {name: getattr(self, name) for name in ("target_latency", "latency_slo", "priority_ageing")}
        seconds |= {"breaker.window": self.breaker.window, "breaker.open": self.breaker.open}
        for name, value in seconds.items():
            if value is not None:
                check_time(name, value)
        if self.target_latency is not None and self.latency_slo is not None:
            raise ValueError("target_latency is a latency_slo that batches are sized by: give one of them")
        if self.isolation not in {"bisect", "none"}:
            raise ValueError(f"isolation must be 'bisect' or 'none', not {self.isolation!r}")

    def terms(self) -> dict[str, Any]:
        """As the scheduler takes them."""
        breaker = self.breaker
        return {
            "bisect": self.isolation == "bisect",
            "latency_slo": self.latency_slo if self.target_latency is None else self.target_latency,
            "adaptive": self.target_latency is not None,
            "priorities": self.enable_priority_scheduling,
            "ageing": self.priority_ageing,
            "breaker": (breaker.failures, breaker.window, breaker.open) if breaker.failures else None,
        }


class FunctionBatcher:
    """What the calls of a function that `batch` made go through.

    Attributes:
        settings: How it batches.
        input_schema: What an item must be, or `None`.
    """

    def __init__(
        self, function: Callable[..., Any], settings: Settings, schema: Schema | None = None
    ) -> None:
        """Starts nothing yet.

        Raises:
            DecorationError: `function` cannot be batched.
        """
        self.settings = settings
        self.input_schema = None if schema is None else schema.type
        self.is_method = _functions.takes_self(function, "batch")
        self.entry: weakref.ref[Any] | None = None
        """What `batched` made; weak, as it holds this."""
        self._function = function
        self._schema = schema
        self.is_coroutine = _functions.is_coroutine(function)
        self._numbered = WORKER_ID in inspect.signature(function).parameters
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._stopping: list[Worker] = []

    def send(
        self, item: Any, instance: Any = None, priority: Priority | None = None, future: Any = None
    ) -> tuple[Worker, asyncio.Future[Any], _core.Pending | None]:
        """Brings an item of a caller on the running event loop.

        What is returned is told with `Worker.answered` that its caller is done with it. What stands for a
        future there has its methods `set_result`, `set_exception` and `cancelled`.

        Raises:
            ItemTooLargeError: The item has more bytes than `max_item_bytes`.
            ValidationError: It is not what the schema says.
            OverloadedError, BreakerOpenError: It is not let in.
            ExecutorError: No worker could ever run it: each runs a batch that waits for this call.
        """
        if (limit := self.settings.max_item_bytes) is not None:
            check_size(item, limit, self._function)
        if self._schema is not None:
            item = self._schema.read(item)
        if future is None:
            future = asyncio.get_running_loop().create_future()
        while True:
            workers = self._workers or self._start()
            worker = reserve(workers, future) if is_inside() else self._lightest(workers)
            if worker is None:
                raise would_wait(self._function, "a call")
            try:
                pending = worker.send(item, instance, priority, future)
            except BaseException as error:
                worker.forget(future)
                # Stopped on another thread meanwhile; or else the interpreter ends.
                if not isinstance(error, BatcherClosedError) or self._workers is workers:
                    raise
            else:
                worker.load += 1
                return worker, future, pending

    def hand(self, item: Any, future: Any, priority: Priority, *, instance: Any = None) -> Callable[[], None]:
        """As `send`; returns what is to be called when `future` was told or cancelled."""
        worker, future, pending = self.send(item, instance, priority, future)
        return functools.partial(worker.answered, future, pending)

    def is_of(self, function: Any) -> bool:
        """Whether calls of it, or of a method of it, are calls of `send` and nothing else."""
        return self.entry is not None and self.entry() is getattr(function, "__func__", function)

    async def stop(self) -> None:
        """Returns when all that was called before has been answered, and no thread is left.

        May be repeated; the next call starts it again.

        Raises:
            ExecutorError: The function itself calls it.
        """
        refuse_inside(self._function, "`stop` was called")
        with self._lock:
            self._stopping += self._workers
            self._workers = []
            stopping = list(self._stopping)
        if stopping:
            await _threads.run(_close, stopping)
        with self._lock:
            self._stopping = [worker for worker in self._stopping if worker not in stopping]

    def metrics(self) -> list[BatcherMetrics]:
        """What each worker did since it was started."""
        return [worker.metrics() for worker in self._workers]

    def __repr__(self) -> str:
        """The function's name."""
        return f"<FunctionBatcher of {_functions.name(self._function)}>"

    def _start(self) -> list[Worker]:
        settings = self.settings
        limits = (
            settings.max_batch_size,
            settings.max_wait_time,
            settings.backpressure,
            settings.max_queue_size,
        )
        with self._lock:
            if not self._workers:
                self._workers = [
                    Worker(
                        self._function,
                        limits,
                        settings.terms(),
                        coroutine=self.is_coroutine,
                        arguments={WORKER_ID: number} if self._numbered else {},
                    )
                    for number in range(settings.workers)
                ]
            return self._workers

    @staticmethod
    def _lightest(workers: list[Worker]) -> Worker:
        return workers[0] if len(workers) == 1 else min(workers, key=lambda worker: worker.load)


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.close()


class Batched(Protocol[T_contra, R_co]):
    """A coroutine function of one item; made by `batch`.

    Attributes:
        batcher: What its calls go through: `stop`, `metrics`.
    """

    batcher: FunctionBatcher
    __name__: str
    __qualname__: str

    def __call__(
        self, item: T_contra | Mapping[str, Any], /, *, priority: Priority | None = None
    ) -> Coroutine[Any, Any, R_co]:
        """The result of `item`, run in a batch with the items of other callers.

        With an `input_schema`, a mapping is made its instance.
        """
        ...


class BatchedMethod(Protocol[S_contra, T_contra, R_co]):
    """A coroutine method of one item; made by `batch`. Instances share no batches.

    Attributes:
        batcher: What the calls of all instances go through.
    """

    batcher: FunctionBatcher
    __name__: str
    __qualname__: str

    @overload
    def __get__(self, instance: None, owner: type[S_contra]) -> BatchedMethod[S_contra, T_contra, R_co]: ...
    @overload
    def __get__(self, instance: S_contra, owner: type[S_contra] | None = None) -> Batched[T_contra, R_co]: ...
    def __call__(
        self, instance: S_contra, item: T_contra | Mapping[str, Any], /, *, priority: Priority | None = None
    ) -> Coroutine[Any, Any, R_co]:
        """The result of `item` for `instance`."""
        ...


Results = Sequence[R | Exception]


class _Numbered(Protocol[T, R_co]):
    def __call__(self, items: list[T], /, *, worker_id: int) -> R_co: ...


class _NumberedMethod(Protocol[S_contra, T, R_co]):
    def __call__(self, instance: S_contra, items: list[T], /, *, worker_id: int) -> R_co: ...


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[[list[T]], Awaitable[Results[R]]], /) -> Batched[T, R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Results[R]], /) -> Batched[T, R]: ...
    @overload
    def __call__(self, function: _Numbered[T, Awaitable[Results[R]]], /) -> Batched[T, R]: ...
    @overload
    def __call__(self, function: _Numbered[T, Results[R]], /) -> Batched[T, R]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Awaitable[Results[R]]], /
    ) -> BatchedMethod[S, T, R]: ...
    @overload
    def __call__(self, function: Callable[[S, list[T]], Results[R]], /) -> BatchedMethod[S, T, R]: ...
    @overload
    def __call__(
        self, function: _NumberedMethod[S, T, Awaitable[Results[R]]], /
    ) -> BatchedMethod[S, T, R]: ...
    @overload
    def __call__(self, function: _NumberedMethod[S, T, Results[R]], /) -> BatchedMethod[S, T, R]: ...


def batch(
    max_batch_size: int = 32,
    max_wait_time: float = 0.01,
    input_schema: type[pydantic.BaseModel] | None = None,
    max_queue_size: int = 128,
    workers: int = 1,
    target_latency: float | None = None,
    *,
    latency_slo: float | None = None,
    isolation: Literal["bisect", "none"] = "bisect",
    enable_priority_scheduling: bool = True,
    priority_ageing: float = 10.0,
    breaker: Breaker | None = None,
    max_item_bytes: int | None = None,
) -> _Decorator:
    """Makes a function of a list a coroutine function of an item, batched over its callers.

        @batch(max_batch_size=32, max_wait_time=0.01)
        async def double(items: list[int]) -> list[int]:
            return [item * 2 for item in items]

        await double(21)  # 42

    A coroutine function runs on the event loop of its callers, a plain one on a thread of its own. It
    returns one result an item, in order; an exception among them is raised for its item alone. Where it
    raises, its batch is run again in halves, until only the items that make it raise fail, with
    `ExecutorError`. It may be a method: calls on different instances share no batch.

    Args:
        max_batch_size: Most items in a batch.
        max_wait_time: Longest wait of an item for others to join it, in seconds.
        input_schema: A pydantic model: a mapping is made its instance before it is queued, and what does
            not fit raises `ValidationError`.
        max_queue_size: Most items that wait for each worker; more raise `QueueFullError`, an
            `OverloadedError`.
        workers: How many batches may run at once. Each worker has a queue of its own, and its number, from
            0, is the function's argument `worker_id`, if it has one.
        target_latency: Seconds within which 95 % of the batches are to be done: batches grow and shrink to
            keep it, up to `max_batch_size`. As with `latency_slo`, calls are refused that would miss it by
            far.
        latency_slo: Seconds that a call should take. One that is predicted to wait far longer raises
            `OverloadedError`.
        isolation: "bisect" to look for who makes a batch fail, "none" to fail the whole batch.
        enable_priority_scheduling: Whether the `priority` of a call counts: "low", "normal", "high" or
            "critical".
        priority_ageing: Seconds after which some places go to who waited longest, whatever the priority.
        breaker: When a function that keeps failing is left alone; `Breaker(failures=0)`: never.
        max_item_bytes: An item with more bytes, as it is given, raises `ItemTooLargeError` before it is
            queued, as one of a `Batcher` does. By default no item is too large.

    Raises:
        ValueError: A limit is out of range.
        DecorationError: The decorated object is no function of a list; the message names it.
    """
    if callable(max_batch_size):
        raise _functions.without_parentheses("batch", max_batch_size)
    settings = Settings(
        max_batch_size=max_batch_size,
        max_wait_time=max_wait_time,
        max_queue_size=max_queue_size,
        workers=workers,
        target_latency=target_latency,
        latency_slo=latency_slo,
        isolation=isolation,
        enable_priority_scheduling=enable_priority_scheduling,
        priority_ageing=priority_ageing,
        breaker=breaker or Breaker(),
        max_item_bytes=max_item_bytes,
    )

    def decorate(function: Any) -> Any:
        schema = None if input_schema is None else Schema(input_schema, _functions.name(function))
        return batched(function, FunctionBatcher(function, settings, schema))

    return cast("_Decorator", decorate)


def batched(function: Callable[..., Any], batcher: FunctionBatcher) -> Any:
    """The coroutine function whose calls go through `batcher` to `function`."""
    send = batcher.send
    call: Any
    if batcher.is_method:

        async def call_method(instance: Any, item: Any, *, priority: Priority | None = None) -> Any:
            worker, future, pending = send(item, instance, priority)
            try:
                return await future
            finally:
                worker.answered(future, pending)

        call = call_method
    else:

        async def call_function(item: Any, *, priority: Priority | None = None) -> Any:
            worker, future, pending = send(item, None, priority)
            try:
                return await future
            finally:
                worker.answered(future, pending)

        call = call_function
    functools.update_wrapper(call, function)
    call.batcher = batcher
    batcher.entry = weakref.ref(call)
    return call
