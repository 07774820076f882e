"""The console script `trustformers-serve`: the command line of the cargo binary of that name."""

from __future__ import annotations

import os
import signal
import sys

from trustformers_serve import _core


def main() -> None:
    """Runs the command line and exits with its code."""
    # Python's own handler would note the signal too, and raise KeyboardInterrupt after a clean stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = _core.run_cli(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to do, and LibTorch's static destructors would take about a second for it.
    os._exit(code)
