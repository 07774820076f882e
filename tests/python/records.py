"""Functions of record streams that tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from executors import PATIENCE

T = TypeVar("T")
HOUR = 3600.0


async def twice(records: list[int]) -> list[int]:
    return [record * 2 for record in records]


async def soon(awaitable: Awaitable[T]) -> T:
    """What it waits for, which must not take for ever."""
    return await asyncio.wait_for(awaitable, PATIENCE)


async def turns(count: int = 5) -> None:
    """Lets everything happen on the loop that can happen now."""
    for _ in range(count):
        await asyncio.sleep(0)


class HeldBatches:
    """A function that says what it was given and waits to be let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self._entered = asyncio.Semaphore(0)
        self._go = asyncio.Semaphore(0)

    async def __call__(self, records: list[Any]) -> list[Any]:
        self.batches.append(list(records))
        self._entered.release()
        await self._go.acquire()
        return [record * 2 for record in records]

    async def wait_entered(self) -> None:
        await soon(self._entered.acquire())

    def let_go(self, batches: int = 1000) -> None:
        for _ in range(batches):
            self._go.release()
