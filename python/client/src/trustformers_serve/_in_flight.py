"""Calls in flight, on any number of event loops, and waiting for their ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Generator
from typing import Any


class InFlight:
    """The calls that have begun and not ended."""

    def __init__(self) -> None:
        """None yet."""
        self._tasks: dict[concurrent.futures.Future[None], asyncio.Task[Any] | None] = {}

    @contextlib.contextmanager
    def one(self) -> Generator[Callable[[], None], None, None]:
        """A call of the running task, from here to the end of the block.

        What it gives is called when another task may have taken the call over, as one may a stream.
        """
        end: concurrent.futures.Future[None] = concurrent.futures.Future()
        # So that who no longer waits for it does not end it.
        end.set_running_or_notify_cancel()

        def resumed() -> None:
            self._tasks[end] = asyncio.current_task()

        resumed()
        try:
            yield resumed
        finally:
            del self._tasks[end]
            end.set_result(None)

    def ended(self) -> asyncio.Future[Any]:
        """Done when the calls that run now have ended.

        Nothing is waited for that would wait for this, or that nobody goes on with: calls of the running
        task, streams whose reader has ended, and what a closed event loop has left.
        """
        here = asyncio.current_task()
        ends = [
            end
            for end, task in list(self._tasks.items())
            if task is None or not (task is here or task.done() or task.get_loop().is_closed())
        ]
        return asyncio.gather(*map(asyncio.wrap_future, ends))
