"""``quantum-bus``: the command line. One file a command."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """The program ``quantum-bus``."""
    gc.freeze()  # what is imported by now stays: looking through it for garbage takes a tenth of a short command
    try:
        from quantum_bus.cli.app import app

        app(prog_name="quantum-bus")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit("quantum-bus: the command line needs its extra; install it: pip install 'quantum-bus[cli]'")
    except KeyboardInterrupt:  # before there is a command to stop
        sys.exit(130)
