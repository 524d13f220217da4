"""Leases kept alive from a thread and a connection of their own.

A handler may block its event loop for long: the messages that its process holds must not be taken for a dead
consumer's. So nothing that a handler can block is used here but the GIL itself. A process that is stopped (SIGSTOP) or
dead sends no heartbeat, and others take over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from . import journal, streams
from .blocking_link import Link
from .errors import QuantumBusError
from .leadership import Leadership
from .sources import Key, NotOwned, Sources
from .streams import Command

# Heartbeats in one lease: two may be lost before it expires.
BEATS: Final = 3
KEEP_TOGETHER: Final = 500


@dataclass(slots=True, eq=False)
class Lease:
    """What one consumer has kept alive.

    Attributes:
        ack_wait: seconds that a lease lasts.
        held: tells what is held, as (key it is pending in, entry id); called from the heartbeat's thread.
        not_owned: told what is not this consumer's any more; called from the heartbeat's thread.
        leadership: the leases on its streams, where it handles them in order.
        due: when to renew, on the monotonic clock.
    """

    group: str
    consumer: str
    ack_wait: float
    held: Callable[[], Sequence[Key]]
    not_owned: Callable[[NotOwned], None]
    leadership: Leadership | None = None
    due: float = field(default=0.0)

    def begin(self) -> None:
        """Renew from now on; what is to lead tries that at once."""
        self.due = monotonic() + (self.ack_wait / BEATS if self.leadership is None else 0.0)

    def beaten(self, *, well: bool) -> None:
        """There was an answer to everything, or not: plan the next renewal."""
        pause = self.ack_wait / BEATS if self.leadership is None else self.leadership.pause()
        self.due = monotonic() + (pause if well else min(pause, self.ack_wait / 10))

    def commands(self) -> list[Command]:
        """The renewals."""
        by_source: dict[str, list[str]] = {}
        for source, entry_id in self.held():
            by_source.setdefault(source, []).append(entry_id)
        keeps = [
            streams.KEEP.call([source], self.group, self.consumer, *ids[start : start + KEEP_TOGETHER])
            for source, ids in by_source.items()
            for start in range(0, len(ids), KEEP_TOGETHER)
        ]
        return keeps if self.leadership is None else [*self.leadership.commands(), *keeps]

    def answered(self, commands: Sequence[Command], replies: Sequence[Any]) -> bool:
        """The replies to :meth:`commands`; whether all were renewals."""
        kept = [pair for pair in zip(commands, replies, strict=True) if pair[0][1] == streams.KEEP.sha]
        if self.leadership is not None:
            self.leadership.answered(replies[: len(replies) - len(kept)])
        not_owned = Sources.not_owned([command for command, _ in kept], [reply for _, reply in kept])
        if not_owned.lost or not_owned.gone:
            self.not_owned(not_owned)
        return all(isinstance(reply, list) for reply in replies)


def patience(leases: Iterable[Lease], reply_timeout: float) -> float:
    """Seconds after which the connection that renews leases counts as dead.

    No longer than a renewal may take: else leases could run out over one that nobody answers on any more.
    """
    return min(reply_timeout, *(lease.ack_wait / BEATS for lease in leases))


class Heartbeat:
    """Renews the leases of a bus's consumers, each three times in its ``ack_wait``."""

    def __init__(self, link: Link, leases: Sequence[Lease]) -> None:
        self._link = link
        self._leases = leases
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quantum_bus heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; the first renewal is due after a third of the shortest ``ack_wait``."""
        for lease in self._leases:
            lease.begin()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Send no more; what is still held expires with its lease."""
        self._stopped.set()
        self._link.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = min(lease.due for lease in self._leases) - monotonic()
            if pause > 0:
                self._stopped.wait(pause)
                continue
            for lease in self._leases:
                if lease.due <= monotonic():
                    lease.beaten(well=self._beats(lease))

    def _beats(self, lease: Lease) -> bool:
        """Renew; whatever goes wrong, the next renewal is tried."""
        try:
            return self._beat(lease)
        except Exception as error:  # noqa: BLE001 - without it, all that is held would be run twice
            journal.internal_error(f"The heartbeat of {lease.group}", error)
            return False

    def _beat(self, lease: Lease) -> bool:
        """Renew everything a consumer holds; whether Redis answered."""
        renewals = lease.commands()
        if not renewals:
            return True
        try:
            replies = self._link.execute(*renewals, timeout=lease.ack_wait / BEATS)
        except QuantumBusError:
            return False  # the readers meet it too, and say so
        return lease.answered(renewals, replies)
