"""Arrays and tensors as pydantic checks them: dtype, shape, and conversion where nothing is lost."""

from __future__ import annotations

import math
import sys
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

    Array = npt.NDArray[Any]

DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    **{f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)},
    "bool": "bool",
}
"""The server's names of element types, with those of numpy and torch."""


@dataclass(frozen=True)
class Tensor:
    """What an annotated array must be: `Annotated[np.ndarray, Tensor("f32", (3, -1))]`.

    Lists of numbers become arrays. Numbers of another dtype are converted where they keep their values, or
    are rounded to the nearest of a smaller floating-point type; what would overflow or be cut is refused.

    Attributes:
        dtype: "f32", "f64", "f16", "bf16" (torch alone has it), "i64", "i32", "i16", "i8", "u64", "u32",
            "u16", "u8" or "bool"; `None`: any.
        shape: Its sizes, -1 where any will do; `None`: any number of dimensions.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks both.

        Raises:
            ValueError: There is no such dtype, or a size is less than -1.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"a tensor's dtype is one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
            if any(size < -1 for size in self.shape):
                raise ValueError(f"a tensor's sizes are not negative, or -1 for any: {self.shape}")

    def __str__(self) -> str:
        """As in messages: `f32[3, -1]`."""
        sizes = "" if self.shape is None else str(list(self.shape))
        return f"{self.dtype or 'tensor'}{sizes}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic checks it; called by pydantic."""
        from pydantic_core import core_schema

        read = _read_torch if _is_torch(source) else _read_numpy
        dtype = (None if self.dtype is None else DTYPES[self.dtype]) or _dtype_in(source)
        if read is _read_numpy and dtype == "bfloat16":
            raise TypeError("numpy has no bf16; annotate a torch.Tensor")
        if read is _read_torch and dtype is not None and not hasattr(sys.modules["torch"], dtype):
            raise TypeError(f"this torch has no {dtype}")
        return core_schema.no_info_plain_validator_function(lambda value: self._check(read(value, dtype)))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What a client sends; called by pydantic."""
        found: dict[str, Any] = {"type": "boolean" if self.dtype == "bool" else "number"}
        if self.dtype is not None and self.dtype[0] in "iu":
            found["type"] = "integer"
        if self.shape is None:
            found = {"type": "array", "items": {}}
        for size in reversed(self.shape or ()):
            found = {"type": "array", "items": found}
            if size >= 0:
                found |= {"minItems": size, "maxItems": size}
        return {**found, "title": str(self)}

    def _check(self, array: Any) -> Any:
        sizes = tuple(array.shape)
        if self.shape is not None and not (
            len(sizes) == len(self.shape)
            and all(want in {-1, size} for want, size in zip(self.shape, sizes, strict=True))
        ):
            raise _misfit(f"must have the shape {list(self.shape)}, not {list(sizes)}")
        return array


def is_array(annotation: Any) -> bool:
    """Whether it is numpy's array, with or without a dtype, or torch's tensor."""
    kind = typing.get_origin(annotation) or annotation
    numpy = sys.modules.get("numpy")
    return (numpy is not None and kind is numpy.ndarray) or _is_torch(kind)


def _is_torch(kind: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(kind, type) and issubclass(kind, torch.Tensor)


def _dtype_in(source: Any) -> str | None:
    """That of `NDArray[np.float32]`; none of an abstract one, as `np.floating`, which says less than a dtype.

    Raises:
        TypeError: Arrays of it are refused, whatever is in them.
    """
    for argument in typing.get_args(source):
        for scalar in typing.get_args(argument):
            if isinstance(scalar, type) and scalar.__module__ == "numpy":
                import numpy as np

                abstract: list[type] = [np.generic, np.number, np.inexact, np.floating]
                if scalar in {*abstract, np.integer, np.signedinteger, np.unsignedinteger}:
                    return None
                if not issubclass(scalar, (np.bool_, np.integer, np.floating)):
                    raise TypeError(f"an array may have real numbers or booleans, but no {scalar.__name__}")
                return str(np.dtype(cast("Any", scalar)))
    return None


def _misfit(reason: str) -> Exception:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("tensor", "{reason}", {"reason": reason})


def _read_numpy(value: Any, dtype: str | None) -> Array:
    import numpy as np

    if _is_torch(type(value)):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, (str, bytes, dict, set)):
        raise _misfit(
            f"must be an array, or nested lists of numbers, not {type(cast('Any', value)).__name__}"
        )
    try:
        array: Array = np.asarray(value)
    except ValueError:
        raise _misfit("must be an array, or nested lists of one length at each depth") from None
    if array.size == 0 and not isinstance(value, np.ndarray) and dtype is not None:
        array = array.astype(dtype)
    given = f" of {array.dtype}" if isinstance(value, np.ndarray) else f", not {_kind(value)}"
    if array.dtype.kind not in "biuf":
        raise _misfit(f"must be an array of numbers, or nested lists of them{given}")
    if dtype is None or str(array.dtype) == dtype:
        return array
    with np.errstate(all="ignore"):
        cast_array: Array = array.astype(dtype)
    if not _kept(array, cast_array):
        raise _misfit(f"has numbers that are none of {dtype}")
    return cast_array


def _kind(value: Any) -> str:
    return type(value).__name__


def _kept(before: Array, after: Array) -> bool:
    """Whether a conversion kept the values, up to the rounding of floating-point numbers."""
    import numpy as np

    if after.dtype.kind == "f":
        return bool(np.isfinite(after).all()) or bool((np.isfinite(before) == np.isfinite(after)).all())
    if before.dtype.kind == "f" and not bool((np.abs(before) < math.ldexp(1.0, 63)).all()):
        return False
    # The largest unsigned integers and negative numbers have the same bits.
    return bool(((after.astype(before.dtype) == before) & ((after < 0) == (before < 0))).all())


def _torch_of(array: Any) -> Any:
    """The tensor of an array: in this machine's byte order and without steps backwards, as torch wants it."""
    import numpy as np
    import torch

    prepared: Any = np.require(array, array.dtype.name, ["C", "W"])
    try:
        return cast("Any", torch).from_numpy(prepared)
    except TypeError:
        raise _misfit(f"must be of numbers that torch has, not {array.dtype}") from None


def _read_torch(value: Any, dtype: str | None) -> Any:
    import numpy as np
    import torch

    if not isinstance(value, torch.Tensor):
        array = _read_numpy(value, None)
        if not isinstance(value, np.ndarray) and array.dtype == np.float64 and dtype is None:
            # As torch reads lists.
            array = array.astype(np.float32)
        value = _torch_of(array)
    if dtype is None or value.dtype == getattr(torch, dtype):
        return value
    converted = value.to(getattr(torch, dtype))
    if converted.is_floating_point():
        kept = bool((torch.isfinite(converted) == torch.isfinite(value)).all())
    else:
        # The largest integers have no neighbours among floats to be told from.
        small = not value.is_floating_point() or bool((value.abs() < math.ldexp(1.0, 63)).all())
        same = (converted.to(value.dtype) == value) & ((converted.double() < 0) == (value.double() < 0))
        kept = small and bool(same.all())
    if not kept:
        raise _misfit(f"has numbers that are none of {dtype}")
    return converted
