"""`Batcher`, `DynamicBatcher` and `batch` beside what they are made against: make bench-python.

Each item goes through the scheduler. Closed-loop threads are beside the same threads that hand their items
to one worker under a bare lock and condition; asyncio callers beside the bare round trip of a future, without
any logic, and beside batchers of plain asyncio, all of them with the same limits (see `asyncio_batchers`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import asyncio_batchers
import trustformers_serve as ts


def double(items: list[int]) -> list[int]:
    """The executor: as little as there can be."""
    return [item * 2 for item in items]


def spread(call: Callable[[int], int], threads: int, items: int) -> float:
    """Items a second of so many threads, each of which sends its next item when it has its answer."""

    def send(start: int) -> None:
        for item in range(start, start + items // threads):
            if call(item) != item * 2:
                raise RuntimeError("somebody got another's result")

    workers = [threading.Thread(target=send, args=(index * items,)) for index in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return items / (time.perf_counter() - began)


class HandOff:
    """A queue under a lock and a condition, and a worker that answers all that waits: no limits, no times."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[list[int]] = []
        self._locks: list[threading.Lock] = []
        self._open = True
        self._local = threading.local()
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def call(self, item: int) -> int:
        """The answer to an item."""
        lock = getattr(self._local, "lock", None)
        if lock is None:
            lock = self._local.lock = threading.Lock()
            lock.acquire()
        slot = [item]
        with self._condition:
            self._waiting.append(slot)
            self._locks.append(lock)
            self._condition.notify()
        lock.acquire()
        return slot[0]

    def close(self) -> None:
        """Ends the worker."""
        with self._condition:
            self._open = False
            self._condition.notify()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._waiting:
                    if not self._open:
                        return
                    self._condition.wait()
                waiting, self._waiting = self._waiting, []
                locks, self._locks = self._locks, []
            for slot, lock in zip(waiting, locks, strict=True):
                slot[0] *= 2
                lock.release()


TARGETS = [
    ("Batcher.map", None, 100_000.0),
    ("Batcher, 32 threads", "hand-off, 32 threads", 0.8),
    ("Batcher, 1,000 tasks", "bare future, 1,000 tasks", 0.8),
    ("@batch, 1,000 tasks", "bare future, 1,000 tasks", 0.8),
    ("DynamicBatcher, 1,000 tasks", "bare future, 1,000 tasks", 0.8),
    ("DynamicBatcher, 1,000 tasks", "wait_for per record, 1,000 tasks", 2.0),
]
"""What is wanted of a rate, by itself or beside another's of the same round."""


def measure(items: int) -> dict[str, float]:
    """Items a second by what was measured, side by side."""
    found: dict[str, float] = {}
    for threads in (32, 512):
        hand_off = HandOff()
        found[f"hand-off, {threads} threads"] = spread(hand_off.call, threads, items)
        hand_off.close()
        with ts.Batcher() as batcher:
            run = batcher.run
            found[f"Batcher, {threads} threads"] = spread(
                lambda item, run=run: run(item, double), threads, items
            )
            found[f"Batcher, {threads} threads, p99 ms"] = batcher.metrics().p99_ms
    with ts.Batcher() as batcher:
        began = time.perf_counter()
        batcher.map(range(4 * items), double)
        found["Batcher.map"] = 4 * items / (time.perf_counter() - began)
    return found | asyncio.run(asyncio_batchers.measure(1000, items))


def report(rounds: list[dict[str, float]]) -> None:
    """Prints medians with their ranges, and what became of the targets."""

    def line(name: str, values: list[float]) -> str:
        values.sort()
        return f"{name:48} {values[len(values) // 2]:12,.2f}   ({values[0]:,.2f} to {values[-1]:,.2f})"

    for name in rounds[0]:
        print(line(name, [found[name] for found in rounds]))
    for name, beside, target in TARGETS:
        shares = [found[name] / (1 if beside is None else found[beside]) for found in rounds]
        of = name if beside is None else f"{name} / {beside}"
        print(line(of, shares), f" target {target:,}")
    if not any(name.startswith(asyncio_batchers.FLYTE) for name in rounds[0]):
        print(f"{asyncio_batchers.FLYTE} is left out: it could not be installed or imported")


def main() -> None:
    """Prints the medians of several rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=64_000, help="items in each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the rounds")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        rounds.append(measure(options.items))
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    report(rounds)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
