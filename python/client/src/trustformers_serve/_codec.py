"""Bodies: Python and numpy values to bytes, and replies back to values.

numpy is never imported here before the caller has imported it, or asks for an array.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from trustformers_serve.errors import UnexpectedReplyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

JSON = "application/json"
MSGPACK = "application/msgpack"

# msgpack comes without types.
_packb = cast("Callable[..., bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpackb = cast("Callable[[bytes], Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class Reply:
    """A reply as it came from the wire; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def pack(body: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The MessagePack form of a body, and whether a numpy array was in it.

    Whatever has a `tolist` method (arrays and tensors of any library) is sent as nested lists.

    Raises:
        TypeError: A value has no MessagePack form.
    """
    found_numpy = False

    def plain(value: Any) -> Any:
        nonlocal found_numpy
        if not hasattr(value, "tolist"):
            raise TypeError(f"cannot send a {type(value).__name__} to the server: {value!r}")
        found_numpy |= type(value).__module__ == "numpy"
        return value.tolist()

    return _packb(body, default=plain), found_numpy


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
    except ValueError as error:
        raise UnexpectedReplyError(
            f"HTTP {reply.status} with a broken {media_type} body: {error}", status=reply.status
        ) from error
    raise UnexpectedReplyError(
        f"HTTP {reply.status} with a body of type {media_type or 'unknown'}: {reply.body[:200]!r}",
        status=reply.status,
    )


def to_numpy(value: Any) -> Any:
    """Nested lists as an array, several named outputs as a dict of arrays.

    Numbers keep their value whatever the model's dtype: floating point comes as float64.
    """
    import numpy as np

    if isinstance(value, dict):
        return {name: np.asarray(array) for name, array in cast("dict[str, Any]", value).items()}
    return np.asarray(value)


def embeddings(encoded: list[str]) -> npt.NDArray[np.float32]:
    """Base64 rows of little-endian float32 as one array [rows, dimensions]."""
    import numpy as np

    rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in encoded]
    return np.stack(rows).astype(np.float32, copy=False)
