"""Publishing over asyncio: an event is checked, given its context, written, and confirmed within its timeout."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from . import streams
from .config import BusConfig
from .confirmation import LANES, Confirmation, addition
from .envelope import Outgoing
from .errors import ConnectionLost, PublishError
from .link import Link
from .receipt import Receipt
from .sending import Sending
from .telemetry import Telemetry


class Lanes:
    """Connections for what blocks its connection, one call at a time on each. Made when first needed, up to ``LANES``.

    Args:
        new_link: makes one; it connects when it is used.
    """

    def __init__(self, new_link: Callable[[], Link]) -> None:
        self._new_link = new_link
        self._places = asyncio.Semaphore(LANES)
        self._free: list[Link] = []
        self._taken: set[Link] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Link]:
        """A connection of one's own. Where its use ends in an error, a reply may be outstanding: it is closed.

        Raises:
            ConnectionLost: the bus is closed.
        """
        async with self._places:
            if self._closed:
                raise ConnectionLost("the bus has closed its connections")
            link = self._free.pop() if self._free else self._new_link()
            self._taken.add(link)
            failed = True
            try:
                yield link
                failed = False
            except ConnectionLost:
                await self._close_free()  # they lead to the same server, and have most likely broken with it
                raise
            finally:
                self._taken.discard(link)
                if failed or self._closed:
                    await link.close()
                else:
                    self._free.append(link)

    async def close(self) -> None:
        """Close them all; what is under way ends in ``ConnectionLost``."""
        self._closed = True
        await self._close_free()
        for link in tuple(self._taken):
            await link.close()

    async def _close_free(self) -> None:
        while self._free:
            await self._free.pop().close()


class Publisher:
    """Adds events to streams.

    A lost connection is tried again until the timeout: the reply may be lost although the entry was added, so an entry
    can be there several times then, under the same ``message_id``; but for those that are published with ``dedupe``.

    Args:
        link: the bus's shared connection.
        new_link: makes another, for what blocks its connection.
    """

    def __init__(self, config: BusConfig, link: Link, new_link: Callable[[], Link], telemetry: Telemetry) -> None:
        self._config = config
        self._link = link
        self._lanes = Lanes(new_link)
        self._telemetry = telemetry
        self._indexes = config.index is not None

    async def close(self) -> None:
        """Close the connections that were made here; not the shared one."""
        await self._lanes.close()

    async def publish(self, outgoing: Outgoing, *, timeout: float, wait_replicas: int | None = None) -> Receipt:
        """Add one event.

        Raises:
            NotDurable: it is stored; fewer than ``wait_replicas`` replicas confirmed it.
            PublishTimeout: no confirmation within ``timeout`` seconds; it may be stored.
            BackPressure, PublishError: Redis refused it.
        """
        with self._telemetry.sending(outgoing) as sending:
            deadline = asyncio.get_running_loop().time() + timeout
            pause = 0.0
            if wait_replicas or outgoing.delay_ms or outgoing.dedupe_ms or self._indexes:
                confirmation = Confirmation((outgoing,), sending, self._config, wait_replicas=wait_replicas)
            else:
                # The first try is all, but once in a blue moon: it needs no Confirmation, whose state takes 5 µs.
                correlation_id = sending.correlation_id(outgoing)
                command = addition(outgoing, correlation_id, sending, self._config.service)
                request = self._link.ask(streams.pack_one(command), 1, until=deadline)
                alone = self._link.alone
                sending.on_its_way(alone=alone)
                if alone:
                    self._link.look()
                try:
                    (reply,) = await request
                except (ConnectionLost, TimeoutError) as error:
                    reply = error
                if type(reply) is bytes:
                    entry_id = reply.decode()
                    sending.sent(entry_id)
                    return Receipt(entry_id, outgoing.message_id, correlation_id, outgoing.stream)
                confirmation = Confirmation((outgoing,), sending, self._config, commands=[command])
                confirmation.commands(timeout)
                if isinstance(reply, TimeoutError):
                    return confirmation.result()
                if isinstance(reply, ConnectionLost):
                    pause = confirmation.lost(reply)
                else:
                    pause = confirmation.answered((reply,))
            await self._confirm(confirmation, deadline, timeout, pause)
            return confirmation.result()

    def together(self, stream: str, outgoing: Sequence[Outgoing]) -> Sending:
        """The scope of what is published together, one by one with :meth:`publish_within`: one span."""
        return self._telemetry.sending_many(stream, outgoing)

    async def publish_many(
        self, stream: str, outgoing: Sequence[Outgoing], *, timeout: float, wait_replicas: int | None = None
    ) -> list[Receipt | PublishError]:
        """Add events to one stream, in order, under one span; one result for each, in order."""
        if not outgoing:
            return []
        with self.together(stream, outgoing) as sending:
            deadline = asyncio.get_running_loop().time() + timeout
            confirmation = Confirmation(outgoing, sending, self._config, wait_replicas=wait_replicas)
            await self._confirm(confirmation, deadline, timeout, 0.0)
            return confirmation.results()

    async def publish_within(
        self, sending: Sending, outgoing: Outgoing, *, timeout: float, wait_replicas: int | None = None
    ) -> Receipt:
        """As :meth:`publish`, for one of those that are published together; how many failed is the caller's to say."""
        confirmation = Confirmation((outgoing,), sending, self._config, wait_replicas=wait_replicas)
        await self._confirm(confirmation, asyncio.get_running_loop().time() + timeout, timeout, 0.0)
        (result,) = confirmation.results()
        if isinstance(result, PublishError):
            raise result
        return result

    async def _confirm(self, confirmation: Confirmation, deadline: float, timeout: float, pause: float) -> None:
        """Try until everything is answered, or the deadline; first after a pause, where one try was made already."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(deadline):
                while confirmation.unfinished:
                    if pause and confirmation.gives_up(deadline - clock() - pause, timeout):
                        return
                    if pause:
                        await asyncio.sleep(pause)
                    try:
                        if confirmation.waits:
                            async with self._lanes.one() as link:
                                left = deadline - clock()
                                patience = left + streams.BLOCK_MARGIN  # the deadline itself ends it
                                replies = await link.execute(*confirmation.commands(left), timeout=patience, anew=True)
                        else:
                            replies = await self._link.execute(*confirmation.commands(timeout), anew=True)
                        pause = confirmation.answered(replies)
                    except ConnectionLost as error:
                        pause = confirmation.lost(error)
        except TimeoutError:
            return  # what is not confirmed by now counts as timed out
