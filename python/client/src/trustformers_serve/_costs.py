"""What a record may cost, and the functions that estimate it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from trustformers_serve import _functions

T = TypeVar("T")


def check_estimator(name: str, estimator: Any) -> None:
    """Raises a `TypeError` that names `estimator`, the argument `name`, where calls of it give no cost."""
    if estimator is None:
        return
    if not callable(estimator):
        raise TypeError(f"{name} must be callable, not {estimator!r}")
    if _functions.is_coroutine(estimator) or _functions.is_generator(estimator):
        kind = "coroutine" if _functions.is_coroutine(estimator) else "generator"
        raise TypeError(f"{name} must return a number: {_functions.name(estimator)} is a {kind} function")


def is_cost(value: Any) -> bool:
    """Whether a record may cost so much: a number from 0."""
    try:
        return bool(value >= 0)
    except (TypeError, ValueError):
        return False


def first_of(first: Callable[[T], int], second: Callable[[T], int], record: T) -> int:
    """What the first estimator gives that is a cost."""
    try:
        cost = first(record)
    except Exception:  # noqa: BLE001 - whatever it raises, the next one is asked
        return second(record)
    return cost if is_cost(cost) else second(record)
