"""`max_item_bytes`: what counts, and that what is too large is refused before it is queued."""

from __future__ import annotations

import array
import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import trustformers_serve as ts
from executors import PATIENCE, double

LIMIT = 1_000_000
LARGE = LIMIT + 1


@dataclasses.dataclass
class Record:
    name: str
    pixels: Any


def count(items: list[Any]) -> list[int]:
    return [1] * len(items)


def itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "item",
    [
        bytes(LARGE),
        bytearray(LARGE),
        memoryview(bytes(LARGE)),
        array.array("b", bytes(LARGE)),
        "x" * LARGE,
        "🦊" * (LARGE // 4 + 1),
        np.zeros(LARGE, np.uint8),
        np.zeros(3 << 30, np.uint8),
        torch.zeros(LARGE, dtype=torch.uint8),
        torch.empty(3 << 30, dtype=torch.uint8, device="meta"),
        [bytes(LARGE // 2), bytes(LARGE // 2 + 1)],
        {"deep": [({"image": np.zeros(LARGE, np.uint8)},)]},
        {bytes(LARGE): 1},
        Record("a", bytes(LARGE)),
        [0] * LARGE,
    ],
    ids=lambda item: type(item).__name__,
)
def test_an_item_above_the_limit_is_refused_by_every_way_in(item: Any) -> None:
    with ts.Batcher(max_item_bytes=LIMIT) as batcher:
        for call in (batcher.run, batcher.submit, lambda item, executor: batcher.map([item], executor)):
            with pytest.raises(ts.ItemTooLargeError, match="count has more than max_item_bytes = 1,000,000"):
                call(item, count)
        with pytest.raises(ts.ItemTooLargeError):
            asyncio.run(batcher.arun(item, count))
        assert batcher.metrics().items == 0
        assert batcher.run(b"small", count) == 1


@pytest.mark.parametrize(
    "item",
    [
        7,
        None,
        bytes(LIMIT // 2),
        "x" * (LIMIT // 2),
        np.zeros(LIMIT, np.uint8),
        [1.0] * 1000,
        Record("a", [bytes(100)]),
        Record,
        itself(),
        object(),
    ],
    ids=lambda item: type(item).__name__,
)
def test_an_item_within_the_limit_runs(item: Any) -> None:
    with ts.Batcher(max_item_bytes=LIMIT) as batcher:
        assert batcher.run(item, count) == 1
        assert batcher.submit(item, count).result(PATIENCE) == 1
        assert batcher.map([item], count) == [1]
        assert asyncio.run(batcher.arun(item, count)) == 1


def test_what_is_in_a_container_twice_counts_once() -> None:
    inner = [bytes(LIMIT // 2)]
    with ts.Batcher(max_item_bytes=LIMIT) as batcher:
        assert batcher.run([inner] * 10, count) == 1


def test_map_puts_the_refusal_in_its_place_where_exceptions_are_wanted() -> None:
    def items() -> Any:
        for index in range(100):
            yield bytes(LARGE) if index % 50 == 7 else b"small"

    with ts.Batcher(max_item_bytes=LIMIT) as batcher:
        results = batcher.map(items(), count, return_exceptions=True, progress=True)
    refused = [index for index, result in enumerate(results) if isinstance(result, ts.ItemTooLargeError)]
    assert refused == [7, 57]
    assert len(results) == 100


def test_decorated_functions_have_the_same_limit() -> None:
    @ts.autobatch(max_wait_ms=0, max_item_bytes=LIMIT)
    def by_threads(items: list[Any]) -> list[int]:
        return count(items)

    @ts.batch(max_wait_time=0, max_item_bytes=LIMIT)
    async def by_tasks(items: list[Any]) -> list[int]:
        return count(items)

    async def both(item: Any) -> int:
        return await by_tasks(item)

    for function, name in ((by_threads, "by_threads"), (lambda item: asyncio.run(both(item)), "by_tasks")):
        with pytest.raises(ts.ItemTooLargeError, match=f"{name} has more than max_item_bytes = 1,000,000"):
            function(bytes(LARGE))
        assert function(b"small") == 1
    assert by_threads.batcher.metrics().items == 1
    assert [metrics.items for metrics in by_tasks.batcher.metrics()] == [1]
    for decorator in (ts.autobatch, ts.batch):
        with pytest.raises(ValueError, match="max_item_bytes"):
            decorator(max_item_bytes=-1)


def test_without_a_limit_nothing_is_too_large() -> None:
    with ts.Batcher() as batcher:
        assert batcher.run(np.zeros(3 << 30, np.uint8), count) == 1


def test_results_need_not_be_picklable_because_they_cross_no_process() -> None:
    with ts.Batcher() as batcher:
        made = batcher.run(4, lambda items: [lambda item=item: double([item]) for item in items])
        assert made() == [8]


def test_the_limit_is_checked_and_shown() -> None:
    with pytest.raises(ValueError, match="max_item_bytes"):
        ts.Batcher(max_item_bytes=-1)
    assert "max_item_bytes=5" in repr(ts.Batcher(max_item_bytes=5))
    assert "max_item_bytes" not in repr(ts.Batcher())
