"""Plain calls for event loops, on daemon threads: one that never returns keeps nobody from the exit.

An event loop's own executor has few threads, and `asyncio.run` and the interpreter's exit wait for each.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from trustformers_serve import _functions
from trustformers_serve.errors import ExecutorError

R = TypeVar("R")

MOST = 256
"""Most calls that run at once in a process; more wait for a thread."""

_IDLE_SECONDS = 0.2
"""How long a thread without a call stays."""


def begin(function: Callable[..., R], *args: Any, **kwargs: Any) -> asyncio.Future[R]:
    """Begins a call, with the context variables of here; the future is the running loop's.

    A call whose future is cancelled ends by itself, if it has begun.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    _threads.add(functools.partial(_unless_cancelled, loop, future, call, _functions.name(function)))
    return future


async def run(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """The result of a call that is made on a thread; as `begin`."""
    return await begin(function, *args, **kwargs)


def answer(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], call: Callable[[], Any], name: str
) -> None:
    """Makes a call on this thread and tells its future, unless its loop has been closed.

    What would end the loop, as `SystemExit`, becomes an `ExecutorError` that names the function.
    """
    try:
        end = functools.partial(_set_result, future, call())
    except Exception as error:  # noqa: BLE001 - who waits raises it
        end = functools.partial(_set_exception, future, error)
    except BaseException as error:  # noqa: BLE001 - what would end the loop is its callers' alone
        failure = ExecutorError(f"{name} raised {error!r}")
        failure.__cause__ = error
        end = functools.partial(_set_exception, future, failure)
        del failure
    # A closed loop has nobody who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(end)


def _unless_cancelled(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], call: Callable[[], Any], name: str
) -> None:
    if not future.cancelled():
        answer(loop, future, call, name)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        wrapped = RuntimeError("the function raised StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    future.set_exception(error)


class _Threads:
    """As many threads as calls, up to `MOST`; those without a call end after a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        # Those that there are, and those that look for a call.
        self._count = self._free = 0

    def add(self, call: Callable[[], None]) -> None:
        """Has a call made by the next thread that is free."""
        with self._changed:
            self._calls.append(call)
            if len(self._calls) <= self._free or self._count >= MOST:
                self._changed.notify()
                return
            self._count += 1
            self._free += 1
        try:
            threading.Thread(target=self._work, name="trustformers-call", daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._count -= 1
                self._free -= 1
                if self._count == 0:
                    self._calls.remove(call)
                    raise

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call()
            # Nothing of a call is kept while the next one is awaited.
            del call
            with self._changed:
                self._free += 1

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._calls:
                if not self._changed.wait(_IDLE_SECONDS) and not self._calls:
                    self._count -= 1
                    self._free -= 1
                    return None
            self._free -= 1
            return self._calls.popleft()


_threads = _Threads()
if hasattr(os, "register_at_fork"):
    # The child has none of the threads.
    os.register_at_fork(after_in_child=_threads.__init__)
