"""The models of this process: functions under a name and a version.

`register` puts a function into the registry of the process, which this module is: `registry.get`,
`registry.all`, `registry.clear`. An `App` has a registry of its own.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from trustformers_serve import _core, _functions
from trustformers_serve.annotations import check, require
from trustformers_serve.errors import (
    ConfigurationError,
    DecorationError,
    InputTypeError,
    ModelNotFoundError,
    ValidationError,
    VersionNotFoundError,
)

F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""As the server's own models are named."""


@dataclass(frozen=True)
class ModelInfo:
    """A function that is a model.

    Attributes:
        name: Its name, a part of a URL's path.
        version: Its version; the newest by natural order (v10 after v9) is the one that is meant without one.
        function: What is called with one item, or with keyword arguments where there are several inputs. It
            may be plain, a coroutine function, a generator function or an asynchronous one.
        streaming: Whether it yields its result piece by piece.
        input_types: The annotation of each parameter, of one item; `Any` where there is none.
        output_type: The annotation of one item's result; of a streaming model, of one piece.
    """

    name: str
    version: str
    function: Callable[..., Any]
    streaming: bool
    input_types: dict[str, Any]
    output_type: Any

    def arguments(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `function` is called with for `item`, checked against the annotations.

        With one parameter the item is its value, with several a mapping of them.

        Raises:
            ValidationError: It does not fit; the message names the parameter.
        """
        if self.has_schema:
            # The function checks it, wrapped or not.
            return (item,), {}
        if len(self.input_types) == 1:
            ((parameter, kind),) = self.input_types.items()
            value = check(kind, item, parameter)
            return ((), {parameter: value}) if parameter in self._only_by_name else ((value,), {})
        if not isinstance(item, Mapping):
            listed = ", ".join(self.input_types)
            raise InputTypeError(f"{self.name} takes a mapping of {listed}, not {type(item).__name__}")
        given = cast("Mapping[str, Any]", item)
        unknown = [name for name in given if name not in self.input_types]
        missing = [name for name in self.input_types if name not in given and name in self._required]
        if unknown or missing:
            problems = [f"{name}: unknown" for name in unknown] + [f"{name}: missing" for name in missing]
            listed = ", ".join(self.input_types)
            raise ValidationError(f"{self.name}: {'; '.join(problems)}; it takes {listed}")
        return (), {
            name: check(kind, given[name], name) for name, kind in self.input_types.items() if name in given
        }

    @functools.cached_property
    def has_schema(self) -> bool:
        """Whether the function itself checks its item, which may be the body of a request."""
        return getattr(getattr(self.function, "batcher", None), "input_schema", None) is not None

    @functools.cached_property
    def takes_anything(self) -> bool:
        """Whether an item of any kind is the function's one argument, as it stands."""
        any_one = list(self.input_types.values()) == [Any] and not self.has_schema
        return any_one and self._only_by_name.isdisjoint(self.input_types)

    @functools.cached_property
    def _required(self) -> frozenset[str]:
        return frozenset(
            parameter.name for parameter in self._parameters if parameter.default is parameter.empty
        )

    @functools.cached_property
    def _only_by_name(self) -> frozenset[str]:
        return frozenset(
            parameter.name for parameter in self._parameters if parameter.kind is parameter.KEYWORD_ONLY
        )

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())


class Registry:
    """Models by name and version; may be used from any thread."""

    def __init__(self) -> None:
        """Empty."""
        self._models: dict[str, dict[str, ModelInfo]] = {}
        self._lock = threading.Lock()

    def add(self, info: ModelInfo) -> None:
        """Takes a model in.

        A function that was defined anew, as in a notebook, takes the place of its former self.

        Raises:
            ConfigurationError: The name or the version cannot be one, or another function has both already.
        """
        given: list[tuple[str, Any]] = [("name", info.name), ("version", info.version)]
        for kind, text in given:
            if not isinstance(text, str):
                raise DecorationError(
                    f"{_functions.name(info.function)} cannot have the {kind} {text!r}: "
                    f"a {kind} is a string, not {type(text).__name__}"
                )
            if not _NAME.fullmatch(text):
                raise ConfigurationError(
                    f"{_functions.name(info.function)} cannot have the {kind} {text!r}: it may have letters, "
                    "digits, `-`, `_` and `.`, and starts with a letter or a digit"
                )
        with self._lock:
            versions = self._models.setdefault(info.name, {})
            known = versions.get(info.version)
            if known is not None and _home(known.function) != _home(info.function):
                raise ConfigurationError(
                    f"{_functions.name(info.function)} cannot be model {info.name!r} version "
                    f"{info.version!r}: {_functions.name(known.function)} is"
                )
            versions[info.version] = info

    def get(self, name: str, version: str | None = None) -> ModelInfo:
        """A model, of its newest version where none is asked for.

        Raises:
            ModelNotFoundError: There is none of that name, or no such version of it
                (`VersionNotFoundError`).
        """
        with self._lock:
            versions = dict(self._models.get(name, {}))
            names = sorted(self._models)
        if not versions:
            raise ModelNotFoundError(f"no model is named {name!r}; there are: {', '.join(names) or 'none'}")
        newest_last = sorted(versions, key=functools.cmp_to_key(_core.compare_versions))
        if version is None:
            version = newest_last[-1]
        if version not in versions:
            listed = ", ".join(newest_last)
            raise VersionNotFoundError(f"model {name!r} has no version {version!r}; it has: {listed}")
        return versions[version]

    def all(self) -> list[ModelInfo]:
        """Every model, by name, and from the oldest version to the newest."""
        order = functools.cmp_to_key(_core.compare_versions)
        with self._lock:
            models = [(name, dict(versions)) for name, versions in sorted(self._models.items())]
        return [versions[version] for _, versions in models for version in sorted(versions, key=order)]

    def clear(self) -> None:
        """Forgets every model."""
        with self._lock:
            self._models.clear()


def _home(function: Callable[..., Any]) -> tuple[object, object]:
    """Where a function is defined: the same for a function that is defined again."""
    named = getattr(function, "__qualname__", None) or id(function)
    return getattr(function, "__module__", None), named


_registered = Registry()
add = _registered.add
get = _registered.get
all = _registered.all  # noqa: A001 - named as the method
clear = _registered.clear


def register(name: str | None = None, version: str = "1") -> Callable[[F], F]:
    """Makes a function a model of this process, and returns it unchanged.

        @register(name="double", version="2")
        def double(item: int) -> int:
            return item * 2

    A function that `batch` or `autobatch` made is called with one item, and so is the model. Of a method,
    register that of an instance: `register("scale")(model.scale)`.

    Args:
        name: The model's name; by default the function's.
        version: Its version.

    Raises:
        DecorationError: The decorated object is no function, or its annotations cannot be resolved.
        ConfigurationError: The name cannot be one, or is another function's already.
    """
    if callable(name):
        raise _functions.without_parentheses("register", name)

    def decorate(function: F) -> F:
        _functions.check_kind(function, "register")
        shape = _functions.shape_of_items(function, _functions.names_of_caller())
        for parameter, kind in shape.inputs.items():
            require(kind, f"{parameter} of {_functions.name(function)}")
        _registered.add(
            ModelInfo(
                name=_functions.name(function).rpartition(".")[2] if name is None else name,
                version=version,
                function=function,
                streaming=shape.streaming,
                input_types=shape.inputs,
                output_type=shape.output,
            )
        )
        return function

    return decorate
