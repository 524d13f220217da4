"""Consuming with threads: one reader, one writer and ``concurrency`` workers a subscriber.

State and decisions are those of asyncio's consumer: :mod:`~quantum_bus.inbox`, :mod:`~quantum_bus.delivery`,
:mod:`~quantum_bus.outbox`, guarded here by one condition.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any

from redis.exceptions import RedisError

from quantum_bus import delivery, driver, journal, streams
from quantum_bus.backoff import Backoff
from quantum_bus.config import BusConfig, SubscriberConfig
from quantum_bus.delivery import Ack, Again, Bury, Outcome
from quantum_bus.envelope import Entry, decode, timestamp
from quantum_bus.errors import ConfigurationError, ConnectionLost, QuantumBusError
from quantum_bus.handlers import Handler
from quantum_bus.inbox import Held, Inbox
from quantum_bus.message import Message
from quantum_bus.outbox import LOST, Letter, Outbox
from quantum_bus.run import Run, admit
from quantum_bus.telemetry import Telemetry

from .link import Link

Process = Callable[[Any], Any]
"""A handler behind its middleware: takes a message, or a list of them, and runs."""


class Consumer:
    """One subscriber at work; see :class:`quantum_bus.consumer.Consumer`."""

    def __init__(
        self,
        config: SubscriberConfig,
        handler: Handler,
        *,
        name: str,
        bus: BusConfig,
        commands: Link,
        reader: Link,
        telemetry: Telemetry,
        wrap: Callable[[Process], Process],
    ) -> None:
        self.config = config
        self.name = name
        self._handler = handler
        self._bus = bus
        self._commands = commands
        self._reader = reader
        self._telemetry = telemetry
        self._wrap = wrap
        self._inbox = Inbox(concurrency=config.concurrency, batch=config.batch, streams=len(config.streams))
        self._outbox = Outbox(group=config.group, consumer=name, config=bus, clock=monotonic)
        self._parked: list[tuple[float, int, Held]] = []
        self._tickets = itertools.count()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._has_read = False
        self._closed = False
        self._context = contextvars.copy_context()
        self._reading = self._thread("reader", self._read)
        self._writing = self._thread("writer", self._write)
        self._workers = [self._thread(f"worker {number}", self._work) for number in range(config.concurrency)]

    def _thread(self, role: str, target: Callable[[], None]) -> threading.Thread:
        # daemons: a handler that hangs must not keep the process from ending once the bus is stopped
        context = self._context.copy()
        return threading.Thread(
            target=lambda: context.run(target), name=f"quantum_bus {role} {self.config.group}", daemon=True
        )

    # --- life ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the groups; errors as over asyncio."""
        start = streams.FIRST_ENTRY if self.config.start == "beginning" else streams.LAST_ENTRY
        for stream in self.config.streams:
            self._make_group(stream, start, again=False)
        self._reader.identify()

    def begin(self) -> None:
        """Begin to read and to handle."""
        for thread in (self._writing, *self._workers, self._reading):
            thread.start()

    def stop_reading(self, deadline: float) -> None:
        """Take no new messages; as over asyncio."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        until = max(deadline, monotonic() + streams.UNBLOCK_PATIENCE)
        while self._reading.is_alive() and (left := until - monotonic()) > 0:
            if self._reader.client_id is not None:
                try:
                    self._commands.execute_one(("CLIENT", "UNBLOCK", self._reader.client_id), timeout=left)
                except QuantumBusError:
                    journal.log.debug("The read could not be unblocked; it ends by itself", exc_info=True)
            self._reading.join(streams.UNBLOCK_AGAIN)

    def drain(self, deadline: float) -> int:
        """Let running handlers end and their outcomes be written, until ``deadline`` on the monotonic clock.

        Returns:
            How many messages had to be abandoned; they stay pending in Redis.
        """
        for thread in (self._reading, *self._workers, self._writing):
            if thread.is_alive():
                thread.join(max(0.0, deadline - monotonic()))
        with self._changed:
            return len(self._inbox)

    def close(self) -> None:
        """Give the reader's connection back. A handler that still runs goes on; its outcome is not written."""
        self._stopping.set()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.close()

    # --- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._read_on()
        finally:
            with self._changed:
                self._has_read = True
                self._changed.notify_all()

    def _read_on(self) -> None:
        config = self.config
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        block_ms = max(1, int(self._bus.block * 1000))
        recover = False
        while not self._stopping.is_set():
            try:
                if recover:
                    self._reader.identify()
                    self._recover()
                    recover = False
                room = self._await_room()
                if not room:
                    continue
                command = streams.read_new(config.group, self.name, config.streams, count=room, block_ms=block_ms)
                reply = self._reader.execute_one(command, timeout=self._bus.block + streams.BLOCK_MARGIN)
                if isinstance(reply, ConnectionLost):
                    raise reply
                if isinstance(reply, RedisError):
                    self._refused(reply, backoff)
                    continue
            except (ConnectionLost, ConfigurationError) as error:
                # the reply may have been lost behind the read: its entries are this consumer's, and unseen
                recover = True
                if not backoff.failures and not self._closed:
                    journal.connection_lost(error)
                self._stopping.wait(backoff.next())
                continue
            if backoff.failures:
                journal.reading_again(config)
                backoff.reset()
            self._take(streams.parse_read(reply))

    def _await_room(self) -> int:
        with self._changed:
            while (room := self._inbox.room()) < 1 and not self._stopping.is_set():
                self._changed.wait()
            return 0 if self._stopping.is_set() else room

    def _refused(self, error: RedisError, backoff: Backoff) -> None:
        """The server answered the read with an error."""
        if not backoff.failures:
            journal.read_refused(self.config, error)
        self._stopping.wait(backoff.next())
        if driver.is_no_group(error):
            # FLUSHALL, XGROUP DESTROY or a failover: never at `$`, which would pass by what came meanwhile
            try:
                for stream in self.config.streams:
                    self._make_group(stream, streams.FIRST_ENTRY, again=True)
            except (ConnectionLost, ConfigurationError):
                journal.log.debug("The groups could not be made", exc_info=True)  # the next read meets it, and says so

    def _make_group(self, stream: str, start: str, *, again: bool) -> None:
        reply, groups = self._commands.execute(
            streams.create_group(stream, self.config.group, start), streams.list_groups(stream)
        )
        if isinstance(reply, ConnectionLost):
            raise reply
        if isinstance(reply, RedisError):
            # a Redis that is out of memory refuses to make even a group that is there
            if driver.is_busy_group(reply) or self.config.group in streams.parse_groups(groups):
                return
            raise driver.group_error(reply, stream, self.config.group) from reply
        journal.group_made(stream, self.config.group, start, again=again)

    def _recover(self) -> None:
        """Read what Redis gave this consumer and it never saw: all that is its own, but for what it holds."""
        for stream in self.config.streams:
            after = streams.FIRST_ENTRY
            while not self._stopping.is_set():
                command = streams.read_own(self.config.group, self.name, stream, after=after)
                reply = self._commands.execute_one(command)
                if isinstance(reply, ConnectionLost):
                    raise reply
                if isinstance(reply, RedisError):
                    return  # NOGROUP and the like: the next read meets it too, and says so
                read = streams.parse_read(reply)
                if read.last is None:
                    break
                self._take(read)
                after = read.last

    def _take(self, read: streams.Read) -> None:
        with self._changed:
            for entry in read.entries:
                if (entry.stream, entry.id) not in self._inbox:
                    held, bury = admit(entry, self._handler, sampled=self._bus.sampled)
                    if bury is None:
                        self._inbox.take(held)
                    else:
                        self._inbox.hold(held)
                        self._outbox.bury(held, bury)
            for stream, entry_id in read.deleted:
                if (stream, entry_id) not in self._inbox:
                    journal.deleted(stream, entry_id, self.config.group)
                    lost = Held(decode(Entry(stream, entry_id, ())))
                    self._inbox.hold(lost)
                    self._outbox.ack(lost)
            self._changed.notify_all()

    # --- running ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._closed or (held := self._inbox.next_run()) is None:
                    if self._closed or self._has_read:
                        return
                    self._changed.wait()
            settlement = ByHand(self)
            run = Run(held, self._handler, self.config, settlement)
            settlement.held = dict(zip(run.messages, run.held, strict=True))
            self._context.copy().run(self._handle, run)

    def _handle(self, run: Run) -> None:
        with run.handling(self._telemetry, self.name) as handling:
            error = self._call(run)
            outcomes = run.end(error, handling.span_context)
            handling.finish(*run.summary(outcomes))
        with self._changed:
            self._inbox.ran()
            for held, outcome in outcomes:
                self._settle(held, outcome)
            self._changed.notify_all()

    def _call(self, run: Run) -> BaseException | None:
        """Run the handler behind its middleware; its error, if it raised one."""
        process = self._wrap(lambda _: self._handler.function(**run.arguments))
        try:
            if self.config.timeout is None:
                process(run.subject)
            else:
                _bounded(process, run.subject, self.config.timeout)
        except Exception as error:  # noqa: BLE001 - a handler's error becomes an outcome
            journal.handler_failed(self._handler.name, run.messages, error)
            return error
        return None

    # --- outcomes --------------------------------------------------------------------------------

    def _settle(self, held: Held, outcome: Outcome | None) -> None:
        """Do what was decided; None: it has been done by hand. The condition is held."""
        match outcome:
            case Ack():
                self._inbox.settling()
                self._outbox.ack(held)
            case Bury():
                self._inbox.settling()
                self._outbox.bury(held, outcome)
            case Again(delay=delay):
                held.first_failed_at = held.first_failed_at or timestamp()
                self._telemetry.retried(held.incoming.stream, self.config.group)
                heapq.heappush(self._parked, (monotonic() + delay, next(self._tickets), held))
            case None:
                return

    def _write(self) -> None:
        """Write what the outbox holds and wake what is parked, until the consumer stops and nothing is left."""
        while True:
            with self._changed:
                while not self._due():
                    if self._closed or (self._has_read and self._inbox.idle and not self._outbox):
                        return
                    self._changed.wait(self._pause())
                commands = self._outbox.take()
            if not commands:
                continue
            try:
                replies: list[Any] = self._commands.execute(*commands)
            except QuantumBusError as error:
                replies = [error] * len(commands)
            with self._changed:
                answered = self._outbox.answered(replies)
                for letter in answered.settled:
                    self._inbox.release(letter.held)
                self._changed.notify_all()
            journal.outcomes_refused(answered.refused)
            for letter in answered.settled:
                self._settled(letter)

    def _due(self) -> bool:
        """Whether something is to be written; what was parked long enough is made ready on the way."""
        while self._parked and self._parked[0][0] <= monotonic() and not self._stopping.is_set():
            self._inbox.again(heapq.heappop(self._parked)[2])
            self._changed.notify_all()
        return self._outbox.pause() == 0 and not self._closed

    def _pause(self) -> float | None:
        pauses = [] if (pause := self._outbox.pause()) is None else [pause]
        if self._parked and not self._stopping.is_set():
            pauses.append(max(0.0, self._parked[0][0] - monotonic()))
        return min(pauses, default=None)

    def _settled(self, letter: Letter) -> None:
        if letter.buried is not None:
            self._telemetry.dead_lettered(letter.held.incoming.stream, self.config.group, letter.buried)
        journal.settled(letter, self.config.group)
        if letter.settled is not None:
            letter.settled(letter.result)

    # --- by hand ---------------------------------------------------------------------------------

    def post_by_hand(self, held: Held, bury: Bury | None) -> None:
        """Ack or dead-letter now, and wait until Redis has done it.

        Raises:
            LeaseLost: another consumer owns the message by now.
        """
        future: Future[str] = Future()
        with self._changed:
            self._inbox.settling()
            if bury is None:
                self._outbox.ack(held, future.set_result)
            else:
                self._outbox.bury(held, bury, future.set_result)
            self._changed.notify_all()
        if future.result() == LOST:
            raise held.lease_lost()

    def keep_by_hand(self, held: Held) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: another consumer owns the message by now.
            ConnectionLost: Redis did not do it.
        """
        incoming = held.incoming
        reply = self._commands.execute_one(
            streams.KEEP.call([incoming.stream], self.config.group, self.name, incoming.id)
        )
        if isinstance(reply, BaseException):
            raise ConnectionLost(f"the lease of message {incoming.id} could not be renewed: {reply}") from reply
        if not reply:
            raise held.lease_lost()


class ByHand:
    """Carries ``message.ack()`` and its siblings to the consumer; they return when Redis has answered."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.held: dict[Message, Held] = {}

    def ack(self, message: Message) -> None:
        self._consumer.post_by_hand(self.held[message], None)

    def nack(self, message: Message) -> None:
        """Nothing to do yet: the run's end reads it off the message."""

    def term(self, message: Message, reason: str) -> None:
        self._consumer.post_by_hand(self.held[message], delivery.after_term(reason))

    def in_progress(self, message: Message) -> None:
        self._consumer.keep_by_hand(self.held[message])


def _bounded(process: Process, subject: Any, timeout: float) -> None:
    """Run with a time limit: in a thread of its own, which cannot be stopped and is left behind if it hangs."""
    future: Future[None] = Future()
    context = contextvars.copy_context()

    def body() -> None:
        try:
            context.run(process, subject)
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=body, name="quantum_bus bounded handler", daemon=True).start()
    try:
        future.result(timeout)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"the handler ran longer than its timeout of {timeout:g} s") from None
