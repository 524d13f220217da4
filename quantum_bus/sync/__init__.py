"""The bus for threads: the names of :mod:`quantum_bus`, without ``await``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bus import EventBus

if TYPE_CHECKING:
    from quantum_bus.message import Message as _Message

    class Message(_Message):
        """A message whose ``ack()`` and siblings block."""

        def ack(self) -> None: ...  # type: ignore[override]
        def nack(self, delay: float | None = None) -> None: ...  # type: ignore[override]
        def term(self, reason: str) -> None: ...  # type: ignore[override]
        def in_progress(self) -> None: ...  # type: ignore[override]

else:
    from quantum_bus.message import Message

__all__ = ["EventBus", "Message"]
