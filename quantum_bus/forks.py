"""What the child of a fork has to make anew: locks that another thread of its parent may have held, connections."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Forked(Protocol):
    """What minds forks."""

    def after_fork(self) -> None:
        """Called in the child, before anything else of it is."""


_minding: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()


def mind(thing: Forked) -> None:
    """Have its ``after_fork`` called in each child, for as long as it is kept by others."""
    _minding.add(thing)


def _in_child() -> None:
    for thing in tuple(_minding):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
