"""Publishing over asyncio: an event is checked, given its context, written, and confirmed within its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from redis.exceptions import RedisError

from . import driver, streams
from .backoff import Backoff
from .config import BusConfig
from .envelope import Event, Outgoing, Receipt, encode, prepare
from .errors import ConnectionLost, PublishError, PublishTimeout
from .link import Link, Reply
from .streams import Command
from .telemetry import Sending, Telemetry

# Entries written by one request of publish_many: what comes after waits its turn like any other request.
CHUNK: Final = 500


class Publisher:
    """Adds events to streams.

    A lost connection is retried until the timeout, with pauses: the reply may be lost although the entry was added, so
    an entry can be there twice then, under the same ``message_id``.
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
            command = self._command(outgoing, sending)
            receipt = _result(outgoing, sending, (await self._confirmed([command], timeout))[0])
            if isinstance(receipt, PublishError):
                raise receipt
            sending.sent(receipt.id)
            return receipt

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
            commands = [self._command(item, sending) for item in outgoing]
            replies = await self._confirmed(commands, timeout)
            results = [_result(item, sending, reply) for item, reply in zip(outgoing, replies, strict=True)]
            sending.failed = sum(isinstance(result, PublishError) for result in results)
            return results

    def _command(self, outgoing: Outgoing, sending: Sending) -> Command:
        fields = encode(
            outgoing,
            correlation_id=sending.correlation_id(outgoing),
            context=sending.context,
            baggage=sending.baggage,
            service=self._config.service,
        )
        return streams.add(outgoing.stream, fields)

    async def _confirmed(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """Their replies, in order: what had none is tried again until the timeout, then is a ``ConnectionLost``."""
        replies: list[Reply] = [None] * len(commands)
        missing = list(range(len(commands)))
        backoff = Backoff(self._config.backoff_initial, self._config.backoff_maximum)
        last: Reply = ConnectionLost(f"Redis did not answer within {timeout:g} s")
        try:
            async with asyncio.timeout(timeout):
                while missing:
                    try:
                        chunk = missing[:CHUNK]
                        answers = await self._link.execute(*[commands[index] for index in chunk])
                    except ConnectionLost as error:
                        last = error
                    else:
                        unanswered = []
                        for index, answer in zip(chunk, answers, strict=True):
                            if _again(answer):
                                last = answer
                                unanswered.append(index)
                            else:
                                replies[index] = answer
                        missing[:CHUNK] = unanswered
                        if not unanswered:
                            continue
                    await asyncio.sleep(backoff.next())
        except TimeoutError:
            for index in missing:
                replies[index] = last
        return replies


def _again(reply: Reply) -> bool:
    return isinstance(reply, ConnectionLost) or (isinstance(reply, RedisError) and driver.is_transient(reply))


def _result(outgoing: Outgoing, sending: Sending, reply: Reply) -> Receipt | PublishError:
    if isinstance(reply, bytes):
        return Receipt(reply.decode(), outgoing.message_id, sending.correlation_id(outgoing), outgoing.stream)
    if _again(reply):
        error: PublishError = PublishTimeout(
            f"Redis did not confirm message {outgoing.message_id} for {outgoing.stream!r} in time ({reply}); it may be "
            "stored: publish it again under the same message_id"
        )
    else:
        error = driver.publish_error(reply, outgoing.stream)
    error.__cause__ = reply
    return error
