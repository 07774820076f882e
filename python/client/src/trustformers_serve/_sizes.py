"""How many bytes an item has, as far as that can be known of an object of any kind."""

from __future__ import annotations

import dataclasses
import sys
from collections import UserDict, deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from trustformers_serve import _functions
from trustformers_serve._limits import check_count
from trustformers_serve.errors import ItemTooLargeError

_CONTAINERS = (list, tuple, set, frozenset, deque)


def check_limit(max_item_bytes: int | None) -> None:
    """Checks a limit of bytes; `None` is none.

    Raises:
        ValueError: It is out of range.
        TypeError: It is no integer.
    """
    if max_item_bytes is not None:
        check_count("max_item_bytes", max_item_bytes, 0, sys.maxsize)


def check_size(item: object, limit: int, function: Any) -> None:
    """Checks an item for a function or an executor.

    Raises:
        ItemTooLargeError: It `exceeds` the limit.
    """
    if exceeds(item, limit):
        name = _functions.name(function)
        raise ItemTooLargeError(f"an item for {name} has more than max_item_bytes = {limit:,} bytes")


def exceeds(item: object, limit: int) -> bool:
    """Whether `item` has more than `limit` bytes.

    Arrays and tensors of any library say it themselves (`nbytes`), and so do bytes and other buffers; a text
    has the memory that its characters take. Lists, tuples, sets, dicts and dataclasses have what their
    members have, what is in them twice counted once; no more of them are looked at than it takes to exceed
    the limit. Of another object only its own memory is known (`sys.getsizeof`), not what it refers to.
    """
    total = 0
    seen: set[int] = set()
    rest: list[Any] = [item]
    while rest:
        value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        members = _members(value)
        if members is None:
            total += _own(value)
        else:
            total += sys.getsizeof(value)
            # A list of millions of numbers is above most limits by itself.
            if total <= limit:
                rest.extend(members)
        if total > limit:
            return True
    return False


def _members(value: Any) -> Iterable[Any] | None:
    if isinstance(value, _CONTAINERS):
        return cast("Iterable[Any]", value)
    # Not any mapping: some read from a disk what they are asked for.
    if isinstance(value, (dict, UserDict, MappingProxyType)):
        mapping = cast("Mapping[Any, Any]", value)
        return [*mapping.keys(), *mapping.values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return None


def _own(value: Any) -> int:
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    try:
        return memoryview(value).nbytes
    except (TypeError, ValueError, BufferError):
        return sys.getsizeof(value)
