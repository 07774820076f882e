"""Executors that tests share, and what waiting for them takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0
HOUR_MS = 3_600_000.0


def double(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


class Held:
    """An executor that says what it was given and waits to be let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.go.acquire(timeout=PATIENCE)
        return double(items)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)

    def let_go(self, batches: int = 100) -> None:
        self.go.release(batches)


def own_threads() -> set[threading.Thread]:
    """Those that the package has started in this process."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(("serve-", "trustformers-"))}


def until(holds: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.001)


def raising(items: list[int]) -> Any:
    raise ValueError("the reason")
