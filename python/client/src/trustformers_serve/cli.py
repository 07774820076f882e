"""The console script `trustformers-serve`: the command line of the cargo binary of that name."""

from __future__ import annotations

import signal
import sys

from trustformers_serve import _core


def main() -> None:
    """Runs the command line and exits with its code."""
    # Python's own handler would note the signal too, and raise KeyboardInterrupt after a clean stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_core.run_cli(sys.argv))
