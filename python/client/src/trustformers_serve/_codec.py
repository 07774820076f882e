"""Bodies: Python and numpy values to bytes, and replies back to values.

numpy is never imported here before the caller has imported it, or asks for an array.
"""

from __future__ import annotations

import base64
import json
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from trustformers_serve.errors import SerializationError, UnexpectedReplyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

JSON = "application/json"
MSGPACK = "application/msgpack"
EVENTS = "text/event-stream"

# msgpack comes without types.
_packb = cast("Callable[..., bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
# A function may answer a dict whose keys are numbers.
_unpackb = cast("Callable[[bytes], Any]", partial(msgpack.unpackb, strict_map_key=False))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


@dataclass(frozen=True)
class Reply:
    """A reply as it came from the wire; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_DTYPES = {
    "float32": "f32",
    "float64": "f64",
    "float16": "f16",
    "bool": "bool",
    **{f"{kind}int{bits}": f"{kind or 'i'}{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)},
}
"""The server's names for element types."""


def pack(body: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The MessagePack form of a body, and whether a numpy array was in it.

    Arrays of numpy and tensors of torch are sent as their bytes, with type and shape:
    `{"dtype": "f32", "shape": [2, 3], "data": b"..."}`. Whatever else has a `tolist` method is sent as nested
    lists, and so is what has no dimension, or a type that the server does not know.

    Raises:
        SerializationError: A value has no MessagePack form.
    """
    plain = _Plain(binary=True)
    return _encoded(body, partial(_packb, default=plain)), plain.found_numpy


def to_json(body: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The JSON form of a body, with lists in the place of arrays, and whether a numpy array was in it.

    Raises:
        SerializationError: A value has no JSON form.
    """
    plain = _Plain(binary=False)
    encoder = json.JSONEncoder(default=plain, allow_nan=False)
    return _encoded(body, lambda value: encoder.encode(value).encode()), plain.found_numpy


class _Plain:
    """Makes what an encoder knows of what it does not know, and notes whether that was numpy's."""

    def __init__(self, *, binary: bool) -> None:
        self._binary = binary
        self.found_numpy = False

    def __call__(self, value: Any) -> Any:
        if not hasattr(value, "tolist"):
            raise TypeError(f"{type(value).__name__} has no form on the wire")
        library = type(value).__module__.partition(".")[0]
        self.found_numpy |= library == "numpy"
        known = self._binary and library in {"numpy", "torch"} and value.ndim > 0
        packed = _tensor(value, library) if known else None
        return value.tolist() if packed is None else packed


# What encoders, and arrays on their way to lists, raise.
_UNSENDABLE = (TypeError, ValueError, OverflowError, RuntimeError)
_DEEPEST = 512
_short = reprlib.Repr()
_short.maxother = _short.maxstring = 100


def _encoded(body: Mapping[str, Any], encode: Callable[[Any], bytes]) -> bytes:
    try:
        return encode(body)
    except _UNSENDABLE as error:
        raise SerializationError(_reason(body, encode)) from error


def _reason(body: Mapping[str, Any], encode: Callable[[Any], bytes]) -> str:
    """What in a body cannot be sent, and where it is: the innermost value that `encode` refuses."""
    place, value = "", cast("Any", body)
    for _ in range(_DEEPEST):
        refused = next((part for part in _parts(value) if not _is_sendable(part[1], encode)), None)
        if refused is None:
            break
        name, value = refused
        place += f"[{name!r}]" if place else str(name)
    else:
        return "cannot send what contains itself, or is nested too deeply"
    shown = _short.repr(value)
    if isinstance(value, int):
        what = "an integer of more than 64 bits"
    elif isinstance(value, float):
        what = "what JSON has no number for"
    elif isinstance(value, str):
        what = "a text with half a character"
    else:
        what = f"a value of type {type(value).__name__}"
    return f"cannot send {what} to the server, at {place}: {shown}"


def _is_sendable(value: Any, encode: Callable[[Any], bytes]) -> bool:
    try:
        encode(value)
    except _UNSENDABLE:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a value is made of, each with its key or place; a key is a part at itself."""
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[Any, Any]", value).items():
            yield key, key
            yield key, inner
        return
    if type(value).__module__.partition(".")[0] == "numpy" and value.ndim > 0:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        yield from enumerate(cast("list[Any]", value))


def _tensor(value: Any, library: str) -> dict[str, Any] | None:
    """An array's or a tensor's form on the wire; None where it has none."""
    shape = list(value.shape)
    if library == "torch":
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # numpy has no such type; the bytes of any other of its size are the same.
            return {"dtype": "bf16", "shape": shape, "data": value.view(_int16()).numpy().tobytes()}
        if str(value.dtype).removeprefix("torch.") not in _DTYPES:
            return None
        value = value.numpy()
    dtype = _DTYPES.get(value.dtype.name)
    if dtype is None:
        return None
    if value.dtype.byteorder == ">":
        value = value.astype(value.dtype.newbyteorder("<"))
    return {"dtype": dtype, "shape": shape, "data": value.tobytes()}


def array(dtype: str, shape: list[int], data: bytes) -> Any:
    """The array of numpy that such a form is; a tensor of torch for "bf16", which numpy does not have.

    Raises:
        ValueError: There is no such type, or the bytes are not those of the shape.
    """
    if dtype == "bf16":
        import torch

        tensor = torch.frombuffer(bytearray(data), dtype=torch.bfloat16) if data else torch.zeros(0)
        return tensor.reshape(shape)
    import numpy as np

    names = {name: numpy_name for numpy_name, name in _DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"there is no tensor of dtype {dtype!r}")
    flat: Any = np.frombuffer(data, np.dtype(names[dtype]))
    # A copy, because who gets it may change it.
    return flat.reshape(shape).copy()


def lists(value: Any) -> Any:
    """The value with nested lists in the place of arrays and tensors."""
    if isinstance(value, dict):
        return {name: lists(inner) for name, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [lists(inner) for inner in cast("list[Any]", value)]
    return value.tolist() if hasattr(value, "tolist") else value


def _int16() -> Any:
    # There is a tensor, so torch is imported.
    return sys.modules["torch"].int16


def unpack(reply: Reply) -> Any:
    """The value of a JSON or MessagePack reply.

    Raises:
        UnexpectedReplyError: It is neither, or is broken.
    """
    media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == MSGPACK:
            return _unpackb(reply.body)
        if media_type == JSON:
            return json.loads(reply.body)
    # A key that cannot be a dict's, and nesting without end, are broken as well.
    except (ValueError, TypeError, RecursionError) as error:
        raise UnexpectedReplyError(
            f"HTTP {reply.status} with a broken {media_type} body: {error}", status=reply.status
        ) from error
    raise UnexpectedReplyError(
        f"HTTP {reply.status} with a body of type {media_type or 'unknown'}: {reply.body[:200]!r}",
        status=reply.status,
    )


def to_numpy(value: Any) -> Any:
    """Nested lists of numbers as an array, several named outputs as a dict of arrays.

    Numbers keep their value whatever the model's dtype: floating point comes as float64. What a function
    answers need not be numbers, nor of one length at each depth; that stays as it is.
    """
    import numpy as np

    if isinstance(value, dict):
        return {name: to_numpy(inner) for name, inner in cast("dict[Any, Any]", value).items()}
    if not isinstance(value, (list, int, float)):
        return value
    try:
        array: Any = np.asarray(cast("Any", value))
    except ValueError:
        return cast("Any", value)
    return cast("Any", array if array.dtype.kind in "biuf" else value)


def embeddings(encoded: list[str]) -> npt.NDArray[np.float32]:
    """Base64 rows of little-endian float32 as one array [rows, dimensions]."""
    import numpy as np

    rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in encoded]
    return np.stack(rows).astype(np.float32, copy=False)
