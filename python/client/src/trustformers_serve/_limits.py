"""Limits that users give, checked where they are given."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

MOST = 2**31 - 1
"""The most of anything that is counted."""


def check_count(name: str, value: Any, least: int, most: int = MOST) -> None:
    """Checks a number of things.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not least <= count <= most:
        bound = f">= {least}" if count < least else f"<= {most}"
        raise ValueError(f"{name} must be {bound}, not {value}")


def check_time(name: str, value: Any, *, may_be_zero: bool = False) -> None:
    """Checks a duration, in whatever unit.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite, or 0 where it must not be.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(float(value)):
        raise ValueError(f"{name} must be finite, not {value}")
    if value < 0 or (value == 0 and not may_be_zero):
        raise ValueError(f"{name} must be {'>=' if may_be_zero else '>'} 0, not {value}")
