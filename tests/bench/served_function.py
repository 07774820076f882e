"""The Python function that every contender of `python_served.py` serves."""

from __future__ import annotations

WEIGHTS = [((index * 37) % 19 - 9) / 10 for index in range(16)]


def score(features: list[float]) -> dict[str, float | str]:
    """A linear score of 16 numbers: some microseconds of plain Python."""
    total = sum(weight * feature for weight, feature in zip(WEIGHTS, features, strict=True))
    return {"score": total, "label": "high" if total > 0 else "low"}
