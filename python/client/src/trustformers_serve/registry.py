"""The models of this process: functions under a name and a version."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trustformers_serve.errors import ModelNotFoundError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelInfo:
    """A function that is a model."""

    name: str
    version: str
    function: Callable[..., Any]
    streaming: bool
    input_types: dict[str, Any]
    output_type: Any


class Registry:
    """Models by name and version."""

    def __init__(self) -> None:
        """Empty."""
        self._models: dict[tuple[str, str], ModelInfo] = {}

    def add(self, info: ModelInfo) -> None:
        """Takes a model in."""
        self._models[info.name, info.version] = info

    def get(self, name: str, version: str | None = None) -> ModelInfo:
        """A model, of its newest version where none is asked for."""
        found = [info for info in self.all() if info.name == name and version in {None, info.version}]
        if not found:
            raise ModelNotFoundError(f"no model is named {name!r}")
        return max(found, key=lambda info: [int(part) for part in re.findall(r"\d+", info.version)])

    def all(self) -> list[ModelInfo]:
        """Every model."""
        return list(self._models.values())

    def clear(self) -> None:
        """Forgets every model."""
        self._models.clear()


_registered = Registry()
add = _registered.add
get = _registered.get
all = _registered.all  # noqa: A001 - named as the method
clear = _registered.clear


def register(name: str | None = None, version: str = "1") -> Callable[[F], F]:
    """Makes a function a model of this process, and returns it unchanged."""

    def decorate(function: F) -> F:
        target = inspect.unwrap(function)
        hints = typing.get_type_hints(target)
        output = hints.pop("return", Any)
        parameters = [name for name in inspect.signature(target).parameters if name != "self"]
        streaming = inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
        types = {parameter: hints.get(parameter, Any) for parameter in parameters}
        if hasattr(function, "batcher"):
            types = {parameter: (typing.get_args(kind) or (Any,))[0] for parameter, kind in types.items()}
            output = (typing.get_args(output) or (Any,))[0]
        if streaming:
            output = (typing.get_args(output) or (Any,))[0]
        label = getattr(function, "__name__", "") if name is None else name
        add(ModelInfo(label, version, function, streaming, types, output))
        return function

    return decorate
