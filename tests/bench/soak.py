"""Millions of items through the batchers of Python functions, with the resident memory as it goes.

python tests/bench/soak.py --items 10000000 --faces run,dynamic

Memory must be flat once everything has been used: it fails where the memory after the last tenth is more than
`--allow` MiB above that after the first. That is a bound on leaks, of which the smallest that could matter,
one object an item, would be hundreds of MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trustformers_serve as ts

THREADS = 32
TASKS = 1_000
STEPS = 20
"""How often memory is looked at; the first two are the warm-up."""


def resident_mib() -> float:
    """The resident memory of this process, with what only waits for its collection collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def double(items: list[int]) -> list[int]:
    """The executor: as little as there can be."""
    return [item * 2 for item in items]


async def double_records(records: list[int]) -> list[int]:
    """The same on the loop."""
    return [record * 2 for record in records]


class Course:
    """What memory did in the course of one face's items."""

    def __init__(self, face: str, items: int) -> None:
        """Nothing has run yet."""
        self._face = face
        self._items = items
        self._began = time.perf_counter()
        self.resident: list[float] = []

    def step(self) -> None:
        """Notes and prints the memory after another step's items."""
        self.resident.append(resident_mib())
        done = self._items * len(self.resident)
        rate = done / (time.perf_counter() - self._began)
        line = f"{self._face:8} {done:12,} items {rate:12,.0f}/s {self.resident[-1]:9.2f} MiB"
        print(line, flush=True)

    @property
    def growth(self) -> float:
        """MiB from the end of the first tenth to the end of the last."""
        return self.resident[-1] - self.resident[STEPS // 10 - 1]


def soak_run(items: int) -> Course:
    """Closed-loop threads, which live as long as the course."""
    course = Course("run", items)
    gate = threading.Barrier(THREADS + 1)
    failed: list[int] = []

    def send(batcher: ts.Batcher, start: int) -> None:
        for _ in range(STEPS):
            for item in range(start, start + items // THREADS):
                if batcher.run(item, double) != item * 2:
                    failed.append(item)  # noqa: PERF401 - a list of all would be what grows
            gate.wait()
            gate.wait()

    with ts.Batcher() as batcher:
        for number in range(THREADS):
            threading.Thread(target=send, args=(batcher, number * items)).start()
        for _ in range(STEPS):
            gate.wait()
            course.step()
            gate.wait()
    if failed:
        raise RuntimeError(f"{len(failed)} items got another's result")
    return course


def soak_map(items: int) -> Course:
    """Whole iterables."""
    course = Course("map", items)
    with ts.Batcher() as batcher:
        for _ in range(STEPS):
            for start in range(0, items, 10_000):
                batcher.map(range(start, start + 10_000), double)
            course.step()
    return course


async def _spread(call: Callable[[int], Awaitable[int]], course: Course, items: int) -> None:
    """Tasks that live as long as the course: each new one would itself leave the process a little larger."""
    done = 0

    async def send(start: int) -> None:
        nonlocal done
        for item in range(start, start + STEPS * items // TASKS):
            if await call(item) != item * 2:
                raise RuntimeError(f"{item} got another's result")
            done += 1
            if done % items == 0:
                course.step()

    await asyncio.gather(*(send(number * items) for number in range(TASKS)))


def soak_arun(items: int) -> Course:
    """Tasks of one event loop, through a thread."""
    course = Course("arun", items)
    with ts.Batcher() as batcher:
        asyncio.run(_spread(lambda item: batcher.arun(item, double), course, items))
    return course


def soak_dynamic(items: int) -> Course:
    """Tasks of one event loop, on it."""
    course = Course("dynamic", items)

    async def main() -> None:
        async with ts.DynamicBatcher(double_records) as batcher:

            async def call(record: int) -> int:
                return await (await batcher.submit(record))

            await _spread(call, course, items)

    asyncio.run(main())
    return course


FACES = {"run": soak_run, "map": soak_map, "arun": soak_arun, "dynamic": soak_dynamic}


def main() -> None:
    """Runs the faces one after another, and exits with 1 where one of them grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000, help="items through each face")
    parser.add_argument("--faces", default=",".join(FACES), help="which, of: " + ", ".join(FACES))
    parser.add_argument("--allow", type=float, default=4.0, help="MiB that a face may grow after its warm-up")
    options = parser.parse_args()
    if options.items % (STEPS * TASKS):
        parser.error(f"--items must be a multiple of {STEPS * TASKS:,}")
    courses = {face: FACES[face](options.items // STEPS) for face in options.faces.split(",")}
    for face, course in courses.items():
        print(f"{face:8} grew by {course.growth:+.2f} MiB in the last nine tenths of its items")
    if any(course.growth > options.allow for course in courses.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
