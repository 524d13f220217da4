"""``quantum-bus``: the command line. One file a command."""

from __future__ import annotations

import sys


def main() -> None:
    """The program ``quantum-bus``."""
    try:
        from quantum_bus.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit("quantum-bus: the command line needs its extra; install it: pip install 'quantum-bus[cli]'")
    except KeyboardInterrupt:  # before there is a command to stop
        sys.exit(130)
    app(prog_name="quantum-bus")
