"""`TokenBatcher`: names of tokens and of cost, and what a record is counted as."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import trustformers_serve as ts
from conftest import ROOT
from records import HOUR, soon, twice


async def lengths(records: list[Any]) -> list[int]:
    return [len(str(record)) for record in records]


async def cost_of(record: Any, said: float | None = None, **options: Any) -> int:
    """What the record was counted as."""
    async with ts.TokenBatcher[Any, int](lengths, batch_timeout_s=HOUR, **options) as batcher:
        future = await batcher.submit(record, estimated_cost=said)
    await future
    return batcher.stats.total_batch_cost


@dataclass
class Both:
    tokens: Any = 3
    cost: Any = 5

    def estimate_tokens(self) -> Any:
        if isinstance(self.tokens, Exception):
            raise self.tokens
        return self.tokens

    def estimate_cost(self) -> Any:
        if isinstance(self.cost, Exception):
            raise self.cost
        return self.cost


class OnlyCost:
    def estimate_cost(self) -> int:
        return 11


def fails(record: Any) -> int:
    raise LookupError(record)


def seven(_: Any) -> int:
    return 7


def eight(_: Any) -> int:
    return 8


def nothing(_: Any) -> None:
    return None


def endless(_: Any) -> float:
    return float("nan")


BAD = LookupError()


@pytest.mark.parametrize(
    ("record", "said", "options", "cost"),
    [
        (Both(), 2, {"token_estimator": seven}, 2),
        (Both(), None, {"token_estimator": seven}, 7),
        (Both(), None, {"cost_estimator": eight}, 8),
        (Both(), None, {"token_estimator": seven, "cost_estimator": eight}, 7),
        (Both(), None, {"token_estimator": fails}, 3),
        # An estimator that gives no cost falls to the next.
        (Both(), None, {"token_estimator": fails, "cost_estimator": eight}, 8),
        (Both(), None, {"token_estimator": nothing, "cost_estimator": eight}, 8),
        (Both(), None, {"token_estimator": endless, "cost_estimator": eight}, 8),
        (Both(), None, {"token_estimator": fails, "cost_estimator": fails}, 3),
        (Both(), None, {}, 3),
        (Both(tokens=BAD), None, {}, 5),
        (Both(tokens=BAD, cost=BAD), None, {"default_cost": 13}, 13),
        (Both(tokens=BAD, cost=BAD), None, {"token_estimator": fails}, 1),
        (OnlyCost(), None, {}, 11),
        ("a text", None, {"default_cost": 13, "default_token_estimate": 17}, 17),
        ("a text", None, {"default_cost": 13}, 13),
        ("a text", None, {}, 1),
        (SimpleNamespace(estimate_tokens=lambda: 19), None, {}, 19),
        (ts.Prompt("12345678"), None, {}, 3),
        # What is no number from 0 is as if it had been raised.
        (Both(tokens="many", cost=-1), None, {"token_estimator": nothing, "default_cost": 4}, 4),
        (Both(tokens=float("nan")), None, {}, 5),
        # A fraction counts up.
        (Both(tokens=2.5), None, {}, 3),
        ("a text", 0.5, {}, 1),
        ("a text", 0, {}, 0),
    ],
)
def test_what_was_said_goes_before_estimators_and_these_before_the_record_and_the_default(
    record: Any, said: float | None, options: dict[str, Any], cost: int
) -> None:
    assert asyncio.run(cost_of(record, said, **options)) == cost


def test_a_type_that_cannot_estimate_does_not_hide_one_that_can() -> None:
    async def main() -> None:
        async with ts.TokenBatcher[Any, int](lengths, default_cost=100) as batcher:
            records = ["text", 1, "text", ts.Prompt("a"), ts.Prompt("b" * 8), "text", Both()]
            futures = await batcher.submit_batch(records)
        await soon(asyncio.gather(*futures))
        assert batcher.stats.total_batch_cost == 4 * 100 + 1 + 3 + 3

    asyncio.run(main())


@pytest.mark.parametrize("said", [-1, float("nan"), "many"])
def test_a_cost_that_is_none_is_refused(said: Any) -> None:
    async def main() -> None:
        async with ts.TokenBatcher(twice) as batcher:
            with pytest.raises(ValueError, match="an estimated cost must be a number from 0, not"):
                await batcher.submit(1, estimated_tokens=said)
            assert batcher.stats.total_submitted == 0

    asyncio.run(main())


@pytest.mark.parametrize("second", [None, seven])
def test_an_estimator_that_is_interrupted_is_not_passed_over(second: Any) -> None:
    def interrupted(record: int) -> int:
        raise KeyboardInterrupt

    async def main() -> None:
        async with ts.TokenBatcher(twice, token_estimator=interrupted, cost_estimator=second) as batcher:
            with pytest.raises(KeyboardInterrupt):
                await batcher.submit(1)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["token_estimator", "cost_estimator"])
def test_an_estimator_that_is_none_is_refused_by_its_own_name(name: str) -> None:
    async def later(record: int) -> int:
        return 1

    for estimator, said in ((3, "be callable, not 3"), (later, "later is a coroutine function")):
        options: dict[str, Any] = {name: estimator}
        with pytest.raises(TypeError, match=f"^{name} must .*{said}"):
            ts.TokenBatcher(twice, **options)


def test_tokens_go_before_cost_in_submit_too() -> None:
    async def main() -> None:
        async with ts.TokenBatcher(twice) as batcher:
            await batcher.submit(1, estimated_tokens=2, estimated_cost=30)
            await batcher.submit(1, estimated_cost=400)
            await batcher.submit_batch([1, 2], estimated_tokens=[5000, 5000], estimated_cost=[1, 1])
            await batcher.submit_batch([1], estimated_cost=[60000])
        assert batcher.stats.total_batch_cost == 2 + 400 + 10000 + 60000

    asyncio.run(main())


@pytest.mark.parametrize("target", ["target_batch_tokens", "target_batch_cost"])
@pytest.mark.parametrize("function", ["inference_fn", "process_fn"])
def test_a_batch_ends_at_its_tokens(target: str, function: str) -> None:
    batches: list[list[int]] = []

    async def process(prompts: list[ts.Prompt]) -> list[str]:
        batches.append([prompt.estimate_tokens() for prompt in prompts])
        return [prompt.text for prompt in prompts]

    async def main() -> None:
        options: dict[str, Any] = {function: process, target: 10, "batch_timeout_s": HOUR}
        async with ts.TokenBatcher[ts.Prompt, str](**options) as batcher:
            futures = await batcher.submit_batch(
                [ts.Prompt("x" * 4 * count) for count in (3, 5, 20, 4, 4, 4)]
            )
            assert await soon(futures[2]) == "x" * 80

    asyncio.run(main())
    assert batches == [[4, 6], [21], [5, 5], [5]]


def test_a_thousand_concurrent_callers_get_exactly_their_own_results() -> None:
    sizes: list[int] = []

    async def texts(prompts: list[ts.Prompt]) -> list[str]:
        sizes.append(len(prompts))
        await asyncio.sleep(0)
        return [prompt.text.upper() for prompt in prompts]

    async def call(batcher: ts.TokenBatcher[ts.Prompt, str], number: int) -> bool:
        future = await batcher.submit(ts.Prompt(f"prompt {number}"))
        return await future == f"PROMPT {number}"

    async def main() -> None:
        # The queue is small, so that callers wait for a place as well.
        async with ts.TokenBatcher(texts, target_batch_tokens=100, max_queue_size=50) as batcher:
            assert all(await soon(asyncio.gather(*(call(batcher, number) for number in range(1000)))))
            assert batcher.stats.total_completed == 1000

    asyncio.run(main())
    assert sum(sizes) == 1000
    assert len(sizes) < 1000


def test_the_number_of_tokens_goes_before_the_cost() -> None:
    async def main() -> None:
        limits: dict[str, Any] = {"target_batch_tokens": 2, "target_batch_cost": 1, "batch_timeout_s": HOUR}
        async with ts.TokenBatcher(twice, **limits) as batcher:
            await soon(asyncio.gather(*await batcher.submit_batch(range(4))))
            assert batcher.stats.total_batches == 2

    asyncio.run(main())


def test_it_takes_one_function() -> None:
    with pytest.raises(TypeError, match="TokenBatcher requires either `inference_fn` or `process_fn`"):
        ts.TokenBatcher()
    with pytest.raises(TypeError, match="not both"):
        ts.TokenBatcher(twice, twice)
    assert repr(ts.TokenBatcher(process_fn=twice)) == "<TokenBatcher of twice, not running>"


def test_protocols_are_checked_by_what_a_record_has() -> None:
    prompt = ts.Prompt("12345678")
    assert prompt.estimate_tokens() == 3
    assert ts.Prompt("").estimate_tokens() == 1
    assert isinstance(prompt, ts.TokenEstimator)
    assert not isinstance(prompt, ts.CostEstimator)
    assert isinstance(OnlyCost(), ts.CostEstimator)
    assert not isinstance("text", (ts.TokenEstimator, ts.CostEstimator))


def test_it_says_that_it_is_not_running_by_its_own_name() -> None:
    with pytest.raises(RuntimeError, match="this TokenBatcher is not running"):
        asyncio.run(ts.TokenBatcher(twice).submit(1))


def test_the_example_works() -> None:
    command = [sys.executable, str(ROOT / "examples/token_batcher.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.startswith("1000 of 1000 tasks got their own answers\n")
