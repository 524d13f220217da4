"""Consuming over asyncio: one reader a subscriber, many handlers, outcomes written together.

What is held and how much may be read is :mod:`~quantum_bus.inbox`'s to say, what becomes of a message
:mod:`~quantum_bus.delivery`'s, what is written next :mod:`~quantum_bus.outbox`'s; this room reads, runs and writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from redis.exceptions import RedisError

from . import delivery, driver, journal, streams
from .backoff import Backoff
from .config import BusConfig, SubscriberConfig
from .delivery import Ack, Again, Bury, Outcome
from .envelope import Entry, decode, timestamp
from .errors import ConfigurationError, ConnectionLost, QuantumBusError
from .handlers import Handler
from .inbox import Held, Inbox
from .link import Link
from .message import Message
from .outbox import LOST, Letter, Outbox
from .run import Run, admit
from .telemetry import Telemetry

Process = Callable[[Any], Awaitable[Any]]
"""A handler behind its middleware: takes a message, or a list of them, and runs."""


class Consumer:
    """One subscriber at work.

    Args:
        name: the consumer's name in its group; unique for each start of a process.
        commands: the bus's shared link, for outcomes.
        reader: a link of its own, for blocking reads.
        wrap: puts the bus's middleware around a handler run.
        threads: where ``def`` handlers run.
    """

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
        threads: Executor | None,
    ) -> None:
        self.config = config
        self.name = name
        self._handler = handler
        self._bus = bus
        self._commands = commands
        self._reader = reader
        self._telemetry = telemetry
        self._wrap = wrap
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(concurrency=config.concurrency, batch=config.batch, streams=len(config.streams))
        self._outbox = Outbox(group=config.group, consumer=name, config=bus, clock=self._loop.time)
        self._by_hand = ByHand(self)
        self._stopping = asyncio.Event()
        self._late = False
        self._room = asyncio.Event()
        self._posted = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._runs: dict[asyncio.Task[None], Run] = {}
        self._context = contextvars.copy_context()

    # --- life ------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Make the groups.

        Raises:
            ConfigurationError: a stream's key holds something else, or this user may not make the group.
            ConnectionLost: Redis cannot be reached.
        """
        start = streams.FIRST_ENTRY if self.config.start == "beginning" else streams.LAST_ENTRY
        for stream in self.config.streams:
            await self._make_group(stream, start, again=False)
        await self._reader.identify()

    def begin(self) -> None:
        """Begin to read and to handle."""
        self._writing = asyncio.create_task(self._write(), name=f"quantum_bus writer {self.name}")
        self._reading = asyncio.create_task(self._read(), name=f"quantum_bus reader {self.name}")

    async def stop_reading(self, deadline: float) -> None:
        """Take no new messages; returns at the deadline at the latest, or a moment after it.

        A read that blocks is told by the server to return; it is not cancelled, for its entries would be stranded with
        this consumer. What it brought is still handled.
        """
        self._stopping.set()
        self._room.set()
        if self._reading is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(deadline, self._loop.time() + streams.UNBLOCK_PATIENCE)):
                while not self._reading.done():
                    await self._unblock()
                    await asyncio.wait([self._reading], timeout=streams.UNBLOCK_AGAIN)

    async def _unblock(self) -> None:
        if self._reader.client_id is None or not self._reader.connected:
            return
        try:
            await self._commands.execute_one(("CLIENT", "UNBLOCK", self._reader.client_id))
        except QuantumBusError:
            journal.log.debug("The read could not be unblocked; it ends by itself", exc_info=True)

    async def drain(self, deadline: float) -> int:
        """Let running handlers end and their outcomes be written, until ``deadline`` on the loop's clock.

        Returns:
            How many messages had to be abandoned; they stay pending in Redis.
        """
        while self._runs and (left := deadline - self._loop.time()) > 0:  # each that ends may begin another
            await asyncio.wait(self._runs, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._late = True
        for task in self._runs:
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs, timeout=1.0)
        if self._writing is not None:
            self._posted.set()  # with nothing left to write, it ends
            await asyncio.wait([self._writing], timeout=max(0.0, deadline - self._loop.time()))
        return len(self._inbox)

    async def close(self) -> None:
        """End what still runs, and give the reader's connection back."""
        tasks = [task for task in (self._reading, self._writing, *self._runs) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._reader.close()

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        config = self.config
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        block_ms = max(1, int(self._bus.block * 1000))
        recover = False
        while not self._stopping.is_set():
            try:
                if recover:
                    await self._reader.identify()
                    await self._recover()
                    recover = False
                room = self._inbox.room()
                if room < 1:
                    self._room.clear()
                    await self._room.wait()
                    continue
                command = streams.read_new(config.group, self.name, config.streams, count=room, block_ms=block_ms)
                reply = await self._reader.execute_one(command, timeout=self._bus.block + streams.BLOCK_MARGIN)
                if isinstance(reply, ConnectionLost):
                    raise reply
                if isinstance(reply, RedisError):
                    await self._refused(reply, backoff)
                    continue
            except (ConnectionLost, ConfigurationError) as error:
                # the reply may have been lost behind the read: its entries are this consumer's, and unseen
                recover = True
                if not backoff.failures:
                    journal.connection_lost(error)
                await self._pause(backoff)
                continue
            if backoff.failures:
                journal.reading_again(config)
                backoff.reset()
            self._take(streams.parse_read(reply))

    def _has_read(self) -> bool:
        return self._stopping.is_set() and (self._reading is None or self._reading.done())

    async def _pause(self, backoff: Backoff) -> None:
        """Wait before Redis is tried again; not once the consumer is stopping."""
        await _wait(self._stopping, backoff.next())

    async def _refused(self, error: RedisError, backoff: Backoff) -> None:
        """The server answered the read with an error."""
        if not backoff.failures:
            journal.read_refused(self.config, error)
        await self._pause(backoff)
        if driver.is_no_group(error):
            # FLUSHALL, XGROUP DESTROY or a failover: never at `$`, which would pass by what came meanwhile
            try:
                for stream in self.config.streams:
                    await self._make_group(stream, streams.FIRST_ENTRY, again=True)
            except (ConnectionLost, ConfigurationError):
                journal.log.debug("The groups could not be made", exc_info=True)  # the next read meets it, and says so

    async def _make_group(self, stream: str, start: str, *, again: bool) -> None:
        reply, groups = await self._commands.execute(
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

    async def _recover(self) -> None:
        """Read what Redis gave this consumer and it never saw: all that is its own, but for what it holds."""
        for stream in self.config.streams:
            after = streams.FIRST_ENTRY
            while not self._stopping.is_set():
                command = streams.read_own(self.config.group, self.name, stream, after=after)
                reply = await self._commands.execute_one(command)
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
        for entry in read.entries:
            if (entry.stream, entry.id) not in self._inbox:
                held, bury = admit(entry, self._handler, sampled=self._bus.sampled)
                if bury is None:
                    self._inbox.take(held)
                else:
                    self._inbox.hold(held)
                    self._bury(held, bury)
        for stream, entry_id in read.deleted:
            if (stream, entry_id) not in self._inbox:
                journal.deleted(stream, entry_id, self.config.group)
                lost = Held(decode(Entry(stream, entry_id, ())))
                self._inbox.hold(lost)
                self._ack(lost)
        self._run_ready()

    # --- running ---------------------------------------------------------------------------------

    def _run_ready(self) -> None:
        while not self._late and (held := self._inbox.next_run()) is not None:
            run = Run(held, self._handler, self.config, self._by_hand)
            self._by_hand.began(run)
            task = asyncio.create_task(self._handle(run), context=self._context.copy())
            self._runs[task] = run
            task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._by_hand.ended(self._runs.pop(task))
        self._inbox.ran()
        self._room.set()
        self._run_ready()

    async def _handle(self, run: Run) -> None:
        with run.handling(self._telemetry, self.name) as handling:
            error = await self._call(run)
            outcomes = run.end(error, handling.span_context)
            handling.finish(*run.summary(outcomes))
        for held, outcome in outcomes:
            self._settle(held, outcome)

    async def _call(self, run: Run) -> BaseException | None:
        """Run the handler behind its middleware; its error, if it raised one."""

        async def innermost(_: Any) -> Any:
            call = self._handler.function
            if self._handler.is_async:
                return await call(**run.arguments)
            context = contextvars.copy_context()
            return await self._loop.run_in_executor(self._threads, lambda: context.run(call, **run.arguments))

        failed: BaseException
        limit = asyncio.timeout(self.config.timeout)
        try:
            async with limit:
                await self._wrap(innermost)(run.subject)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the bus is stopping, past its deadline
            failed = error
        except Exception as error:  # noqa: BLE001 - a handler's error becomes an outcome
            failed = error
            if limit.expired():
                failed = TimeoutError(f"the handler ran longer than its timeout of {self.config.timeout:g} s")
        else:
            return None
        journal.handler_failed(self._handler.name, run.messages, failed)
        return failed

    # --- outcomes --------------------------------------------------------------------------------

    def _settle(self, held: Held, outcome: Outcome | None) -> None:
        """Do what was decided; None: it has been done by hand."""
        match outcome:
            case Ack():
                self._inbox.settling()
                self._ack(held)
            case Bury():
                self._inbox.settling()
                self._bury(held, outcome)
            case Again(delay=delay):
                held.first_failed_at = held.first_failed_at or timestamp()
                self._telemetry.retried(held.incoming.stream, self.config.group)
                self._loop.call_later(delay, self._again, held)
            case None:
                return

    def _again(self, held: Held) -> None:
        if not self._stopping.is_set():
            self._inbox.again(held)
            self._run_ready()

    def _ack(self, held: Held, settled: Callable[[str], None] | None = None) -> None:
        self._outbox.ack(held, settled)
        self._posted.set()

    def _bury(self, held: Held, bury: Bury, settled: Callable[[str], None] | None = None) -> None:
        self._outbox.bury(held, bury, settled)
        self._posted.set()

    async def _write(self) -> None:
        """Write what the outbox holds, until the consumer has stopped reading and nothing is left."""
        while not (self._has_read() and not self._runs and not self._outbox):
            self._posted.clear()
            pause = self._outbox.pause()
            if pause is None or pause > 0:
                await _wait(self._posted, pause)
                continue
            commands = self._outbox.take()
            try:
                answered = self._outbox.answered(await self._commands.execute(*commands))
            except QuantumBusError as error:
                answered = self._outbox.failed(error)
            journal.outcomes_refused(answered.refused)
            for letter in answered.settled:
                self._settled(letter)
            self._room.set()

    def _settled(self, letter: Letter) -> None:
        self._inbox.release(letter.held)
        if letter.buried is not None:
            self._telemetry.dead_lettered(letter.held.incoming.stream, self.config.group, letter.buried)
        journal.settled(letter, self.config.group)
        if letter.settled is not None:
            letter.settled(letter.result)

    # --- by hand ---------------------------------------------------------------------------------

    def post_by_hand(self, held: Held, bury: Bury | None) -> Coroutine[Any, Any, None]:
        """Ack or dead-letter now, awaited or not; the coroutine returns when Redis has done it.

        Raises:
            LeaseLost: in the coroutine; another consumer owns the message by now.
        """
        future: asyncio.Future[str] = self._loop.create_future()

        def settled(result: str) -> None:
            if not future.done():
                future.set_result(result)

        self._inbox.settling()
        if bury is None:
            self._ack(held, settled)
        else:
            self._bury(held, bury, settled)

        async def confirmed() -> None:
            if await future == LOST:
                raise held.lease_lost()

        return confirmed()

    async def keep_by_hand(self, held: Held) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: another consumer owns the message by now.
            ConnectionLost: Redis did not do it.
        """
        incoming = held.incoming
        command = streams.KEEP.call([incoming.stream], self.config.group, self.name, incoming.id)
        reply = await self._commands.execute_one(command)
        if isinstance(reply, BaseException):
            raise ConnectionLost(f"the lease of message {incoming.id} could not be renewed: {reply}") from reply
        if not reply:
            raise held.lease_lost()


class ByHand:
    """Carries ``message.ack()`` and its siblings to the consumer, from the event loop or from a worker thread."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._loop = asyncio.get_running_loop()
        self._held: dict[Message, Held] = {}

    def began(self, run: Run) -> None:
        self._held.update(zip(run.messages, run.held, strict=True))

    def ended(self, run: Run) -> None:
        for message in run.messages:
            message.close()
            self._held.pop(message, None)

    def ack(self, message: Message) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(self._held[message], None))

    def nack(self, message: Message) -> Any:  # noqa: ARG002 - the run's end reads it off the message
        return self._carry(lambda: asyncio.sleep(0))

    def term(self, message: Message, reason: str) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(self._held[message], delivery.after_term(reason)))

    def in_progress(self, message: Message) -> Any:
        return self._carry(lambda: self._consumer.keep_by_hand(self._held[message]))

    def _carry(self, call: Callable[[], Coroutine[Any, Any, None]]) -> Any:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            return call()

        async def called() -> None:
            await call()

        future = asyncio.run_coroutine_threadsafe(called(), self._loop)
        if running is None:  # a worker thread: block until Redis has answered
            return future.result()
        return asyncio.wrap_future(future)  # a worker thread that runs an event loop of its own


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    """Until ``event`` is set, or ``seconds`` have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
