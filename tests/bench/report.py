"""Tables, targets and the JSON file of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import CORES, ROOT, WORK


@dataclass(frozen=True)
class Spread:
    """The median of several repeats, and the least and the most among them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        if self.low == self.high:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


@dataclass(frozen=True)
class Target:
    """A figure, and the limit that it must reach."""

    what: str
    value: float
    relation: str  # ">=" or "<="
    limit: float
    unit: str = ""
    digits: int = 2

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.relation == ">=" else self.value <= self.limit

    def cells(self) -> list[str]:
        unit = f" {self.unit}" if self.unit else ""
        measured = f"{self.value:,.{self.digits}f}{unit}"
        limit = f"{self.relation} {self.limit:,.{self.digits}f}{unit}"
        return [self.what, measured, limit, "met" if self.met else "MISSED"]


@dataclass
class Report:
    """What a benchmark prints and writes."""

    name: str
    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list[list[str]])
    targets: list[Target] = field(default_factory=list[Target])
    notes: list[str] = field(default_factory=list[str])
    measurements: list[dict[str, Any]] = field(
        default_factory=list[dict[str, Any]]
    )  # every repeat, unrounded

    def text(self) -> str:
        parts = [self.title, "=" * len(self.title), align([self.columns, *self.rows])]
        if self.targets:
            header = ["target", "measured", "limit", ""]
            parts += ["", align([header, *(target.cells() for target in self.targets)])]
        parts += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(parts) + "\n"

    def write_json(self) -> Path:
        """Writes `.bench/results/NAME.json`."""
        path = WORK / "results" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        targets = [
            {
                "what": t.what,
                "value": t.value,
                "relation": t.relation,
                "limit": t.limit,
                "unit": t.unit,
                "met": t.met,
            }
            for t in self.targets
        ]
        content = {
            "name": self.name,
            "title": self.title,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "columns": list(self.columns),
            "rows": self.rows,
            "targets": targets,
            "notes": self.notes,
            "measurements": self.measurements,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first is flush left, the others flush right; a rule below the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": CORES,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
