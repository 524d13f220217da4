"""Publishing from threads: as over asyncio, blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence

from quantum_bus.blocking_link import Link
from quantum_bus.config import BusConfig
from quantum_bus.confirmation import Confirmation
from quantum_bus.envelope import Event, prepare
from quantum_bus.errors import ConnectionLost, PublishError
from quantum_bus.receipt import Receipt
from quantum_bus.telemetry import Telemetry


class Publisher:
    """Adds events to streams; see :class:`quantum_bus.publisher.Publisher`."""

    def __init__(self, config: BusConfig, link: Link, telemetry: Telemetry) -> None:
        self._config = config
        self._link = link
        self._telemetry = telemetry

    def publish(self, event: Event, *, timeout: float) -> Receipt:
        """Add one event; errors as over asyncio."""
        outgoing = prepare(event, max_payload_bytes=self._config.max_payload_bytes)
        with self._telemetry.sending(outgoing) as sending:
            confirmation = Confirmation((outgoing,), sending, self._config)
            self._confirm(confirmation, timeout)
            return confirmation.result()

    def publish_many(self, stream: str, events: Sequence[Event], *, timeout: float) -> list[Receipt | PublishError]:
        """Add events to one stream, in order, under one span; one result for each, in order."""
        if not events:
            return []
        outgoing = [prepare(event, max_payload_bytes=self._config.max_payload_bytes) for event in events]
        with self._telemetry.sending_many(stream, outgoing) as sending:
            confirmation = Confirmation(outgoing, sending, self._config)
            self._confirm(confirmation, timeout)
            return confirmation.results()

    def _confirm(self, confirmation: Confirmation, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while commands := confirmation.commands():
            left = deadline - time.monotonic()
            if left <= 0:
                return  # what is not confirmed by now counts as timed out
            try:
                pause = confirmation.answered(self._link.execute(*commands, timeout=left))
            except ConnectionLost as error:
                pause = confirmation.lost(error)
            if pause:
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
