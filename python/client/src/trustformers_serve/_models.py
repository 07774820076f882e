"""What an `App` makes of a function: one of an item, batched where that is so, with errors that name it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from trustformers_serve import _core, _functions
from trustformers_serve.batching import FunctionBatcher, Settings, batched
from trustformers_serve.errors import DecorationError, InferenceError

if TYPE_CHECKING:
    import threading

    from trustformers_serve._functions import Shape

Function = Callable[..., Any]


def takes_batches(function: Function, shape: Shape, wanted: bool | None) -> bool:
    """Whether a model's function takes a whole batch in a call, as its annotations or `wanted` say.

    Raises:
        DecorationError: They leave it open, or contradict each other.
    """
    name = _functions.name(function)
    kinds = list(shape.inputs.values())
    if shape.streaming or len(kinds) != 1:
        if wanted:
            why = "streams" if shape.streaming else f"has {len(kinds)} parameters"
            raise DecorationError(f"{name} {why}, and is never batched: leave out batched=True")
        return False
    of_list, to_list = (_functions.is_list(kind) for kind in (kinds[0], shape.output))
    if wanted:
        if not (of_list or kinds[0] is Any) or not (to_list or not shape.annotated):
            raise DecorationError(f"{name} must take a list and return one to be batched")
        return True
    if wanted is False or not of_list:
        return False
    same = _functions.shape_of_one(shape)
    if not shape.annotated or (to_list and list(same.inputs.values()) == [same.output]):
        raise DecorationError(
            f"{name} takes a list, and returns one of the same or does not say: "
            "batched=True if that is a batch of items, batched=False if it is one item"
        )
    return to_list


def per_batch(function: Function, name: str, settings: Settings) -> Any:
    """The coroutine function of one item of a function that takes batches."""
    guarded = _guarded_batch(function, name)
    return batched(guarded, FunctionBatcher(guarded, settings))


def alone(function: Function, name: str) -> Any:
    """As `per_batch`, with each item in a batch of its own."""
    guarded = _guarded_batch(function, name)
    # Takes no items: it only checks results as those of batches are.
    core = _core.Batcher(1, 0.0, "block", 1, _no_thread)
    if _functions.is_coroutine(function):

        async def call(item: Any) -> Any:
            results = await guarded([item])

            def returned(items: list[Any]) -> Any:  # noqa: ARG001 - they were run
                return results

            return core.alone(item, functools.update_wrapper(returned, function))
    else:

        async def call(item: Any) -> Any:
            return await asyncio.to_thread(core.alone, item, guarded)

    return functools.update_wrapper(call, function)


def per_item(function: Function, name: str) -> Any:
    """A function of one item, with errors that name the model."""
    if _functions.is_coroutine(function):

        async def call_coroutine(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                raise failed(name, error) from error

        return functools.update_wrapper(call_coroutine, function)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise failed(name, error) from error

    return functools.update_wrapper(call, function)


def per_stream(function: Function, name: str) -> Any:
    """A generator function, or an asynchronous one, with errors that name the model.

    `function` is one itself, or returns an iterator; a coroutine function, an asynchronous iterator.
    """
    if _functions.is_coroutine(function) or _functions.is_async_generator(function):

        async def stream_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            try:
                pieces = function(*args, **kwargs)
                if _functions.is_coroutine(function):
                    pieces = await cast("Awaitable[Any]", pieces)
                async for piece in pieces:
                    yield piece
            except Exception as error:
                raise failed(name, error) from error

        return functools.update_wrapper(stream_async, function)

    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from function(*args, **kwargs)
        except Exception as error:
            raise failed(name, error) from error

    return functools.update_wrapper(stream, function)


async def pieces(stream: Any) -> AsyncIterator[Any]:
    """Those of a generator of either kind; a plain one runs off the event loop."""
    if hasattr(stream, "__aiter__"):
        async for piece in stream:
            yield piece
        return
    end = object()
    try:
        while (piece := await asyncio.to_thread(next, stream, end)) is not end:
            yield piece
    finally:
        stream.close()


def failed(name: str, error: Exception) -> InferenceError:
    """The error of a model whose function raised `error`."""
    failure = InferenceError(f"{name} inference failed: {str(error) or repr(error)}")
    failure.__cause__ = error
    return failure


def _guarded_batch(function: Function, name: str) -> Any:
    """Fails each item of a batch where the function raises, so that each has an error of its own."""
    if _functions.is_coroutine(function):

        async def guarded_coroutine(items: list[Any]) -> Any:
            count = len(items)
            try:
                return await function(items)
            except Exception as error:  # noqa: BLE001 - it is the callers'
                return [failed(name, error) for _ in range(count)]

        return functools.update_wrapper(guarded_coroutine, function)

    def guarded(items: list[Any]) -> Any:
        count = len(items)
        try:
            return function(items)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            return [failed(name, error) for _ in range(count)]

    return functools.update_wrapper(guarded, function)


def _no_thread(core: _core.Batcher) -> threading.Thread:
    raise RuntimeError(f"{core!r} takes no items")
