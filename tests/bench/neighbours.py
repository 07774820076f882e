"""Whether anything else was using the machine's processors while a benchmark ran."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from harness import CORES

DISTURBED_SHARE = 0.1


class Neighbours:
    """Counts, from its making on, the processor time that neither this process nor its children took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = _busy_seconds() - _own_seconds()

    def note(self) -> str:
        """How many cores others kept busy; to be asked when every child has ended."""
        elapsed = time.monotonic() - self._started
        others = max(0.0, (_busy_seconds() - _own_seconds() - self._before) / elapsed)
        text = f"others kept {others:.2f} of {CORES} cores busy during the run"
        if others > DISTURBED_SHARE * CORES:
            return f"{text}: DISTURBED, do not trust these figures"
        return text


def _busy_seconds() -> float:
    """User, nice, system, interrupt and stolen time of all cores; see proc_stat(5)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total
