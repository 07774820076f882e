"""Workers: each a queue of the scheduler, and what runs its batches: a thread, or the callers' event loop."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import types
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any

from trustformers_serve import _core
from trustformers_serve._functions import name
from trustformers_serve.batcher import Backpressure, Batcher
from trustformers_serve.errors import ExecutorError

Function = Callable[..., Any]

_LOOK_EVERY_SECONDS = 0.1
"""How often who waits for an event loop looks whether that was closed."""


class _Run:
    """A batch that a function runs."""

    def __init__(self, function: Function, callers: Callers) -> None:
        self.function = function
        self.callers = callers
        self.is_over = False


Callers = dict["asyncio.Future[Any]", tuple[_Run, ...]]
"""For each call that waits for a worker and was made inside batches: those."""

# What runs in this context: it must not wait for itself. A task begun here has the context even afterwards.
_inside: ContextVar[tuple[_Run, ...]] = ContextVar("trustformers_batches", default=())


def enter(function: Function, callers: Callers) -> _Run:
    """Notes that what is called in this context is called by `function`, until the run is over.

    Args:
        function: What runs a batch.
        callers: Who waits for its worker meanwhile.
    """
    run = _Run(function, callers)
    _inside.set((*(outer for outer in _inside.get() if not outer.is_over), run))
    return run


def is_inside() -> bool:
    """Whether this context is, or was, that of a function which runs a batch."""
    return bool(_inside.get())


def refuse_inside(function: Function, what: str) -> None:
    """Raises where a batch of `function` would wait for itself.

    Raises:
        ExecutorError: This is called by `function` while it runs a batch, or by one for which it waits.
    """
    if any(run.function is function for run in _waiting_here()):
        raise would_wait(function, what)


def would_wait(function: Function, what: str) -> ExecutorError:
    """The error of what would wait for itself."""
    return ExecutorError(f"{what} inside {name(function)}, which would wait for itself")


def reserve(workers: list[Worker], future: asyncio.Future[Any]) -> Worker | None:
    """The lightest worker that can run a call of this context, whose batches wait for `future` from here on.

    `None` where each worker runs a batch that waits for this call.
    """
    # Two that looked at once could begin to wait for each other.
    with _looking:
        waiting = _waiting_here()
        free = [worker for worker in workers if not worker.runs_any(waiting)]
        worker = min(free, key=lambda worker: worker.load, default=None)
        if worker is not None:
            worker.awaited(future)
        return worker


def _waiting_here() -> set[_Run]:
    """The batches that wait for what runs here: those that it is in, and who waits for their workers."""
    runs = list(_inside.get())
    waiting: set[_Run] = set()
    while runs:
        run = runs.pop()
        if run.is_over or run in waiting:
            continue
        waiting.add(run)
        for callers in list(run.callers.values()):
            runs += callers
    return waiting


_looking = threading.Lock()


def _forked() -> None:
    # A thread that the child does not have may have held it.
    global _looking  # noqa: PLW0603
    _looking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Worker(Batcher):
    """A queue and what runs its batches.

    A plain function runs on a thread, a coroutine function on the loop of the batch's callers: those of
    different loops share no batch.
    """

    def __init__(
        self,
        function: Function,
        limits: tuple[int, float, Backpressure, int],
        terms: Mapping[str, Any],
        *,
        coroutine: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Starts nothing yet.

        Args:
            function: What runs a batch.
            limits: Items in a batch, seconds of waiting, what happens at a full queue, and items in it.
            terms: What the scheduler is asked for beyond them.
            coroutine: Whether `function` is a coroutine function.
            arguments: What it is given beside the items.
        """
        self._function = function
        self._arguments = arguments
        self._callers: Callers = {}
        self._on_thread = None
        if not coroutine:
            on_thread = _OnThread(function, arguments, self._callers)
            self._on_thread = functools.update_wrapper(on_thread, function)
        self.load = 0
        self._open(*limits, terms)

    def _begin(self) -> None:
        super()._begin()
        self.load = 0
        self._callers.clear()
        self._routes: dict[asyncio.AbstractEventLoop, tuple[_core.LoopPort, Function]] = {}

    def send(
        self, item: Any, instance: Any, priority: str | None, future: asyncio.Future[Any]
    ) -> _core.Pending | None:
        """Brings an item of a caller on the running loop; one of a method, with its instance.

        Raises:
            QueueFullError, OverloadedError, BreakerOpenError: It is not let in.
            BatcherClosedError: The worker is closed.
        """
        loop = asyncio.get_running_loop()
        port, runner = self._routes.get(loop) or self._route(loop)
        if instance is not None:
            # Its identity is that of both.
            runner = types.MethodType(runner, instance)
        return self._core.send(item, runner, future, port, priority)

    def awaited(self, future: asyncio.Future[Any]) -> None:
        """The batches of this context wait for `future`, which this worker is to end."""
        self._callers[future] = _inside.get()

    def forget(self, future: asyncio.Future[Any]) -> None:
        """Nobody waits for `future` any more."""
        if self._callers:
            self._callers.pop(future, None)

    def runs_any(self, runs: set[_Run]) -> bool:
        """Whether it runs one of these batches."""
        return any(run.callers is self._callers for run in runs)

    def answered(self, future: asyncio.Future[Any], pending: _core.Pending | None) -> None:
        """Takes an item back whose caller was cancelled; one that ended leaves nothing behind."""
        self.load -= 1
        self.forget(future)
        if pending is not None and future.cancelled():
            pending.cancel()

    def _route(self, loop: asyncio.AbstractEventLoop) -> tuple[_core.LoopPort, Function]:
        for closed in [known for known in self._routes if known.is_closed()]:
            self._routes.pop(closed, None)
        port, runner = self._port(loop), self._on_thread
        if runner is None:
            on_loop = _OnLoop(self._core, self._function, loop, port, self._arguments, self._callers)
            runner = functools.update_wrapper(on_loop, self._function)
        return self._routes.setdefault(loop, (port, runner))


class _OnThread:
    """Runs a plain function, on the thread that calls it."""

    def __init__(self, function: Function, arguments: Mapping[str, Any], callers: Callers) -> None:
        self._function = function
        self._arguments = arguments
        self._callers = callers

    def __call__(self, *given: Any) -> Any:
        """What the function returns for a batch."""
        run = enter(self._function, self._callers)
        try:
            return self._function(*given, **self._arguments)
        finally:
            run.is_over = True


class _OnLoop:
    """Runs a coroutine function on an event loop, for a thread that waits for it.

    The loop itself ends the batch, and runs the next if that can start at once, so that nobody need wait for
    the thread to be awake.
    """

    def __init__(
        self,
        core: _core.Batcher,
        function: Function,
        loop: asyncio.AbstractEventLoop,
        port: _core.LoopPort,
        arguments: Mapping[str, Any],
        callers: Callers,
    ) -> None:
        self._core = core
        self._coroutine_function = function
        self._loop = loop
        self._port = port
        self._arguments = arguments
        self._callers = callers
        # Loops hold their tasks weakly.
        self._task: asyncio.Task[None] | None = None

    def __call__(self, *given: Any) -> None:
        """Blocks until the batch has ended, and those that followed at once.

        Raises:
            RuntimeError: The loop was closed before.
        """
        ended = threading.Lock()
        ended.acquire()
        work = self._run(given, ended)
        try:
            self._loop.call_soon_threadsafe(self._start, work)
        except RuntimeError:
            work.close()
            raise
        while not ended.acquire(timeout=_LOOK_EVERY_SECONDS):
            if self._loop.is_closed():
                work.close()
                raise RuntimeError("the event loop was closed")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._loop.create_task(work)

    async def _run(self, given: tuple[Any, ...], ended: threading.Lock) -> None:
        *instance, items = given
        del given
        try:
            while items is not None:
                await self._run_batch(*instance, items)
                del items
                # Callers that have their answers may bring more meanwhile.
                await asyncio.sleep(0)
                items = self._core.try_next()
        finally:
            ended.release()

    async def _run_batch(self, *given: Any) -> None:
        run = enter(self._coroutine_function, self._callers)
        try:
            results = await self._coroutine_function(*given, **self._arguments)
        except BaseException as error:
            self._core.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._core.complete(results, self._port)
        finally:
            run.is_over = True
