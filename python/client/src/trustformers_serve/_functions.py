"""What decorators must know of the functions that they are put above."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from trustformers_serve.errors import DecorationError

WORKER_ID = "worker_id"
"""The parameter that gets the number of the worker that runs a batch."""

_LISTS = (list, collections.abc.Sequence)
_VARIADIC = frozenset({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})
STREAMS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


@dataclass(frozen=True)
class Shape:
    """What a function takes and gives.

    Attributes:
        inputs: The annotation of each parameter; `Any` where there is none.
        output: That of the result, or of one piece of a stream; `Any` where there is none.
        streaming: Whether it is a generator function, of either kind.
        coroutine: Whether it is a coroutine function.
        annotated: Whether the result has an annotation.
    """

    inputs: dict[str, Any]
    output: Any
    streaming: bool
    coroutine: bool
    annotated: bool


def name(function: Any) -> str:
    """What a message calls it."""
    function = getattr(function, "func", function)
    of_object = type(function).__qualname__ if callable(function) else repr(function)
    return getattr(function, "__qualname__", None) or of_object


def without_parentheses(decorator: str, function: Any) -> DecorationError:
    """The error of `@decorator` where `@decorator()` is meant."""
    return DecorationError(f"write `@{decorator}()` above {name(function)}, with parentheses")


def names_of_caller() -> dict[str, Any]:
    """The local names where the decorator that calls this is used."""
    here = inspect.currentframe()
    decorator = None if here is None else here.f_back
    caller = None if decorator is None else decorator.f_back
    return {} if caller is None else caller.f_locals


def check_kind(function: Any, decorator: str) -> None:
    """Refuses what is no function at all.

    Raises:
        DecorationError: It is a class, a static or class method, or cannot be called.
    """
    if isinstance(function, (staticmethod, classmethod)):
        kind = type(function).__name__  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise DecorationError(f"{name(function)} is a {kind}: put `@{kind}` above `@{decorator}`")
    if isinstance(function, type) or not callable(function):
        raise DecorationError(f"{decorator} takes a function, not {name(function)}")


def is_batched(function: Any) -> bool:
    """Whether it is what `batch` or `autobatch` made of a function."""
    return hasattr(function, "batcher") and hasattr(function, "__wrapped__")


def check_unbatched(function: Any, decorator: str) -> None:
    """Refuses what is called with one item although it seems to take a list.

    Raises:
        DecorationError: The function is batched already.
    """
    if is_batched(function):
        raise DecorationError(
            f"{name(function)} is batched already: put `@{decorator}` above the function alone, "
            "or `@register()` above the batched one to serve it"
        )


def check_bound(function: Any, decorator: str) -> None:
    """Refuses a method without its instance.

    Raises:
        DecorationError: It was decorated in the body of a class, or taken from the class.
    """
    scope = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not scope or scope.endswith("<locals>") or not inspect.isfunction(inspect.unwrap(function)):
        return
    if next(iter(inspect.signature(function).parameters), None) in {"self", "cls"}:
        raise DecorationError(
            f"{name(function)} is a method: what can be a model is that of an instance, as in "
            f"`{decorator}(...)(instance.{function.__name__})`"
        )


def takes_self(function: Any, decorator: str) -> bool:
    """Whether a function of one list is a method, which takes the list after `self`.

    The number of a worker is no parameter that counts.

    Raises:
        DecorationError: It is no function of one list; the message names it.
    """
    check_kind(function, decorator)
    check_unbatched(function, decorator)
    if is_generator(function):
        raise DecorationError(
            f"{name(function)} is a generator function; {decorator} takes one that returns a list"
        )
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        parameter
        for parameter in parameters_of(function).values()
        if parameter.name != WORKER_ID and parameter.kind not in _VARIADIC
    ]
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    if not all(parameter.kind in kinds for parameter in required) or len(required) not in {1, 2}:
        listed = ", ".join(parameter.name for parameter in parameters if parameter.kind in kinds) or "none"
        raise DecorationError(
            f"{name(function)} must take one list, as a method after `self`; its parameters: {listed}"
        )
    return len(required) == 2


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name.

    Raises:
        DecorationError: It does not tell them, as some functions written in C.
    """
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise DecorationError(f"{name(function)} does not say what it takes: {error}") from error


def is_coroutine(function: Any) -> bool:
    """Whether calls of it are awaited."""
    return inspect.iscoroutinefunction(_code_of(function))


def is_async_generator(function: Any) -> bool:
    """Whether it is an asynchronous generator function."""
    return inspect.isasyncgenfunction(_code_of(function))


def is_generator(function: Any) -> bool:
    """Whether it yields, in either way."""
    code = _code_of(function)
    return inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code)


def shape_of(function: Any, names: Mapping[str, Any]) -> Shape:
    """What `function` takes and gives, with its annotations resolved.

    Args:
        function: Any function or method, a partial one, or an object that can be called.
        names: What is known where it is defined, beside its module's names.

    Raises:
        DecorationError: An annotation cannot be resolved.
    """
    parameters = parameters_of(function)
    hints = _hints(function, names)
    streaming = is_generator(function)
    output = hints.get("return", Any)
    return Shape(
        inputs={parameter: hints.get(parameter, Any) for parameter in parameters},
        output=element_of(output, STREAMS) if streaming else output,
        streaming=streaming,
        coroutine=is_coroutine(function),
        annotated="return" in hints,
    )


def shape_of_model(function: Any, names: Mapping[str, Any], streaming: bool) -> Shape:
    """As `shape_of`; of what can be called with an item, or with several values by name.

    Raises:
        DecorationError: It takes nothing, or what cannot be given by name; or it is a method without its
            instance, or batched already.
    """
    check_kind(function, "app.model")
    check_unbatched(function, "app.model")
    check_bound(function, "app.model")
    shape = shape_of(function, names)
    kinds = [parameter.kind for parameter in parameters_of(function).values()]
    if not kinds or not _VARIADIC.isdisjoint(kinds):
        raise DecorationError(f"{name(function)} must have parameters, each with a name of its own")
    if len(kinds) == 1 and kinds[0] is inspect.Parameter.KEYWORD_ONLY:
        raise DecorationError(f"{name(function)} must take its item by position")
    _check_named(kinds, function)
    if streaming and not shape.streaming:
        return replace(shape, streaming=True, output=element_of(shape.output, STREAMS))
    return shape


def _given(function: Any) -> list[str]:
    """The parameters that an item gives; what takes whatever comes is called with an item alone.

    Raises:
        DecorationError: They cannot be given by name.
    """
    parameters = list(parameters_of(function).values())
    named = [parameter for parameter in parameters if parameter.kind not in _VARIADIC]
    given = named or [parameter for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL]
    if parameters and not given:
        raise DecorationError(f"{name(function)} must have parameters, each with a name of its own")
    _check_named([parameter.kind for parameter in given], function)
    return [parameter.name for parameter in given]


def _check_named(kinds: list[Any], function: Any) -> None:
    if len(kinds) > 1 and inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise DecorationError(f"{name(function)} must take its {len(kinds)} parameters by name")


def shape_of_items(function: Any, names: Mapping[str, Any]) -> Shape:
    """As `shape_of`; of a function that is batched over its callers, what one call takes and gives.

    Raises:
        DecorationError: It is a method without its instance, or cannot be given its parameters by name.
    """
    check_bound(function, "register")
    shape = shape_of(function, names)
    if not is_batched(function):
        return replace(shape, inputs={given: shape.inputs[given] for given in _given(function)})
    of_items = shape_of_one(shape)
    # Only the list is given; what else there is has defaults.
    name_of_items, kind = next(iter(of_items.inputs.items()))
    schema = getattr(function.batcher, "input_schema", None)
    return replace(of_items, inputs={name_of_items: kind if schema is None else schema})


def shape_of_one(shape: Shape) -> Shape:
    """That of one item, of a function of a list of them."""
    return replace(
        shape,
        inputs={
            parameter: element_of(kind, _LISTS)
            for parameter, kind in shape.inputs.items()
            if parameter != WORKER_ID
        },
        output=element_of(shape.output, _LISTS),
    )


def element_of(annotation: Any, origins: tuple[Any, ...]) -> Any:
    """The annotation of one element of what `annotation` says; `Any` where that is none of `origins`."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    arguments = typing.get_args(annotation)
    return arguments[0] if typing.get_origin(annotation) in origins and arguments else Any


def is_list(annotation: Any) -> bool:
    """Whether it is `list`, with or without the type of its elements."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation is list or typing.get_origin(annotation) is list


def _code_of(function: Any) -> Any:
    """What has the code that runs when it is called."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    if inspect.isroutine(function) or not callable(function):
        return function
    return type(function).__call__


def _hints(function: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    target: Any = function
    while True:
        if isinstance(target, functools.partial):
            target = cast("functools.partial[Any]", target).func
        elif hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        else:
            break
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, localns=dict(names), include_extras=True)
    except Exception as error:
        raise DecorationError(
            f"the annotations of {name(function)} cannot be resolved: {type(error).__name__}: {error}"
        ) from error
