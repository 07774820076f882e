"""Decorators that make a function of a list one of an item, batched over its callers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from trustformers_serve.batcher import Batcher

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
        self.batcher = batcher
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, item: T) -> R:
        """The result of `item`, run in a batch with the items of other callers."""
        return self.batcher.run(item, self._function)

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
        self.batcher = batcher
        self._function = function
        functools.update_wrapper(self, function)

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


def autobatch(max_batch: int = 32, max_wait_ms: float = 10) -> _Decorator:
    """Makes a function of a list one that is called with an item, from any number of threads.

        @autobatch(max_batch=32, max_wait_ms=10)
        def double(items: list[int]) -> list[int]:
            return [item * 2 for item in items]

        double(21)  # 42

    The function keeps its name, signature and docstring, and returns as an executor of a `Batcher` does.
    It may be a method: its first parameter is then `self`, and calls on different instances share no batch.

    Raises:
        TypeError: The decorated object is no plain function of a list; the message names it.
        ValueError: A limit is out of range.
    """
    if callable(max_batch):
        raise TypeError(f"write `@autobatch()` above {_name(max_batch)}, with parentheses")
    batcher = functools.partial(Batcher, max_batch, max_wait_ms)
    batcher()  # checks the limits where they are written

    def decorate(function: Any) -> Any:
        parameters = _parameters(function)
        if parameters == 1:
            return Autobatched[Any, Any](function, batcher())
        return AutobatchedMethod[Any, Any, Any](function, batcher())

    return decorate


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _parameters(function: Any) -> int:
    """How many arguments must be given to `function`: the list, or `self` and the list."""
    name = _name(function)
    if isinstance(function, (staticmethod, classmethod)):
        kind = type(function).__name__  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise TypeError(f"{name} is a {kind}: put `@{kind}` above `@autobatch`")
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"autobatch takes a function of a list, not {name}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a coroutine function; autobatch takes a plain one")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} is a generator function; autobatch takes one that returns a list")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind in kinds]
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    if not all(parameter.kind in kinds for parameter in required) or len(required) not in {1, 2}:
        listed = ", ".join(parameter.name for parameter in positional) or "none"
        raise TypeError(f"{name} must take one list, as a method after `self`; its parameters: {listed}")
    return len(required)
