"""Decorators that make a function of a list one of an item, batched over its callers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from trustformers_serve import _functions
from trustformers_serve.batcher import Batcher
from trustformers_serve.errors import DecorationError

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")
S = TypeVar("S")


class Autobatched(Generic[T, R]):
    """A function of a list that is called with one item; made by `autobatch`.

    Attributes:
        batcher: What its calls go through: `flush`, `metrics`, `close`.
    """

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[[list[T]], Sequence[R | Exception]], batcher: Batcher) -> None:
        """Calls of this object go through `batcher` to `function`."""
        # First: an object that is called may have attributes of the names below.
        functools.update_wrapper(self, function)
        self.batcher = batcher
        self._function = function

    def __call__(self, item: T) -> R:
        """The result of `item`, run in a batch with the items of other callers."""
        return self.batcher.run(item, self._function)

    def _hand(self, item: Any, future: Any, priority: object) -> Callable[[], None]:  # noqa: ARG002
        """Brings an item on the running event loop, for what stands for a future of its result.

        To a `Batcher` all are equal. Returns what is to be called when `future` was told or cancelled.
        """
        hand = self.batcher._hand  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
        return hand(item, self._function, future)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """As a function is: by its name."""
        return self.__qualname__

    def __repr__(self) -> str:
        """The function's own."""
        return f"<autobatch {self._function!r}>"


class _Bound(Autobatched[T, R]):
    """That of a method of one instance: made for each access, so made of little."""

    def __init__(self, function: Callable[[list[T]], Sequence[R | Exception]], batcher: Batcher) -> None:
        self.batcher = batcher
        self._function = function
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__name__)


class AutobatchedMethod(Generic[S, T, R]):
    """A method of a list that is called with one item; made by `autobatch`. Instances share no batches.

    Attributes:
        batcher: What the calls of all instances go through.
    """

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[[S, list[T]], Sequence[R | Exception]], batcher: Batcher) -> None:
        """Calls of this method go through `batcher` to `function`."""
        functools.update_wrapper(self, function)
        self.batcher = batcher
        self._function = function

    @overload
    def __get__(self, instance: None, owner: type[S]) -> AutobatchedMethod[S, T, R]: ...
    @overload
    def __get__(self, instance: S, owner: type[S] | None = None) -> Autobatched[T, R]: ...
    def __get__(
        self, instance: S | None, owner: type[S] | None = None
    ) -> Autobatched[T, R] | AutobatchedMethod[S, T, R]:
        """The method of `instance`."""
        if instance is None:
            return self
        bound: Callable[[list[T]], Sequence[R | Exception]] = self._function.__get__(instance, owner)
        return _Bound(bound, self.batcher)

    def __call__(self, instance: S, item: T) -> R:
        """The result of `item` for `instance`."""
        return self.batcher.run(item, self._function.__get__(instance))

    def __reduce__(self) -> str:
        """As a function is: by its name."""
        return self.__qualname__

    def __repr__(self) -> str:
        """The function's own."""
        return f"<autobatch {self._function!r}>"


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R | Exception]], /) -> Autobatched[T, R]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Sequence[R | Exception]], /
    ) -> AutobatchedMethod[S, T, R]: ...


def autobatch(
    max_batch: int = 32, max_wait_ms: float = 10, *, max_item_bytes: int | None = None
) -> _Decorator:
    """Makes a function of a list one that is called with an item, from any number of threads.

        @autobatch(max_batch=32, max_wait_ms=10)
        def double(items: list[int]) -> list[int]:
            return [item * 2 for item in items]

        double(21)  # 42

    The function keeps its name, signature and docstring, and returns as an executor of a `Batcher` does.
    It may be a method: its first parameter is then `self`, and calls on different instances share no batch.
    Items with more than `max_item_bytes`, where that is given, raise `ItemTooLargeError` as those of a
    `Batcher` do.

    Raises:
        DecorationError: The decorated object is no plain function of a list; the message names it.
        ValueError: A limit is out of range.
    """
    if callable(max_batch):
        raise _functions.without_parentheses("autobatch", max_batch)
    batcher = functools.partial(Batcher, max_batch, max_wait_ms, max_item_bytes=max_item_bytes)
    batcher()  # checks the limits where they are written

    def decorate(function: Any) -> Any:
        method = _functions.takes_self(function, "autobatch")
        if _functions.is_coroutine(function):
            name = _functions.name(function)
            raise DecorationError(f"{name} is a coroutine function; autobatch takes a plain one")
        if method:
            return AutobatchedMethod[Any, Any, Any](function, batcher())
        return Autobatched[Any, Any](function, batcher())

    return decorate
