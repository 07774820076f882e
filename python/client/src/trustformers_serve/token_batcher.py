"""`TokenBatcher`: batches of so many tokens, of prompts that know or are told how many they have."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from trustformers_serve._costs import check_estimator, first_of
from trustformers_serve.dynamic_batcher import DynamicBatcher, ProcessFunction

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class TokenEstimator(Protocol):
    """A record that knows how many tokens it has."""

    def estimate_tokens(self) -> int:
        """How many tokens it has, about."""
        ...


@dataclass
class Prompt:
    """A text for a language model, of about a token every four characters."""

    text: str

    def estimate_tokens(self) -> int:
        """How many tokens the text has, about; at least 1."""
        return len(self.text) // 4 + 1


class TokenBatcher(DynamicBatcher[T, R]):
    """A `DynamicBatcher` whose costs are tokens.

    async def generate(prompts: list[Prompt]) -> list[str]: ...

    async with TokenBatcher(generate, target_batch_tokens=8192) as batcher:
        future = await batcher.submit(Prompt("Once upon a time"))
    """

    def __init__(
        self,
        inference_fn: ProcessFunction[T, R] | None = None,
        process_fn: ProcessFunction[T, R] | None = None,
        token_estimator: Callable[[T], int] | None = None,
        cost_estimator: Callable[[T], int] | None = None,
        target_batch_tokens: int | None = None,
        target_batch_cost: int = 32_000,
        default_token_estimate: int | None = None,
        default_cost: int = 1,
        max_batch_size: int = 256,
        min_batch_size: int = 1,
        batch_timeout_s: float = 0.05,
        max_queue_size: int = 5_000,
        prefetch_batches: int = 2,
    ) -> None:
        """As `DynamicBatcher`, with two names for what is counted: that of tokens goes before that of cost.

        Args:
            inference_fn: Runs a batch: a coroutine function, or a plain one, which runs on a thread.
            process_fn: The same under its other name; one of the two is given.
            token_estimator: The tokens of a record, where `submit` is not told.
            cost_estimator: The same under its other name, asked where `token_estimator` gives no cost.
            target_batch_tokens: The number of tokens at which a batch ends.
            target_batch_cost: The same under its other name.
            default_token_estimate: The tokens of a record of which nothing else is known.
            default_cost: The same under its other name.
            max_batch_size: Most records in a batch.
            min_batch_size: A smaller batch is not assembled ahead.
            batch_timeout_s: Longest wait of a record for others to join it, in seconds.
            max_queue_size: Most records behind the batches.
            prefetch_batches: Batches assembled ahead while one runs.

        Raises:
            TypeError: There is no function, or two, or it generates, or an estimator returns no number.
            ValueError: A limit is out of range.
        """
        name = type(self).__name__
        if inference_fn is not None and process_fn is not None:
            raise TypeError(f"{name} takes `inference_fn` or `process_fn`, not both")
        function = inference_fn if inference_fn is not None else process_fn
        if function is None:
            raise TypeError(f"{name} requires either `inference_fn` or `process_fn`")
        check_estimator("token_estimator", token_estimator)
        check_estimator("cost_estimator", cost_estimator)
        if cost_estimator is None:
            cost_estimator = token_estimator
        elif token_estimator is not None:
            cost_estimator = functools.partial(first_of, token_estimator, cost_estimator)
        super().__init__(
            function,
            cost_estimator,
            target_batch_cost if target_batch_tokens is None else target_batch_tokens,
            default_cost if default_token_estimate is None else default_token_estimate,
            max_batch_size,
            min_batch_size,
            batch_timeout_s,
            max_queue_size,
            prefetch_batches,
        )

    async def submit(
        self, record: T, *, estimated_tokens: float | None = None, estimated_cost: float | None = None
    ) -> asyncio.Future[R]:
        """As `DynamicBatcher.submit`; `estimated_tokens` goes before `estimated_cost`."""
        return await super().submit(
            record, estimated_cost=estimated_cost if estimated_tokens is None else estimated_tokens
        )

    async def submit_batch(
        self,
        records: Iterable[T],
        *,
        estimated_tokens: Sequence[float] | None = None,
        estimated_cost: Sequence[float] | None = None,
    ) -> list[asyncio.Future[R]]:
        """As `DynamicBatcher.submit_batch`; `estimated_tokens` goes before `estimated_cost`."""
        return await super().submit_batch(
            records, estimated_cost=estimated_cost if estimated_tokens is None else estimated_tokens
        )
