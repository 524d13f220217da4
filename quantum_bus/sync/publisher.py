"""Publishing from threads: as over asyncio, blocking."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from quantum_bus import streams
from quantum_bus.blocking_link import Link
from quantum_bus.config import BusConfig
from quantum_bus.confirmation import LANES, Confirmation, addition
from quantum_bus.envelope import Outgoing
from quantum_bus.errors import ConnectionLost, PublishError
from quantum_bus.receipt import Receipt
from quantum_bus.sending import Sending
from quantum_bus.telemetry import Telemetry


class Lanes:
    """Connections for what blocks its connection; see :class:`quantum_bus.publisher.Lanes`.

    Args:
        new_link: makes one that waits for a reply as long as its caller says.
    """

    def __init__(self, new_link: Callable[[], Link]) -> None:
        self._new_link = new_link
        self._places = threading.Semaphore(LANES)
        self._lock = threading.Lock()
        self._free: list[Link] = []
        self._taken: set[Link] = set()
        self._closed = False

    @contextlib.contextmanager
    def one(self, timeout: float) -> Iterator[Link]:
        """A connection of one's own, as over asyncio.

        Raises:
            ConnectionLost: the bus is closed, or none became free within ``timeout`` seconds.
        """
        if not self._places.acquire(timeout=timeout):
            raise ConnectionLost("every connection that may wait for replicas is waiting")
        try:
            with self._lock:
                if self._closed:
                    raise ConnectionLost("the bus has closed its connections")
                link = self._free.pop() if self._free else self._new_link()
                self._taken.add(link)
            failed = True
            try:
                yield link
                failed = False
            except ConnectionLost:
                self._close_free()  # they lead to the same server, and have most likely broken with it
                raise
            finally:
                with self._lock:
                    self._taken.discard(link)
                    keep = not failed and not self._closed
                    if keep:
                        self._free.append(link)
                if not keep:
                    link.close()
        finally:
            self._places.release()

    def close(self) -> None:
        """Close them all; what is under way ends in ``ConnectionLost``."""
        with self._lock:
            self._closed = True
            taken = tuple(self._taken)
        self._close_free()
        for link in taken:
            link.close()

    def _close_free(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        for link in free:
            link.close()


class Publisher:
    """Adds events to streams; see :class:`quantum_bus.publisher.Publisher`."""

    def __init__(self, config: BusConfig, link: Link, new_link: Callable[[], Link], telemetry: Telemetry) -> None:
        self._config = config
        self._link = link
        self._lanes = Lanes(new_link)
        self._telemetry = telemetry
        self._indexes = config.index is not None

    def close(self) -> None:
        """Close the connections that were made here; not the shared one."""
        self._lanes.close()

    def publish(self, outgoing: Outgoing, *, timeout: float, wait_replicas: int | None = None) -> Receipt:
        """Add one event; errors as over asyncio."""
        with self._telemetry.sending(outgoing) as sending:
            deadline = time.monotonic() + timeout
            pause = 0.0
            if wait_replicas or outgoing.delay_ms or outgoing.dedupe_ms or self._indexes:
                confirmation = Confirmation((outgoing,), sending, self._config, wait_replicas=wait_replicas)
            else:
                # as over asyncio: almost always the first try is all
                correlation_id = sending.correlation_id(outgoing)
                command = addition(outgoing, correlation_id, sending, self._config.service)
                try:
                    (reply,) = self._link.ask(
                        streams.pack_one(command), 1, timeout=timeout, meanwhile=sending.on_its_way
                    )
                except ConnectionLost as error:
                    reply = error
                if type(reply) is bytes:
                    entry_id = reply.decode()
                    sending.sent(entry_id)
                    return Receipt(entry_id, outgoing.message_id, correlation_id, outgoing.stream)
                confirmation = Confirmation((outgoing,), sending, self._config, commands=[command])
                confirmation.commands(timeout)
                if isinstance(reply, ConnectionLost):
                    pause = confirmation.lost(reply)
                else:
                    pause = confirmation.answered((reply,))
            self._confirm(confirmation, deadline, timeout, pause)
            return confirmation.result()

    def together(self, stream: str, outgoing: Sequence[Outgoing]) -> Sending:
        """The scope of what is published together, one by one with :meth:`publish_within`: one span."""
        return self._telemetry.sending_many(stream, outgoing)

    def publish_many(
        self, stream: str, outgoing: Sequence[Outgoing], *, timeout: float, wait_replicas: int | None = None
    ) -> list[Receipt | PublishError]:
        """Add events to one stream, in order, under one span; one result for each, in order."""
        if not outgoing:
            return []
        with self.together(stream, outgoing) as sending:
            confirmation = Confirmation(outgoing, sending, self._config, wait_replicas=wait_replicas)
            self._confirm(confirmation, time.monotonic() + timeout, timeout, 0.0)
            return confirmation.results()

    def publish_within(
        self, sending: Sending, outgoing: Outgoing, *, timeout: float, wait_replicas: int | None = None
    ) -> Receipt:
        """As :meth:`publish`, for one of those that are published together; how many failed is the caller's to say."""
        confirmation = Confirmation((outgoing,), sending, self._config, wait_replicas=wait_replicas)
        self._confirm(confirmation, time.monotonic() + timeout, timeout, 0.0)
        (result,) = confirmation.results()
        if isinstance(result, PublishError):
            raise result
        return result

    def _confirm(self, confirmation: Confirmation, deadline: float, timeout: float, pause: float) -> None:
        """Try until everything is answered, or the deadline; first after a pause, where one try was made already."""
        while confirmation.unfinished:
            if pause and confirmation.gives_up(deadline - time.monotonic() - pause, timeout):
                return
            if pause:
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            left = deadline - time.monotonic()
            if left <= 0:
                return  # what is not confirmed by now counts as timed out
            try:
                if confirmation.waits:
                    with self._lanes.one(left) as link:
                        left = max(0.0, deadline - time.monotonic())
                        replies = link.execute(*confirmation.commands(left), timeout=left)
                else:
                    replies = self._link.execute(*confirmation.commands(left), timeout=left)
                pause = confirmation.answered(replies)
            except ConnectionLost as error:
                pause = confirmation.lost(error)
