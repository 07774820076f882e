"""Annotations of functions: whether a value fits one, and what it says in the terms of JSON schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Union, cast

from trustformers_serve.errors import ValidationError

_PLAIN: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def check(annotation: Any, value: Any) -> Any:
    """The value as the annotation has it.

    Raises:
        ValidationError: It does not fit.
    """
    if annotation is Any:
        return value
    if annotation is None or annotation is type(None):
        if value is None:
            return value
    elif annotation is float and type(value) is int:
        return float(value)
    elif annotation in _PLAIN:
        if type(value) is annotation:
            return value
    elif typing.get_origin(annotation) in {Union, types.UnionType}:
        for choice in typing.get_args(annotation):
            try:
                return check(choice, value)
            except ValidationError:
                continue
    elif typing.get_origin(annotation) is list or annotation is list:
        (inner,) = typing.get_args(annotation) or (Any,)
        if isinstance(value, list):
            return [check(inner, item) for item in cast("list[Any]", value)]
    elif typing.get_origin(annotation) is dict or annotation is dict:
        _, inner = typing.get_args(annotation) or (str, Any)
        if isinstance(value, Mapping):
            given = cast("Mapping[str, Any]", value)
            return {name: check(inner, item) for name, item in given.items()}
    else:
        return value
    raise ValidationError(f"expected {getattr(annotation, '__name__', annotation)}, got {value!r:.60}")


def schema(annotation: Any) -> dict[str, Any]:
    """The JSON schema of an annotation; of one that says nothing to JSON an empty one."""
    if annotation in _PLAIN:
        return {"type": _PLAIN[annotation]}
    if annotation is None or annotation is type(None):
        return {"type": "null"}
    if typing.get_origin(annotation) in {Union, types.UnionType}:
        return {"anyOf": [schema(choice) for choice in typing.get_args(annotation)]}
    if typing.get_origin(annotation) is list:
        return {"type": "array", "items": schema(typing.get_args(annotation)[0])}
    if typing.get_origin(annotation) is dict:
        return {"type": "object", "additionalProperties": schema(typing.get_args(annotation)[1])}
    return {}
