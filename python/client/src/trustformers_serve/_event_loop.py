"""The event loops of a server: coroutine functions run there, and calls of batched ones pass through.

The server lets calls land at a port; the loop takes all that have landed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from trustformers_serve import _core
from trustformers_serve._models import is_blameless
from trustformers_serve.batching import FunctionBatcher, Priority

logger = logging.getLogger("trustformers_serve.serving")


def report(name: str, error: BaseException) -> None:
    """Says in the log what a client is told only in one line."""
    if not is_blameless(error):
        logger.error("model %r failed", name, exc_info=error)


class Started(Protocol):
    """A call that has begun."""

    def left(self) -> None:
        """Nobody waits for it any more."""
        ...

    def has_room(self) -> None:
        """Its client has taken a piece."""
        ...


Function = Callable[[Any, _core.AsyncCall], Any]
"""A model's function, for an item of a call."""
Begin = Callable[[_core.AsyncCall, Any, Callable[[], object]], "Started | None"]
"""Begins a call with an item, and calls the last argument at its end; `None`: it has ended already."""


class EventLoop:
    """An event loop on a thread of its own, which starts with the first model."""

    def __init__(self, name: str) -> None:
        """Starts nothing yet."""
        self._name = name
        self._batchers: set[FunctionBatcher] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._landed: list[dict[int, Started]] = []

    def stops(self, batcher: FunctionBatcher) -> None:
        """Stops what is called on it at its end."""
        self._batchers.add(batcher)

    def add(self, port: _core.Port, begin: Begin) -> None:
        """Begins the calls that land at `port`."""
        loop = self._running()
        landed: dict[int, Started] = {}
        self._landed.append(landed)

        def take() -> None:
            for kind, number, call, item in port.take():
                if kind == "call" and call is not None:
                    started = begin(call, item, functools.partial(landed.pop, number, None))
                    if started is not None:
                        landed[number] = started
                elif kind == "closed":
                    loop.remove_reader(port.fileno())
                elif (started := landed.get(number)) is not None:
                    started.left() if kind == "over" else started.has_room()

        loop.call_soon_threadsafe(loop.add_reader, port.fileno(), take)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._thread = threading.Thread(target=run, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Ends the thread, and those of batched functions; calls that still run are cancelled."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return

        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for started in [started for landed in self._landed for started in landed.values()]:
                started.left()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1) if tasks else None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(batcher.stop() for batcher in self._batchers)), 1)
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(finish(), loop)
        thread.join(timeout=5)
        if not thread.is_alive():
            loop.close()


class _Task:
    """A call that runs as a task; around its work, what ends the call where that raises."""

    def __init__(self, call: _core.AsyncCall, name: str, end: Callable[[], object]) -> None:
        self._call = call
        self._name = name
        self._end = end
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._ended)

    def left(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def has_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def answer(self, function: Function, item: Any) -> None:
        """Ends the call with what a coroutine function returns."""
        with self:
            self._call.complete(await function(item, self._call))

    async def stream(self, function: Function, item: Any) -> None:
        """Sends what an asynchronous generator yields until there is no more, or nobody wants it."""
        with self:
            pieces = function(item, self._call)
            try:
                async for piece in pieces:
                    if not await self._put(piece):
                        break
            finally:
                if inspect.isasyncgen(pieces):
                    await pieces.aclose()
            self._call.finish()

    async def _put(self, piece: Any) -> bool:
        """Sends a piece once there is room for it. False where the client has left."""
        taken = self._to_be_taken()
        sent = self._call.put(piece)
        while sent == "full":
            await taken
            taken = self._to_be_taken()
            sent = self._call.put()
        return sent == "sent"

    def _to_be_taken(self) -> asyncio.Future[None]:
        self._room = asyncio.get_running_loop().create_future()
        return self._room

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None:
            if not isinstance(error, asyncio.CancelledError):
                report(self._name, error)
            self._call.fail(error)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._end()
        if task.cancelled():
            # It never began; one that did has ended the call by itself.
            self._call.fail(asyncio.CancelledError())


def running(function: Function, name: str, *, streaming: bool) -> Begin:
    """Runs calls as tasks: of a coroutine function, or of an asynchronous generator function."""

    def begin(call: _core.AsyncCall, item: Any, end: Callable[[], object]) -> Started:
        task = _Task(call, name, end)
        task.start((task.stream if streaming else task.answer)(function, item))
        return task

    return begin


class Handed:
    """A call that was handed to a batcher; stands for the future of its result."""

    def __init__(self, call: _core.AsyncCall, name: str, end: Callable[[], object]) -> None:
        """Of the model `name`; `end` is called once, when it has ended."""
        self._call = call
        self._name = name
        self._end = end
        self._has_left = False
        self.forget: Callable[[], None] | None = None
        """Tells the batcher that nothing is awaited from it any more."""

    def set_result(self, result: Any) -> None:
        """Ends the call."""
        self._finish()
        self._call.complete(result)

    def set_exception(self, error: BaseException) -> None:
        """Ends the call."""
        self._finish()
        if not self._has_left:
            report(self._name, error)
        self._call.fail(error)

    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._has_left

    def left(self) -> None:
        """Takes the call back from the batcher; one that runs already runs to its end."""
        self._has_left = True
        self._finish()
        self._call.fail(asyncio.CancelledError())

    def has_room(self) -> None:
        """Never: its result is no stream."""

    def _finish(self) -> None:
        forget, self.forget = self.forget, None
        if forget is not None:
            forget()
            self._end()


Hand = Callable[[Any, Handed, Priority], Callable[[], None]]
"""Hands an item to a batcher, with the priority of its request, on the running event loop; returns what
`Handed.forget` is to be."""


def handing(hand: Hand, read: Function, name: str) -> Begin:
    """Hands calls to a batcher as they come, each as the item that `read` makes of it."""

    def begin(call: _core.AsyncCall, item: Any, end: Callable[[], object]) -> Started | None:
        handed = Handed(call, name, end)
        try:
            handed.forget = hand(read(item, call), handed, call.priority())
        except BaseException as error:  # noqa: BLE001 - it is the call's
            report(name, error)
            call.fail(error)
            return None
        return handed

    return begin
