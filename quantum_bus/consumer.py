"""Consuming over asyncio: one reader a subscriber, many handlers, outcomes written together.

What is held and how much may be read is :mod:`quantum_bus.inbox`'s to say, what becomes of a message
:mod:`quantum_bus.delivery`'s; this room reads, runs and writes.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from redis.exceptions import RedisError

from . import delivery, driver, names, streams
from .backoff import Backoff
from .config import BusConfig, SubscriberConfig
from .delivery import Ack, Again, Bury, Failure, Outcome
from .envelope import Entry, decode, timestamp
from .errors import ConfigurationError, ConnectionLost, LeaseLost, QuantumBusError
from .handlers import Handler
from .inbox import Held, Inbox
from .link import Link
from .message import Message
from .telemetry import Handling, Telemetry

Process = Callable[[Any], Awaitable[Any]]
"""A handler behind its middleware: takes a message, or a list of them, and runs."""

log: Final = logging.getLogger(names.INSTRUMENTATION_NAME)

# Entries of one page while recovering what a lost reply left with this consumer.
RECOVERY_PAGE: Final = 100
# A blocking read may take this much longer than it blocks before its connection counts as dead, seconds.
BLOCK_MARGIN: Final = 5.0


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
        self._inbox = Inbox(concurrency=config.concurrency, batch=config.batch, streams=len(config.streams))
        self._settlement = _Settlement(self)
        self._stopping = False
        self._room = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._runs: set[asyncio.Task[None]] = set()
        self._outcomes: set[asyncio.Task[None]] = set()
        self._acks: dict[str, list[tuple[Held, asyncio.Future[bool] | None]]] = {}
        self._acking: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the groups and begin to read.

        Raises:
            ConfigurationError: a stream's key holds something else, or this user may not make the group.
            ConnectionLost: Redis cannot be reached.
        """
        start = streams.FIRST_ENTRY if self.config.start == "beginning" else "$"
        for stream in self.config.streams:
            await self._make_group(stream, start, names.EVENT_BUS_GROUP_CREATED)
        await self._reader.identify()
        self._reading = asyncio.create_task(self._read(), name=f"quantum_bus reader {self.name}")

    async def stop_reading(self) -> None:
        """Take no new messages. A read that blocks is told to return; it is not cancelled, or its entries would be
        stranded with this consumer."""
        self._stopping = True
        self._room.set()
        self._inbox.drop_waiting()
        if self._reading is None:
            return
        if self._reader.client_id is not None and self._reader.connected:
            try:
                await self._commands.execute_one(("CLIENT", "UNBLOCK", self._reader.client_id))
            except QuantumBusError:
                log.debug("The read could not be unblocked; it ends by itself", exc_info=True)
        await asyncio.wait([self._reading])

    async def drain(self, deadline: float) -> int:
        """Let running handlers end and their outcomes be written, until ``deadline`` on the loop's clock.

        Returns:
            How many messages had to be abandoned; they stay pending in Redis.
        """
        while pending := self._runs | self._outcomes | ({self._acking} if self._acking else set()):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        unfinished = self._runs | self._outcomes | ({self._acking} if self._acking else set())
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=1.0)
        return len(self._inbox)

    async def cancel(self) -> None:
        """Stop at once, without draining."""
        tasks = [task for task in (self._reading, self._acking, *self._runs, *self._outcomes) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Give the reader's connection back."""
        await self._reader.close()

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        config = self.config
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        block_ms = max(1, int(self._bus.block * 1000))
        recover = False
        while not self._stopping:
            try:
                if recover:
                    await self._recover()
                    recover = False
                room = self._inbox.room()
                if room < 1:
                    self._room.clear()
                    if self._inbox.room() < 1 and not self._stopping:
                        await self._room.wait()
                    continue
                command = streams.read_new(config.group, self.name, config.streams, count=room, block_ms=block_ms)
                reply = await self._reader.execute_one(command, timeout=self._bus.block + BLOCK_MARGIN)
                if isinstance(reply, RedisError):
                    await self._refused(reply, backoff)
                    continue
                if isinstance(reply, ConnectionLost):
                    raise reply
            except (ConnectionLost, ConfigurationError) as error:
                # the reply may have been lost behind the read: its entries are this consumer's, and unseen
                recover = True
                await self._lost(error, backoff)
                continue
            if backoff.failures:
                log.info("Reading %s again", ", ".join(config.streams), extra={"event": names.EVENT_BUS_RECONNECTED})
                backoff.reset()
            self._take(streams.parse_read(reply))

    async def _lost(self, error: QuantumBusError, backoff: Backoff) -> None:
        if not backoff.failures:
            log.warning(
                "Redis is away; trying to reach it again: %s", error, extra={"event": names.EVENT_BUS_CONNECTION_LOST}
            )
        await self._pause(backoff)
        if not self._stopping:
            try:
                await self._reader.identify()
            except (ConnectionLost, ConfigurationError):
                return

    async def _pause(self, backoff: Backoff) -> None:
        until = asyncio.get_running_loop().time() + backoff.next()
        while not self._stopping and (left := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, 0.1))

    async def _refused(self, error: RedisError, backoff: Backoff) -> None:
        """The server answered the read with an error."""
        first = not backoff.failures
        if driver.is_no_group(error):
            # FLUSHALL, XGROUP DESTROY or a failover: never at `$`, which would pass by what came meanwhile
            try:
                for stream in self.config.streams:
                    await self._make_group(stream, streams.FIRST_ENTRY, names.EVENT_BUS_GROUP_RECREATED)
            except (ConnectionLost, ConfigurationError) as failed:
                error = RedisError(str(failed))
        if first:
            log.warning(
                "Reading %s was refused: %s",
                ", ".join(self.config.streams),
                error,
                extra={"event": names.EVENT_BUS_READ_FAILED},
            )
        await self._pause(backoff)

    async def _make_group(self, stream: str, start: str, event: str) -> None:
        reply = await self._commands.execute_one(streams.create_group(stream, self.config.group, start))
        if isinstance(reply, ConnectionLost):
            raise reply
        if isinstance(reply, RedisError):
            if str(reply).startswith("BUSYGROUP"):
                return
            raise driver.group_error(reply, stream, self.config.group) from reply
        log.info("Consumer group %s on %s is made", self.config.group, stream, extra={"event": event, "start": start})

    async def _recover(self) -> None:
        """Read what Redis gave this consumer and it never saw: all that is its own, but for what it holds."""
        for stream in self.config.streams:
            after = streams.FIRST_ENTRY
            while not self._stopping:
                command = streams.read_own(self.config.group, self.name, stream, count=RECOVERY_PAGE, after=after)
                reply = await self._commands.execute_one(command)
                if isinstance(reply, ConnectionLost):
                    raise reply
                if isinstance(reply, RedisError):
                    return  # NOGROUP and the like: the next read meets it too, and says so
                read = streams.parse_read(reply)
                self._take(read)
                ids = [entry.id for entry in read.entries] + [entry_id for _, entry_id in read.deleted]
                if not ids:
                    break
                after = max(ids, key=lambda entry_id: tuple(map(int, entry_id.split("-"))))

    def _take(self, read: streams.Read) -> None:
        for entry in read.entries:
            if (entry.stream, entry.id) not in self._inbox:
                self._accept(entry)
        for stream, entry_id in read.deleted:
            log.error(
                "Message %s of %s was deleted from the stream before it was handled",
                entry_id,
                stream,
                extra={"event": names.EVENT_BUS_MESSAGE_LOST, "stream": stream, "entry_id": entry_id},
            )
            lost = Held(decode(Entry(stream, entry_id, ())))
            self._inbox.hold(lost)
            self._ack(lost, None)
        self._run_ready()

    def _accept(self, entry: Entry) -> None:
        held = Held(decode(entry, sampled=self._bus.sampled))
        bury = delivery.before_run(held.incoming)
        if bury is None:
            try:
                held.payload = self._handler.convert(held.incoming)
            except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
                bury = delivery.misfit(error)
        if bury is None:
            self._inbox.take(held)
        else:
            self._inbox.hold(held)
            self._spawn(self._bury(held, bury))

    # --- running ---------------------------------------------------------------------------------

    def _run_ready(self) -> None:
        while not self._stopping and (run := self._inbox.next_run()) is not None:
            task = asyncio.create_task(self._run(run), context=self._context.copy())
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)

    async def _run(self, run: Sequence[Held]) -> None:
        for held in run:
            held.attempt += 1
        messages = [
            Message(held.incoming, group=self.config.group, attempt=held.attempt, settlement=self._settlement)
            for held in run
        ]
        self._settlement.running(messages, run)
        try:
            with self._handling(run) as handling:
                error = await self._call(messages, run)
                outcomes = self._settlement.outcomes(messages, run, error)
                _finish(handling, outcomes)
            for held, outcome in outcomes:
                held.last_span = handling.span_context
                self._settle(held, outcome)
        finally:
            self._settlement.ended(messages)
            self._inbox.ran()
            self._room.set()
            self._run_ready()

    def _handling(self, run: Sequence[Held]) -> Handling:
        return Handling(
            self._telemetry,
            [held.incoming for held in run],
            group=self.config.group,
            consumer=self.name,
            batch=self.config.batch > 1,
            mode=self.config.trace_mode,
            attempt=run[0].attempt,
            previous=[held.last_span for held in run if held.last_span is not None],
        )

    async def _call(self, messages: Sequence[Message], run: Sequence[Held]) -> BaseException | None:
        """Run the handler behind its middleware; its error, if it raised one."""
        payloads = [held.payload for held in run]

        async def innermost(_: Any) -> Any:
            arguments = self._handler.arguments(messages, payloads)
            if self._handler.is_async:
                return await self._handler.function(**arguments)
            context = contextvars.copy_context()
            call = self._handler.function
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: context.run(call, **arguments)
            )

        process = self._wrap(innermost)
        try:
            async with asyncio.timeout(self.config.timeout):
                await process(list(messages) if self.config.batch > 1 else messages[0])
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the bus is stopping, past its deadline
            return _failed(error, messages[0], self._handler.name)
        except Exception as error:  # noqa: BLE001 - a handler's error becomes an outcome
            return _failed(error, messages[0], self._handler.name)
        return None

    # --- outcomes --------------------------------------------------------------------------------

    def _settle(self, held: Held, outcome: Outcome | None) -> None:
        """Do what was decided; None: it has been done by hand."""
        match outcome:
            case Ack():
                self._inbox.settling()
                self._ack(held, None)
            case Again(delay=delay, failure=failure):
                self._note_failure(held, failure)
                attributes = self._telemetry.process_attributes(held.incoming.stream, self.config.group)
                self._telemetry.retries.add(1, attributes)
                asyncio.get_running_loop().call_later(delay, self._again, held)
            case Bury():
                self._inbox.settling()
                self._spawn(self._bury(held, outcome))
            case None:
                pass

    @staticmethod
    def _note_failure(held: Held, failure: Failure | None) -> None:
        held.first_failed_at = held.first_failed_at or timestamp()
        held.last_failure = failure

    def _again(self, held: Held) -> None:
        if not self._stopping:
            self._inbox.again(held)
            self._run_ready()

    def _ack(self, held: Held, confirmed: asyncio.Future[bool] | None) -> None:
        """Ack with the next write; ``confirmed`` learns whether this consumer still owned the message."""
        self._acks.setdefault(held.incoming.stream, []).append((held, confirmed))
        if self._acking is None:
            self._acking = asyncio.create_task(self._write_acks(), context=self._context.copy())

    async def _write_acks(self) -> None:
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        try:
            while self._acks:
                taken, self._acks = self._acks, {}
                commands = [
                    streams.ACK.call([stream], self.config.group, self.name, *[held.incoming.id for held, _ in waiting])
                    for stream, waiting in taken.items()
                ]
                try:
                    replies = await self._commands.execute(*commands)
                except QuantumBusError as error:
                    replies = [error] * len(commands)
                refused: BaseException | None = None
                for (stream, waiting), reply in zip(taken.items(), replies, strict=True):
                    if isinstance(reply, list):
                        self._acked(waiting, {entry_id.decode() for entry_id in reply})
                    elif driver.is_no_group(reply):
                        self._acked(waiting, {held.incoming.id for held, _ in waiting})
                    else:
                        refused = reply
                        self._acks.setdefault(stream, [])[:0] = waiting
                if refused is None:
                    backoff.reset()
                    continue
                if not backoff.failures:
                    log.warning(
                        "Acks could not be written, trying again: %s",
                        refused,
                        extra={"event": names.EVENT_BUS_SETTLE_FAILED},
                    )
                await asyncio.sleep(backoff.next())
        finally:
            self._acking = None

    def _acked(self, waiting: Sequence[tuple[Held, asyncio.Future[bool] | None]], lost: set[str]) -> None:
        for held, confirmed in waiting:
            owned = held.incoming.id not in lost
            self._inbox.release(held)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(owned)
            elif not owned:
                _log_lease_lost(held)
        self._room.set()

    async def _bury(self, held: Held, bury: Bury) -> bool:
        """Move to the dead-letter stream, until it succeeds; whether this consumer still owned the message."""
        incoming = held.incoming
        self._note_failure(held, bury.failure)
        fields = delivery.dead_letter_fields(
            bury,
            stream=incoming.stream,
            entry_id=incoming.id,
            group=self.config.group,
            consumer=self.name,
            attempts=held.attempt,
            first_failed_at=held.first_failed_at,
            now=timestamp(),
        )
        target = streams.side_key(incoming.stream, names.SUFFIX_DLQ)
        command = streams.DEAD_LETTER.call(
            [incoming.stream, target], self.config.group, self.name, incoming.id, *fields
        )
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        while True:
            try:
                reply = await self._commands.execute_one(command)
            except QuantumBusError as error:
                reply = error
            if isinstance(reply, list):
                break
            if driver.is_no_group(reply):
                reply = [b"lost"]
                break
            if not backoff.failures:
                log.error(
                    "Message %s of %s could not be moved to %s; it stays pending and is tried again: %s",
                    incoming.id,
                    incoming.stream,
                    target,
                    reply,
                    extra={"event": names.EVENT_BUS_DEAD_LETTER_FAILED, "correlation_id": incoming.correlation_id},
                )
            await asyncio.sleep(backoff.next())
        self._inbox.release(held)
        self._room.set()
        return self._buried(held, bury, bytes(reply[0]).decode(), target)

    def _buried(self, held: Held, bury: Bury, result: str, target: str) -> bool:
        incoming = held.incoming
        fields = {
            "correlation_id": incoming.correlation_id,
            "stream": incoming.stream,
            "entry_id": incoming.id,
            "group": self.config.group,
        }
        if result == "lost":
            _log_lease_lost(held)
            return False
        if result == "gone":
            log.error(
                "Message %s of %s was deleted from the stream before it could be moved to %s",
                incoming.id,
                incoming.stream,
                target,
                extra={"event": names.EVENT_BUS_MESSAGE_LOST, **fields},
            )
            return True
        attributes = self._telemetry.process_attributes(incoming.stream, self.config.group)
        self._telemetry.dead_letters.add(1, attributes | {names.ATTR_ERROR_TYPE: bury.reason})
        log.error(
            "Message %s of %s is dead-lettered after %d attempts: %s: %s",
            incoming.id,
            incoming.stream,
            held.attempt,
            bury.failure.error_type,
            bury.failure.message,
            extra={
                "event": names.EVENT_BUS_DEAD_LETTERED,
                "reason": bury.reason,
                "attempts": held.attempt,
                **fields,
            },
        )
        return True

    def _spawn(self, outcome: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(outcome, context=self._context.copy())
        self._outcomes.add(task)
        task.add_done_callback(self._outcomes.discard)

    # --- by hand ---------------------------------------------------------------------------------

    async def ack_now(self, held: Held) -> None:
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._inbox.settling()
        self._ack(held, confirmed)
        if not await confirmed:
            raise _lease_lost(held)

    async def bury_now(self, held: Held, reason: str) -> None:
        self._inbox.settling()
        if not await self._bury(held, delivery.after_term(reason)):
            raise _lease_lost(held)

    async def keep_now(self, held: Held) -> None:
        incoming = held.incoming
        reply = await self._commands.execute_one(
            streams.KEEP.call([incoming.stream], self.config.group, self.name, incoming.id)
        )
        if isinstance(reply, BaseException):
            raise ConnectionLost(f"the lease of message {incoming.id} could not be renewed: {reply}") from reply
        if not reply:
            raise _lease_lost(held)


class _Settlement:
    """Carries what a handler does by hand to its consumer, from the event loop or from a worker thread."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._held: dict[int, Held] = {}
        self._nacked: dict[int, float | None] = {}
        self._loop = asyncio.get_running_loop()

    def running(self, messages: Sequence[Message], run: Sequence[Held]) -> None:
        self._held.update((id(message), held) for message, held in zip(messages, run, strict=True))

    def ended(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._held.pop(id(message), None)
            self._nacked.pop(id(message), None)

    def outcomes(
        self, messages: Sequence[Message], run: Sequence[Held], error: BaseException | None
    ) -> list[tuple[Held, Outcome | None]]:
        """What becomes of each message of a run; None for those that were acked or terminated by hand."""
        retry = self._consumer.config.retry
        outcomes: list[tuple[Held, Outcome | None]] = []
        for message, held in zip(messages, run, strict=True):
            outcome: Outcome | None = None
            if id(message) in self._nacked:
                outcome = delivery.after_nack(self._nacked[id(message)], attempt=held.attempt, retry=retry)
            elif not message.settled:
                message._settled = "the end of its handler"
                outcome = (
                    delivery.ACK if error is None else delivery.after_error(error, attempt=held.attempt, retry=retry)
                )
            outcomes.append((held, outcome))
        return outcomes

    def ack(self, message: Message) -> Any:
        return self._carry(self._consumer.ack_now(self._of(message)))

    def nack(self, message: Message, delay: float | None) -> Any:
        if delay is not None and not 0 <= delay < float("inf"):
            raise ConfigurationError(f"delay={delay!r}: give seconds, 0 or more")
        self._nacked[id(self._check(message))] = delay
        return self._carry(_done())

    def term(self, message: Message, reason: str) -> Any:
        return self._carry(self._consumer.bury_now(self._of(message), reason))

    def in_progress(self, message: Message) -> Any:
        return self._carry(self._consumer.keep_now(self._of(message)))

    def _check(self, message: Message) -> Message:
        self._of(message)
        return message

    def _of(self, message: Message) -> Held:
        held = self._held.get(id(message))
        if held is None:
            raise LeaseLost(f"message {message.id} of {message.stream} is no longer being handled")
        return held

    def _carry(self, call: Coroutine[Any, Any, None]) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a worker thread: block until Redis has answered
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        return call


async def _done() -> None:
    return None


def _finish(handling: Handling, outcomes: Sequence[tuple[Held, Outcome | None]]) -> None:
    """Tell the span the worst of a run's outcomes."""
    for kind, name in ((Bury, names.OUTCOME_DEAD_LETTER), (Again, names.OUTCOME_RETRY)):
        for _, outcome in outcomes:
            if isinstance(outcome, (Bury, Again)) and isinstance(outcome, kind):
                handling.finish(name, outcome.failure)
                return
    handling.finish(names.OUTCOME_ACK)


def _failed(error: BaseException, message: Message, handler: str) -> BaseException:
    log.warning(
        "Handler %s failed on message %s of %s, attempt %d",
        handler,
        message.id,
        message.stream,
        message.attempt,
        exc_info=error,
        extra={"event": names.EVENT_BUS_HANDLER_FAILED, "attempt": message.attempt},
    )
    return error


def _lease_lost(held: Held) -> LeaseLost:
    return LeaseLost(
        f"message {held.incoming.id} of {held.incoming.stream} belongs to another consumer by now; nothing was changed"
    )


def _log_lease_lost(held: Held) -> None:
    log.warning(
        "Message %s of %s was taken over by another consumer before it was settled here",
        held.incoming.id,
        held.incoming.stream,
        extra={"event": names.EVENT_BUS_LEASE_LOST, "correlation_id": held.incoming.correlation_id},
    )
