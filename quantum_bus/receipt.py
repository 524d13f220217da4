"""What Redis confirmed of a publish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Receipt:
    """What Redis confirmed.

    Attributes:
        id: the stream entry's id, as ``"1735900523456-0"``; empty for a message published with ``delay``: its entry is
            made when it is due.
        message_id: the message's own id.
        correlation_id: the flow's id.
        stream: the stream's full name, with the bus's prefix.
    """

    id: str
    message_id: str
    correlation_id: str
    stream: str
