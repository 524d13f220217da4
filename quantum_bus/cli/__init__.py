"""``quantum-bus``: the command line. One file a command."""

from __future__ import annotations

import gc
import sys
from typing import Final

from quantum_bus.cli.ending import written_out

# Objects that may come before garbage is looked for, which is a tenth of a short command's time: all that it makes.
UNCOLLECTED: Final = 100_000
# What Python has, and what a service gets once it is loaded: its objects are messages in hand, which are no garbage.
USUAL: Final = gc.get_threshold()
OF_A_SERVICE: Final = (10_000, 10, 10)


def collect_as_a_service() -> None:
    """Have the garbage collector look at what is made from now on, and more seldom.

    With a hundred subscribers that are all busy it took 18 of 90 µs a message, 10 with what is loaded out of its sight,
    and 4 with this threshold. One that the program has set itself stands.
    """
    gc.collect()
    gc.freeze()
    if gc.get_threshold() == USUAL:
        gc.set_threshold(*OF_A_SERVICE)


def main() -> None:
    """The program ``quantum-bus``."""
    gc.set_threshold(UNCOLLECTED)
    try:
        from quantum_bus.cli.app import app

        with written_out():
            app(prog_name="quantum-bus")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit("quantum-bus: the command line needs its extra; install it: pip install 'quantum-bus[cli]'")
    except KeyboardInterrupt:  # before there is a command to stop
        sys.exit(130)
