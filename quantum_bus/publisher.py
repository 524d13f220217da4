"""Publishing over asyncio: an event is checked, given its context, written, and confirmed within its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .config import BusConfig
from .confirmation import Confirmation
from .envelope import Event, prepare
from .errors import ConnectionLost, PublishError
from .link import Link
from .receipt import Receipt
from .telemetry import Telemetry


class Publisher:
    """Adds events to streams.

    A lost connection is tried again until the timeout: the reply may be lost although the entry was added, so an entry
    can be there twice then, under the same ``message_id``.
    """

    def __init__(self, config: BusConfig, link: Link, telemetry: Telemetry) -> None:
        self._config = config
        self._link = link
        self._telemetry = telemetry

    async def publish(self, event: Event, *, timeout: float) -> Receipt:
        """Add one event.

        Raises:
            SerializationError, PayloadTooLarge, ConfigurationError: the event is at fault; nothing was sent.
            PublishTimeout: no confirmation within ``timeout`` seconds; it may be stored.
            BackPressure, PublishError: Redis refused it.
        """
        outgoing = prepare(event, max_payload_bytes=self._config.max_payload_bytes)
        with self._telemetry.sending(outgoing) as sending:
            confirmation = Confirmation((outgoing,), sending, self._config)
            await self._confirm(confirmation, timeout)
            return confirmation.result()

    async def publish_many(
        self, stream: str, events: Sequence[Event], *, timeout: float
    ) -> list[Receipt | PublishError]:
        """Add events to one stream, in order, under one span; one result for each, in order.

        Raises:
            SerializationError, PayloadTooLarge, ConfigurationError: an event is at fault; nothing was sent.
        """
        if not events:
            return []
        outgoing = [prepare(event, max_payload_bytes=self._config.max_payload_bytes) for event in events]
        with self._telemetry.sending_many(stream, outgoing) as sending:
            confirmation = Confirmation(outgoing, sending, self._config)
            await self._confirm(confirmation, timeout)
            return confirmation.results()

    async def _confirm(self, confirmation: Confirmation, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while commands := confirmation.commands():
                    try:
                        pause = confirmation.answered(await self._link.execute(*commands))
                    except ConnectionLost as error:
                        pause = confirmation.lost(error)
                    if pause:
                        await asyncio.sleep(pause)
        except TimeoutError:
            return  # what is not confirmed by now counts as timed out
