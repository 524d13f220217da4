"""``quantum-bus``: the command line. One file a command."""

from __future__ import annotations

import gc
import sys
from typing import Final

# Objects that may come before garbage is looked for, which is a tenth of a short command's time: all that it makes.
UNCOLLECTED: Final = 100_000
# What a service is to have.
USUAL: Final = gc.get_threshold()


def main() -> None:
    """The program ``quantum-bus``."""
    gc.set_threshold(UNCOLLECTED)
    try:
        from quantum_bus.cli.app import app

        app(prog_name="quantum-bus")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit("quantum-bus: the command line needs its extra; install it: pip install 'quantum-bus[cli]'")
    except KeyboardInterrupt:  # before there is a command to stop
        sys.exit(130)
