"""Values that must fit annotations: checked, converted where nothing is lost, and described as JSON schema.

Every annotation that pydantic knows works, and so do numpy's arrays and torch's tensors at any depth:
`np.ndarray`, `npt.NDArray[np.float32]`, `torch.Tensor`, and with a dtype and a shape
`Annotated[np.ndarray, Tensor("f32", (3, -1))]`, which may also be a field of a pydantic model.
"""

from __future__ import annotations

import functools
import operator
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Union, cast

from trustformers_serve._tensor import Tensor, is_array
from trustformers_serve.errors import DecorationError, ValidationError

if TYPE_CHECKING:
    import pydantic

__all__ = ["Tensor", "check", "require", "schema"]


def check(annotation: Any, value: Any, name: str = "") -> Any:
    """`value` as `annotation` wants it: lists become arrays, and mappings instances of schemas.

    Args:
        annotation: Any type; `Any` takes everything.
        value: What may fit it.
        name: What a message calls it.

    Raises:
        ValidationError: It does not fit; the message names the place and what is wanted.
        DecorationError: Nothing can be checked against the annotation.
    """
    if annotation is Any:
        return value
    import pydantic

    try:
        return _adapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise ValidationError(in_words(error, name)) from error


def schema(annotation: Any) -> dict[str, Any]:
    """The JSON schema of an annotation; empty, which allows anything, where it has none."""
    import pydantic.errors

    try:
        return _adapter(annotation).json_schema()
    except pydantic.errors.PydanticInvalidForJsonSchema:
        return {}


def require(annotation: Any, place: str) -> None:
    """Makes sure now that values can be checked later.

    Raises:
        DecorationError: They cannot; the message names `place`.
    """
    if annotation is Any:
        return
    try:
        _adapter(annotation)
    except DecorationError as error:
        raise DecorationError(f"{place}: {error}") from error


def in_words(error: pydantic.ValidationError, name: str = "") -> str:
    """What is wrong, place by place."""
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in ([name] if name else []) + list(problem["loc"]))
        parts.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return "; ".join(parts)


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    try:
        hash(annotation)
    except TypeError:
        # It has a list among its metadata, say.
        return _new_adapter(annotation)
    return _kept_adapter(annotation)


def _new_adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    import pydantic

    prepared = _prepared(annotation)
    try:
        try:
            return pydantic.TypeAdapter(prepared, config={"arbitrary_types_allowed": True})
        except pydantic.errors.PydanticUserError:
            # Models have configurations of their own.
            return pydantic.TypeAdapter(prepared)
    except Exception as error:
        text = str(error).partition("\n")[0]
        for array, name in (("numpy.ndarray", "np.ndarray"), ("torch.Tensor", "torch.Tensor")):
            if text.startswith("Unable to generate") and array in text:
                text = f"write a field that is an array as `Annotated[{name}, ts.Tensor()]`"
        raise DecorationError(f"nothing can be checked against {annotation!r}: {text}") from error


_kept_adapter = functools.lru_cache(maxsize=1024)(_new_adapter)


def _prepared(annotation: Any) -> Any:
    """The annotation with a `Tensor` at each array that has none."""
    if is_array(annotation):
        return Annotated[annotation, Tensor()]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    described = any(isinstance(part, Tensor) for part in arguments)
    if described or origin is typing.Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_prepared(arguments[0]), *arguments[1:])]
    prepared = tuple(_prepared(argument) for argument in arguments)
    if all(map(operator.is_, prepared, arguments)):
        # Those without arguments too.
        return annotation
    if origin in {Union, types.UnionType}:
        return cast("Any", Union)[prepared]
    return origin[prepared]
