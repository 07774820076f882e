"""`DynamicBatcher`: which functions it takes, and what the callers of a batch get where one fails."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trustformers_serve as ts
from records import HOUR, soon, turns, twice

LIMITS: dict[str, Any] = {"max_batch_size": 3, "batch_timeout_s": HOUR}


async def outcomes(function: Any) -> list[Any]:
    """What the three records of a batch and one of the next end with."""
    async with ts.DynamicBatcher[Any, Any](function, **LIMITS) as batcher:
        futures = await batcher.submit_batch(range(3))
        results = await soon(asyncio.gather(*futures, return_exceptions=True))
        last = await batcher.submit(7)
    return [*results, *(await asyncio.gather(last, return_exceptions=True))]


def both(function: Callable[[list[int]], Any]) -> list[Any]:
    """The function itself, which runs off the loop, and a coroutine function that does the same."""

    @functools.wraps(function)
    async def on_the_loop(records: list[int]) -> Any:
        return function(records)

    return [function, on_the_loop]


class OddError(Exception):
    """Takes more than a message, and says something else."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}, because of {self.reason}"


@pytest.mark.parametrize(
    "error", [ValueError("the reason"), OddError(7, "the reason"), OSError(2, "the reason")]
)
def test_what_a_function_raises_reaches_every_member_by_its_type_and_as_a_failure(error: Exception) -> None:
    def raising(records: list[int]) -> list[int]:
        if len(records) == 3:
            raise error
        return records

    for function in both(raising):
        *failed, last = asyncio.run(outcomes(function))
        assert last == 7
        for failure in failed:
            assert isinstance(failure, ts.ExecutorError)
            assert isinstance(failure, type(error) if not isinstance(error, OSError) else ts.ExecutorError)
            assert "raising raised" in failure.message
            assert "the reason" in failure.message
            assert failure.__cause__ is error
            assert getattr(failure, "code", None) == getattr(error, "code", None)
        assert len({id(failure) for failure in failed}) == 3, "each has its own"


@pytest.mark.parametrize(
    "error", [StopIteration(5), SystemExit(3), KeyboardInterrupt(), StopAsyncIteration()]
)
def test_what_is_no_ordinary_exception_does_not_come_out_of_the_thread(error: BaseException) -> None:
    def raising(records: list[int]) -> list[int]:
        raise error

    results = asyncio.run(outcomes(raising))
    assert all(isinstance(result, ts.ExecutorError) for result in results)


def test_a_function_that_ends_the_program_on_the_loop_does_so() -> None:
    async def leaving(records: list[int]) -> list[int]:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        asyncio.run(outcomes(leaving))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (list[int](), "wrong returned 0 results for a batch of 3"),
        ([1, 2], "wrong returned 2 results for a batch of 3"),
        ((1, 2, 3, 4), "wrong returned 4 results for a batch of 3"),
        (None, "wrong returned None for a batch of 3"),
        ("abc", "wrong returned str for a batch of 3"),
        ({1: 2, 3: 4, 5: 6}, "wrong returned dict for a batch of 3"),
        (7, "wrong returned int for a batch of 3"),
        ((number for number in range(3)), "wrong returned generator for a batch of 3"),
    ],
)
def test_what_is_no_result_for_each_record_is_an_error_of_every_member(returned: Any, said: str) -> None:
    def wrong(records: list[int]) -> Any:
        return returned if len(records) == 3 else records

    for function in both(wrong):
        *failed, last = asyncio.run(outcomes(function))
        assert last == 7
        for failure in failed:
            assert isinstance(failure, ts.BatchResultsError)
            assert isinstance(failure, ValueError)
            assert said in str(failure)
        assert len({id(failure) for failure in failed}) == 3, "each has its own"


def test_an_exception_among_the_results_fails_its_record_alone() -> None:
    def fussy(records: list[int]) -> list[Any]:
        return [KeyError("no") if record == 1 else record for record in records]

    for function in both(fussy):
        first, second, *rest = asyncio.run(outcomes(function))
        assert (first, rest) == (0, [2, 7])
        assert isinstance(second, KeyError)


def test_a_function_may_change_its_list() -> None:
    def emptying(records: list[int]) -> list[int]:
        results = [record * 2 for record in records]
        records.clear()
        return results

    for function in both(emptying):
        assert asyncio.run(outcomes(function)) == [0, 2, 4, 14]


def test_a_function_that_raises_as_if_cancelled_fails_its_batch_alone() -> None:
    async def cancelling(records: list[int]) -> list[int]:
        if len(records) == 3:
            raise asyncio.CancelledError
        return records

    *failed, last = asyncio.run(outcomes(cancelling))
    assert last == 7
    assert all(isinstance(failure, ts.ExecutorError) for failure in failed)


def test_a_function_that_takes_something_else_says_so_to_its_callers() -> None:
    async def nothing() -> list[int]:
        return []

    results = asyncio.run(outcomes(nothing))
    assert all(isinstance(result, TypeError) and "nothing" in str(result) for result in results)


def test_a_function_may_bring_records_to_its_own_batcher() -> None:
    async def main() -> None:
        brought: list[asyncio.Future[int]] = []

        async def bringing(records: list[int]) -> list[int]:
            if records == [0, 1, 2]:
                brought.extend(await batcher.submit_batch([3, 4, 5]))
            return records

        batcher = ts.DynamicBatcher(bringing, **LIMITS)
        async with batcher:
            assert await soon(asyncio.gather(*await batcher.submit_batch(range(3)))) == [0, 1, 2]
            assert await soon(asyncio.gather(*brought)) == [3, 4, 5]

    asyncio.run(main())


def test_a_function_that_stops_its_own_batcher_is_told_that_it_would_wait_for_itself() -> None:
    async def stopping(records: list[int]) -> list[int]:
        await batcher.stop()
        return records

    def stopping_later(records: list[int]) -> Any:
        return stopping(records)

    for function in (stopping, stopping_later):
        batcher = ts.DynamicBatcher(function, **LIMITS)

        async def main(batcher: ts.DynamicBatcher[int, int] = batcher) -> None:
            async with batcher:
                futures = await batcher.submit_batch(range(3))
                for error in await soon(asyncio.gather(*futures, return_exceptions=True)):
                    assert isinstance(error, ts.ExecutorError)
                    assert "`stop` was called inside" in str(error)
                assert batcher.is_running

        asyncio.run(main())


def test_a_function_may_have_its_batcher_stopped_after_it() -> None:
    async def main() -> None:
        stops: list[asyncio.Task[None]] = []

        async def last(records: list[int]) -> list[int]:
            stops.append(asyncio.create_task(batcher.stop()))
            await turns()
            return records

        batcher = ts.DynamicBatcher(last, **LIMITS)
        await batcher.start()
        futures = await batcher.submit_batch(range(3))
        assert await soon(asyncio.gather(*futures)) == [0, 1, 2]
        await soon(stops[0])
        assert not batcher.is_running

    asyncio.run(main())


def test_a_function_runs_in_the_context_in_which_the_batcher_was_started() -> None:
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose")

    def look(records: list[int]) -> list[str]:
        return [whose.get()] * len(records)

    async def main(function: Any) -> None:
        whose.set("the batcher's")
        async with ts.DynamicBatcher[int, str](function, **LIMITS) as batcher:
            whose.set("the caller's")
            futures = await batcher.submit_batch(range(3))
            assert await soon(asyncio.gather(*futures)) == ["the batcher's"] * 3

    for function in both(look):
        asyncio.run(main(function))


def test_a_loop_that_makes_no_task_fails_the_batch_and_goes_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        batcher = ts.DynamicBatcher(twice, **LIMITS)
        await batcher.start()
        loop.set_task_factory(refuse)
        futures = await batcher.submit_batch(range(6))
        await asyncio.wait(futures)
        loop.set_task_factory(None)
        last = await batcher.submit(7)
        await batcher.stop()
        assert [str(future.exception()) for future in futures] == ["no more tasks"] * 6
        assert last.result() == 14

    def refuse(loop: asyncio.AbstractEventLoop, coroutine: Any, **_: Any) -> Any:
        coroutine.close()
        raise MemoryError("no more tasks")

    asyncio.run(main())


class Model:
    def plain(self, records: list[int]) -> list[int]:
        return [record * 2 for record in records]

    async def __call__(self, records: list[int]) -> list[int]:
        return self.plain(records)


def test_any_callable_of_a_list_will_do() -> None:
    async def scaled(factor: int, records: list[int]) -> list[int]:
        return [record * factor for record in records]

    for function in (Model(), Model().plain, functools.partial(scaled, 2), functools.partial(Model()), twice):
        assert asyncio.run(outcomes(function)) == [0, 2, 4, 14]


def generates(records: list[int]) -> Iterator[int]:
    yield from records


async def generates_later(records: list[int]) -> AsyncIterator[int]:
    for record in records:
        yield record


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (None, "DynamicBatcher requires either"),
        (7, "DynamicBatcher requires either .* not 7"),
        (list, "DynamicBatcher requires either .* not <class 'list'>"),
        (generates, "generates generates; DynamicBatcher takes a function that returns a list"),
        (generates_later, "generates_later generates"),
    ],
)
def test_what_can_run_no_batch_is_refused_at_once(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ts.DynamicBatcher(function)


def test_a_batcher_without_a_function_says_what_it_requires() -> None:
    with pytest.raises(TypeError, match="DynamicBatcher requires either .* as `process_fn`"):
        ts.DynamicBatcher()


@pytest.mark.parametrize(
    "limit",
    [
        {"target_batch_cost": 0},
        {"target_batch_cost": 2**31},
        {"default_cost": -1},
        {"max_batch_size": 0},
        {"min_batch_size": 0},
        {"min_batch_size": 257},
        {"batch_timeout_s": -0.1},
        {"batch_timeout_s": float("nan")},
        {"batch_timeout_s": float("inf")},
        {"max_queue_size": 0},
        {"prefetch_batches": -1},
    ],
)
def test_a_limit_out_of_range_is_refused_by_its_name(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(limit))} must be"):
        ts.DynamicBatcher(twice, **limit)


class Estimator:
    async def __call__(self, record: int) -> int:
        return record


async def estimates_later(record: int) -> int:
    return record


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (3, "must be callable, not 3"),
        (estimates_later, "must return a number: estimates_later is a coroutine function"),
        (functools.partial(estimates_later), "must return a number: estimates_later is a coroutine function"),
        (Estimator(), "must return a number: Estimator is a coroutine function"),
        (generates, "must return a number: generates is a generator function"),
    ],
)
def test_an_estimator_that_gives_no_number_is_refused_at_once(estimator: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"^cost_estimator {said}"):
        ts.DynamicBatcher(twice, cost_estimator=estimator)
