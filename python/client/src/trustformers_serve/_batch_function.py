"""How the function of a `DynamicBatcher` is called: as a task of the event loop, or on a thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import queue
import threading
from collections.abc import Callable, MutableSet
from typing import Any, TypeVar

from trustformers_serve import _core, _functions, _threads
from trustformers_serve.errors import ExecutorError

F = TypeVar("F", bound=Callable[..., Any])


def check_function(batcher: str, function: F | None) -> F:
    """The function; raises a `TypeError` that names it where no batch could run through it."""
    if function is None:
        raise TypeError(f"{batcher} requires either a coroutine function or a plain one as `process_fn`")
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"{batcher} requires either a coroutine function or a plain one, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        name = _functions.name(function)
        raise TypeError(f"{name} generates; {batcher} takes a function that returns a list")
    return function


def begin(
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
    call: Callable[[list[Any]], Any],
    thread: FunctionThread | None,
    tasks: MutableSet[asyncio.Task[Any]],
    core: _core.RecordStream,
    records: list[Any],
) -> None:
    """Begins to run a batch, in one of `tasks`, and has the core told when it has ended."""
    # Not in the context of the caller whose record happened to be the last.
    task = context.run(loop.create_task, _called(call, records))
    tasks.add(task)
    task.add_done_callback(functools.partial(_ended, core, call if thread is None else thread.function))


async def _called(call: Callable[[list[Any]], Any], records: list[Any]) -> Any:
    return await call(records)


def _ended(core: _core.RecordStream, function: Any, task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        # Before 3.11 a task does not say whether it was cancelled, or its function only raises as if.
        if getattr(task, "cancelling", lambda: 1)() > 0:
            # Somebody ends every task of the loop: whatever began now would be left behind.
            core.abandon()
        else:
            core.fail(functools.partial(_failure, function, asyncio.CancelledError()))
    elif (error := task.exception()) is not None:
        core.fail(functools.partial(_failure, function, error))
    else:
        core.complete(task.result())


def _failure(function: Any, error: BaseException) -> Exception:
    """What a member of a batch raises: an `ExecutorError` that is also of the type of `error`.

    So both `except ExecutorError` and what would have caught the function's own exception do.
    """
    text = f": {error}" if str(error) else ""
    message = f"{_functions.name(function)} raised {type(error).__qualname__}{text}"
    failure: ExecutorError
    if isinstance(error, ExecutorError) or not isinstance(error, Exception):
        failure = ExecutorError(message)
    else:
        try:
            failure = _both(type(error))(message)
            failure.__dict__.update({**error.__dict__, **failure.__dict__})
        except TypeError:
            # Not every two classes of exceptions can be one.
            failure = ExecutorError(message)
    failure.__cause__ = error
    return failure


@functools.lru_cache(maxsize=64)
def _both(kind: type[Exception]) -> type[ExecutorError]:
    return type("ExecutorError", (ExecutorError, kind), {"__doc__": ExecutorError.__doc__})


class FunctionThread:
    """A thread for a plain function, which starts with the first batch.

    A daemon, because a function that never returns must not keep the interpreter from its exit.
    """

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        """Starts nothing yet."""
        self.function = function
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_busy = False

    async def call(self, records: list[Any]) -> Any:
        """What the function returns for the records; awaited here where it returned an awaitable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._batches,), name="trustformers-records", daemon=True
            )
            self._thread.start()
        function = functools.partial(contextvars.copy_context().run, self.function)
        self._batches.put((loop, future, function, records))
        self._is_busy = True
        try:
            results = await future
        finally:
            # What is not waited for any more still runs.
            self._is_busy = future.cancelled() or not future.done()
        return await results if inspect.isawaitable(results) else results

    def close(self, wait: bool = False) -> None:
        """Lets the thread end after what it runs, and waits for that if asked to and it runs nothing."""
        self._batches.put(None)
        if wait and self._thread is not None and not self._is_busy:
            self._thread.join()


_Batch = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[list[Any]], Any], list[Any]]


def _work(batches: queue.SimpleQueue[_Batch | None]) -> None:
    while (batch := batches.get()) is not None:
        loop, future, function, records = batch
        _threads.answer(loop, future, functools.partial(function, records), "the function")
        # Nothing of a batch is kept while the next one is awaited.
        del batch, future, function, records
