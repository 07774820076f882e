"""What an `App` makes of a function: one of an item, batched where that is so, with errors that name it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

from trustformers_serve import _core, _functions, _threads
from trustformers_serve.batching import FunctionBatcher, Settings, batched
from trustformers_serve.errors import (
    BreakerOpenError,
    DeadlineExceededError,
    DecorationError,
    InferenceError,
    InvalidInputError,
    ItemTooLargeError,
    OverloadedError,
    ShuttingDownError,
)

if TYPE_CHECKING:
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
            return await _threads.run(core.alone, item, guarded)

    return functools.update_wrapper(call, function)


def per_item(function: Function, name: str) -> Any:
    """A function of one item, with errors that name the model."""
    failures = _Failures(name)
    if _functions.is_coroutine(function):

        async def call_coroutine(*args: Any, **kwargs: Any) -> Any:
            with failures:
                return await function(*args, **kwargs)

        return functools.update_wrapper(call_coroutine, function)

    def call(*args: Any, **kwargs: Any) -> Any:
        with failures:
            return function(*args, **kwargs)

    return functools.update_wrapper(call, function)


def per_stream(function: Function, name: str) -> Any:
    """A generator function, or an asynchronous one, with errors that name the model.

    `function` is one itself, or returns an iterator; a coroutine function, an asynchronous iterator.
    """
    failures = _Failures(name)
    if _functions.is_coroutine(function) or _functions.is_async_generator(function):

        async def stream_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with failures:
                pieces = function(*args, **kwargs)
                if _functions.is_coroutine(function):
                    pieces = await cast("Awaitable[Any]", pieces)
                async with _closed_after(pieces):
                    async for piece in pieces:
                        yield piece

        return functools.update_wrapper(stream_async, function)

    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with failures:
            yield from function(*args, **kwargs)

    return functools.update_wrapper(stream, function)


def _closed_after(stream: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """What closes an asynchronous generator at once, also where its reader leaves."""
    return contextlib.aclosing(stream) if hasattr(stream, "aclose") else contextlib.nullcontext()


async def pieces(stream: Any) -> AsyncGenerator[Any, None]:
    """Those of a generator of either kind; a plain one runs off the event loop."""
    if hasattr(stream, "__aiter__"):
        async with _closed_after(stream):
            async for piece in stream:
                yield piece
        return
    steps = _Steps(stream)
    try:
        while (piece := await _threads.run(steps.next)) is not _END:
            yield piece
    except asyncio.CancelledError:
        # Nobody waits for a generator that may never come to its end.
        _threads.begin(steps.close)
        raise
    except BaseException:
        await _threads.run(steps.close)
        raise


_END = object()


class _Steps:
    """A plain generator whose pieces are made on threads, and that is closed on one too."""

    def __init__(self, stream: Generator[Any, None, None]) -> None:
        self._stream = stream
        self._runs = self._left = False
        self._lock = threading.Lock()

    def next(self) -> Any:
        """The next piece, or `_END`."""
        with self._lock:
            self._runs = True
        try:
            return next(self._stream, _END)
        finally:
            with self._lock:
                self._runs = False
                left = self._left
            if left:
                self._stream.close()

    def close(self) -> None:
        """Closes the generator, now or after the piece that is being made."""
        with self._lock:
            self._left = True
            runs = self._runs
        if not runs:
            self._stream.close()


_BLAMELESS = (
    InvalidInputError,
    ItemTooLargeError,
    OverloadedError,
    BreakerOpenError,
    DeadlineExceededError,
    ShuttingDownError,
)


def is_blameless(error: BaseException) -> bool:
    """Whether a function may raise it without having failed, and callers get it as it is.

    Another server's has the id of a request, and is a failure here.
    """
    return isinstance(error, _BLAMELESS) and error.request_id is None


def _failed(name: str, error: Exception) -> InferenceError:
    failure = InferenceError(f"{name} inference failed: {str(error) or repr(error)}")
    failure.__cause__ = error
    return failure


class _Failures:
    """Around calls of a model's function: what they raise becomes an error that names the model."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not is_blameless(error):
            raise _failed(self._name, error) from error


def _guarded_batch(function: Function, name: str) -> Any:
    """Fails each item of a batch where the function raises, so that each has an error of its own."""

    def failures(error: Exception, count: int) -> list[Exception]:
        return [error if is_blameless(error) else _failed(name, error) for _ in range(count)]

    if _functions.is_coroutine(function):

        async def guarded_coroutine(items: list[Any]) -> Any:
            count = len(items)
            try:
                return await function(items)
            except Exception as error:  # noqa: BLE001 - it is the callers'
                return failures(error, count)

        return functools.update_wrapper(guarded_coroutine, function)

    def guarded(items: list[Any]) -> Any:
        count = len(items)
        try:
            return function(items)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            return failures(error, count)

    return functools.update_wrapper(guarded, function)


def _no_thread(core: _core.Batcher) -> threading.Thread:
    raise RuntimeError(f"{core!r} takes no items")
