"""Consuming over asyncio: one reader a subscriber, many handlers, outcomes written together.

What is held and how much may be read is :mod:`~quantum_bus.inbox`'s to say, what becomes of a message
:mod:`~quantum_bus.delivery`'s, what is written next :mod:`~quantum_bus.outbox`'s; this room reads, runs and writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any

from redis.exceptions import RedisError

from . import delivery, driver, journal, propagation, streams
from .backoff import Backoff
from .breaker import FRESH_FIRST, Circuit, CircuitState
from .by_hand import ByHand
from .config import BusConfig, SubscriberConfig
from .delivery import Ack, Outcome
from .errors import ConfigurationError, ConnectionLost, QuantumBusError
from .handlers import Handler
from .handling import Handlings
from .heartbeat import Lease
from .inbox import Held, Inbox
from .lanes import Lanes
from .leadership import Leadership
from .link import Link, Reply
from .outbox import DONE, LOST, Letter, Outbox, check_settled
from .readiness import SubscriberHealth
from .run import Outcomes, Run, admit
from .sources import Key, NotOwned, Sources
from .succession import Step, Succession
from .telemetry import Telemetry
from .upkeep import Upkeep

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
        self._is_plain = handler.is_async and config.timeout is None
        self._loop = asyncio.get_running_loop()
        self._sources = Sources(config, name, bus, clock=self._loop.time)
        self._succession: Succession | None = None  # where messages are handled in order
        self._leadership: Leadership | None = None
        self._inbox = self._in_order() if config.ordered else self._in_any_order()
        self._outbox = Outbox(
            group=config.group,
            consumer=name,
            keys=self._sources.keys,
            config=bus,
            clock=self._loop.time,
            idempotent=config.idempotent,
            ordered=config.ordered,
        )
        self._by_hand = ByHand(self)
        self._handlings = Handlings(
            telemetry, group=config.group, consumer=name, batch=handler.batch, mode=config.trace_mode
        )
        self._circuit = Circuit(config.breaker, clock=self._loop.time)
        self._upkeep = Upkeep(self._sources.keys.values(), bus, clock=self._loop.time)
        self._stopping = asyncio.Event()
        self._room = asyncio.Event()
        self._posted = asyncio.Event()
        self._scheduled = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._runs: dict[asyncio.Task[None], Sequence[Held]] = {}
        self._beginning: set[_Turn] = set()  # runs that are being noted
        self._turning = False  # whether runs have ended in this turn of the loop
        self._notes: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None  # when the next parked message is due
        self._lost = False  # whether a reply to a read was lost, and its entries are to be looked for
        self._retrying = Backoff(bus.backoff_initial, bus.backoff_maximum)  # the reader's
        self._read_since: float | None = None
        self._cutting_off = False  # whether runs are cancelled because the bus stops
        self._noted = False  # whether this server has noted a run: before, it may not know the script yet
        self._context = propagation.context_of_no_flow()

    def _in_any_order(self) -> Inbox | Lanes:
        config = self.config
        return Inbox(
            concurrency=config.concurrency, batch=config.batch, streams=len(config.streams), clock=self._loop.time
        )

    def _in_order(self) -> Inbox | Lanes:
        config, clock, sources = self.config, self._loop.time, self._sources

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._room.set)

        self._leadership = leads = Leadership(sources.keys, self.name, config.ack_wait, changed=changed)
        lanes = Lanes(concurrency=config.concurrency, batch=config.batch, term=leads.term, clock=clock)
        self._succession = Succession(
            config, self._bus, consumer=self.name, sources=sources, lanes=lanes, leadership=leads, clock=clock
        )
        return lanes

    # --- life ------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Make the groups.

        Raises:
            ConfigurationError: a stream's key holds something else, or this user may not make the group.
            ConnectionLost: Redis cannot be reached.
        """
        await self._make_groups(again=False)
        await self._reader.identify()

    def begin(self) -> None:
        """Begin to read and to handle."""
        if self.config.breaker is not None:
            self._telemetry.breaker_state(self.config.streams, self.config.group, self._circuit.state)
        self._writing = asyncio.create_task(self._kept("writer", self._write), name=f"quantum_bus writer {self.name}")
        self._moving = asyncio.create_task(
            self._kept("scheduler", self._move), name=f"quantum_bus scheduler {self.name}"
        )
        self._reading = asyncio.create_task(self._kept("reader", self._read), name=f"quantum_bus reader {self.name}")

    async def _kept(self, role: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have it done to its end: an error that was not foreseen is logged, and it begins anew."""
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        while True:
            try:
                return await work()
            except Exception as error:  # noqa: BLE001 - a subscriber that stands still for ever would be worse
                journal.internal_error(f"The {role} of {self.config.group}", error)
                self._lost = True
                await _wait(self._stopping, backoff.next())
                if self._stopping.is_set() and role != "writer":
                    return None
                await asyncio.sleep(self._bus.backoff_initial)

    def lease(self) -> Lease:
        """What the heartbeat is to keep alive."""

        def not_owned(keys: NotOwned) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(self._not_owned, keys)

        return Lease(self.config.group, self.name, self.config.ack_wait, self._inbox.keys, not_owned, self._leadership)

    async def stop_reading(self, deadline: float) -> None:
        """Take no new messages, and give up at once what has not been begun; at the deadline at the latest, or a
        moment after it.

        A read that blocks is told by the server to return; it is not cancelled, for its entries would be stranded with
        this consumer.
        """
        self._stopping.set()
        self._room.set()
        self._scheduled.set()
        if self._reading is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(deadline, self._loop.time() + streams.UNBLOCK_PATIENCE)):
                while not self._reading.done():
                    await self._unblock()
                    await asyncio.wait([self._reading], timeout=streams.UNBLOCK_AGAIN)
        await self._release(self._inbox.drop_waiting())

    async def _unblock(self) -> None:
        if self._reader.client_id is None or not self._reader.connected:
            return
        try:
            await self._commands.execute_one(("CLIENT", "UNBLOCK", self._reader.client_id))
        except QuantumBusError:
            journal.log.debug("The read could not be unblocked; it ends by itself", exc_info=True)

    def runs_here(self) -> bool:
        """Whether the caller is one of its handlers."""
        return asyncio.current_task() in self._runs

    async def drain(self, deadline: float) -> int:
        """Let running handlers end and their outcomes be written, until ``deadline`` on the loop's clock.

        Returns:
            How many messages had to be abandoned; they stay pending in Redis, for others to take over.
        """
        while self._beginning and self._notes and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(self._notes, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._runs:
            await asyncio.wait(self._runs, timeout=max(0.0, deadline - self._loop.time()))
        cut_off = list(self._runs.items())
        self._cutting_off = True
        not_begun = [held for run in self._beginning for held in run.given]
        self._beginning.clear()
        await self._release(not_begun)
        for task, _ in cut_off:
            task.cancel()
        if cut_off:
            await asyncio.wait([task for task, _ in cut_off], timeout=1.0)
        if self._handler.is_async:  # what goes on, in a thread or past its cancellation: its lease has to run out
            await self._release([held for task, run in cut_off if task.done() for held in run])
        if self._writing is not None:
            self._posted.set()  # with nothing left to write, it ends
            await asyncio.wait([self._writing], timeout=max(0.0, deadline - self._loop.time()))
        await self._release(self._inbox.drop_waiting())  # what was parked meanwhile
        if self._leadership is not None and all(
            self._handler.is_async and task.done() for task, _ in cut_off
        ):  # a thread's lease has to run out
            await self._say(self._leadership.resign())
        await self._say(self._sources.forget(leaving=True))
        self._handlings.tell()
        return len(self._inbox)

    async def close(self) -> None:
        """End what still runs, and give the reader's connection back."""
        tasks = [self._reading, self._writing, self._moving, *self._runs, *self._notes]
        running = [task for task in tasks if task is not None]
        self._cutting_off = True
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)
        self._outbox.close()
        await self._reader.close()

    async def _release(self, given_up: Sequence[Held]) -> None:
        await self._say(self._sources.release([held.key for held in given_up]))

    async def _hand_back(self, surplus: Sequence[Held]) -> None:
        """Give up what was read ahead while this consumer goes on; what Redis does not confirm is looked for again."""
        try:
            replies = await self._commands.execute(*self._sources.release([held.key for held in surplus]))
        except QuantumBusError as error:
            replies = [error]
        if any(isinstance(reply, Exception) for reply in replies):
            self._lost = True
            self._room.set()

    async def _say(self, commands: Sequence[streams.Command]) -> None:
        """Tell Redis what it finds out by itself, only later: leases run out, names are forgotten."""
        if commands:
            try:
                async with asyncio.timeout(streams.UNBLOCK_PATIENCE):
                    await self._commands.execute(*commands)
            except (QuantumBusError, TimeoutError):
                journal.log.debug("Redis could not be told on leaving", exc_info=True)

    def pause(self) -> None:
        """Take no more messages until :meth:`resume`; what runs goes on."""
        if not self._circuit.paused:
            self._circuit.paused = True
            journal.paused(self.config)
            self._rest()

    def resume(self) -> None:
        """Go on, where no circuit breaker stands against it."""
        if self._circuit.paused:
            self._circuit.paused = False
            journal.resumed(self.config)
            self._room.set()
            self._run_parked()

    def _rest(self) -> None:
        """Others may have what waits here, or a read under way would bring; who leads an ordered group keeps it."""
        if self._succession is None:
            self._aside(self._unblock())
            if given_up := self._inbox.drop_waiting():
                self._aside(self._release(given_up))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done meanwhile."""
        task = asyncio.create_task(work, context=self._context.copy())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    def health(self) -> SubscriberHealth:
        """What it is doing now, for probes."""
        tasks = {"reader": self._reading, "writer": self._writing, "scheduler": self._moving}
        stopping = self._stopping.is_set()
        return SubscriberHealth(
            streams=self.config.streams,
            group=self.config.group,
            begun=self._reading is not None,
            ended=tuple(role for role, task in tasks.items() if task is not None and task.done() and not stopping),
            failures=self._retrying.failures,
            since=None if self._read_since is None else self._loop.time() - self._read_since,
            longest=self._sources.read_timeout + self._bus.reply_timeout,
            full=self._inbox.room() < 1,
            paused=self._circuit.paused,
            breaker_open=self._circuit.state is not CircuitState.CLOSED,
            standing_by=self._leadership is not None and self._leadership.stands_by(),
        )

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        backoff = self._retrying
        while not self._stopping.is_set():
            try:
                if self._lost:
                    self._lost = False  # first: it may be found out anew meanwhile
                    await self._reader.identify()
                    if (refusal := await self._recover_own()) is not None:
                        self._lost = True
                        await self._refused(refusal, backoff)
                        continue
                self._room.clear()
                room = self._circuit.room(self._inbox.room())
                if room < 1:
                    await _wait(self._room, self._circuit.patience())
                    continue
                self._read_since = self._loop.time()
                if (step := await self._next_step(room)) is None:
                    continue
                reply = await self._reader.execute_one(step.command, timeout=step.timeout)
                if isinstance(reply, ConnectionLost):
                    raise reply
            except (ConnectionLost, ConfigurationError) as error:
                # the reply may have been lost behind the read: its entries are this consumer's, and unseen
                self._lost = True
                self._noted = False  # it may be another server behind it
                if not backoff.failures:
                    journal.connection_lost(error)
                await _wait(self._stopping, backoff.next())
                continue
            if isinstance(reply, RedisError):
                await self._refused(reply, backoff)
                continue
            if backoff.failures:
                journal.reading_again(self.config)
                backoff.reset()
            self._answered(step, reply)
            brought, reply = bool(reply), None  # not kept while the next read waits
            if brought:
                await self._let_begin()

    async def _let_begin(self) -> None:
        """What begins comes first: the next read takes 60 µs of a message's way."""
        noted_later = len(self._beginning) == 1  # one alone, whose note goes behind what is under way: a turn more
        await asyncio.sleep(0)
        if noted_later:
            await asyncio.sleep(0)

    async def _next_step(self, room: int) -> Step | None:
        """What to read next; None where something else came first, or this consumer has stood by for a while."""
        if self._succession is None:
            if (command := self._sources.recover(room)) is None:
                return Step(self._sources.read(room), self._sources.read_timeout)
            await self._recover(command)
            return None
        if self._succession.tidying():
            await self._tidy()
        step = self._succession.step(room)
        self._tell(self._succession)
        if step is None:
            await _wait(self._room, self._succession.patience)
        return step

    def _tell(self, succession: Succession) -> None:
        for news in succession.news():
            journal.leading(news.stream, self.config.group, leads=news.leading, holder=news.holder)
        if (refusal := succession.refusal()) is not None:
            journal.read_refused(self.config, refusal)

    def _answered(self, step: Step, reply: Reply) -> None:
        if self._succession is None:
            self._take(self._sources.new(reply))
        else:
            read, taken_over = self._succession.answered(step, reply)
            self._taken_over(taken_over)
            self._take(read)

    async def _tidy(self) -> None:
        """Make the groups that could not be made before, forget names: from time to time."""
        if self._sources.incomplete:
            await self._make_groups(again=True)
        if commands := self._sources.forget():
            await self._commands.execute(*commands)

    def _taken_over(self, count: int) -> None:
        journal.recovered(self.config, count)
        self._telemetry.recovered(self.config.streams[0], self.config.group, count)

    async def _recover(self, command: streams.Command) -> None:
        """Take over a page of what dead consumers left."""
        reply = await self._commands.execute_one(command)
        if isinstance(reply, ConnectionLost):
            raise reply
        if isinstance(reply, RedisError):
            self._sources.not_recovered()  # NOGROUP and the like: the next read meets it too, and says so
        else:
            read = self._sources.recovered(reply)
            self._taken_over(self._inbox.not_held(read.deliveries))  # its own are among them where renewals were late
            self._take(read)
        await self._tidy()

    async def _recover_own(self) -> RedisError | None:
        """Take what Redis gave this consumer and it never saw: all that is its own, but for what it holds.

        Returns:
            Why the server will not tell now, where that passes.
        """
        if self._succession is not None:
            self._succession.look_again()
            return None
        for source in self._sources.names:
            after: str | None = None
            while not self._stopping.is_set():
                reply = await self._commands.execute_one(self._sources.own(source, after))
                if isinstance(reply, ConnectionLost):
                    raise reply
                if driver.is_transient(reply) or driver.is_disk_failing(reply):
                    assert isinstance(reply, RedisError)
                    return reply
                if isinstance(reply, RedisError):
                    break  # NOGROUP and the like: the next read meets it too, and says so
                read = self._sources.owned(reply, source)
                self._take(read)
                if (after := read.cursor) is None:
                    break
        return None

    async def _refused(self, error: RedisError, backoff: Backoff) -> None:
        """The server answered the read with an error."""
        if not backoff.failures:
            journal.read_refused(self.config, error)
        if self._succession is not None:
            self._succession.look_again()
        await _wait(self._stopping, backoff.next())
        if driver.is_no_group(error):
            # FLUSHALL, XGROUP DESTROY or a failover: never at `$`, which would pass by what came meanwhile
            try:
                await self._make_groups(again=True)
            except (ConnectionLost, ConfigurationError):
                journal.log.debug("The groups could not be made", exc_info=True)  # the next read meets it, and says so

    async def _make_groups(self, *, again: bool) -> None:
        for source, start, commands in self._sources.make_groups(again=again):
            reply, groups = await self._commands.execute(*commands)
            if isinstance(reply, ConnectionLost):
                raise reply
            if not isinstance(reply, RedisError):
                journal.group_made(source, self.config.group, streams.started(reply, start), again=again)
            # a Redis that is out of memory refuses to make even a group that is there
            elif driver.is_busy_group(reply) or self.config.group in streams.parse_groups(groups):
                continue
            elif not (driver.is_out_of_memory(reply) and self._sources.do_without(source)):
                raise driver.group_error(reply, source, self.config.group) from reply

    def _take(self, read: streams.Read) -> None:
        for delivered in read.deliveries:
            if (delivered.source, delivered.source_id) not in self._inbox:
                held, bury = admit(delivered, self._handler, self.config, sampled=self._bus.sampled)
                if held.unsettled:
                    self._telemetry.redelivered(held.incoming.stream, self.config.group)
                if bury is None:
                    self._inbox.take(held)
                else:
                    self._inbox.hold(held)
                    self._post(held, bury)
        for source, entry_id in read.deleted:
            self._deleted(source, entry_id)
        if self._circuit.rests:
            self._rest()
        self._run_ready()

    def _not_owned(self, keys: NotOwned) -> None:
        """These turned out to be another consumer's, or deleted."""
        for key in keys.lost:
            held = self._inbox.lose(key)
            if held is not None and key not in self._inbox:  # it was not begun: nobody here has acked it meanwhile
                self._leads_no_more(key)
        for source, entry_id in keys.gone:
            self._deleted(source, entry_id)
            if (held := self._inbox.lose((source, entry_id), gone=True)) is not None:
                self._aside(self._say(self._sources.unmark(held)))
        self._room.set()
        if self._succession is not None:
            self._run_ready()  # what was behind a deleted one

    def _leads_no_more(self, key: Key) -> None:
        """Something of its stream is another consumer's, who leads, or has led meanwhile."""
        if self._succession is not None:
            self._succession.lost(self._sources.stream_of(key[0]))

    def _deleted(self, source: str, entry_id: str) -> None:
        stream = self._sources.stream_of(source)
        journal.deleted(stream, entry_id, self.config.group)
        self._telemetry.lost(stream, self.config.group)

    # --- running ---------------------------------------------------------------------------------

    def _run_ready(self) -> None:
        """Begin what is ready, as far as handlers are free: what begins together is noted together."""
        if self._stopping.is_set():
            return
        circuit, inbox = self._circuit, self._inbox
        runs: list[_Turn] = []
        now = time.time()
        free = circuit.is_closed  # as almost always: then nothing here changes that, and asking takes 1 µs a message
        while free or circuit.lets_run():
            if (held := inbox.next_run(parked=free or circuit.lets_parked_run())) is None:
                break
            for item in held:
                item.begin(now)
            runs.append(_Turn(held, tuple([item.turn for item in held]), not free and circuit.began()))
        if not runs:
            return
        self._beginning.update(runs)
        asked = self.config.idempotent is not None or self.config.ordered
        self._aside(self._begin_once(runs) if asked else self._begin(runs))

    def _start(self, runs: Sequence[_Turn]) -> None:
        """It is noted that these begin: let them."""
        if self._cutting_off:
            return
        self._beginning.difference_update(runs)
        for run in runs:
            task = self._loop.create_task(self._handle(run), context=self._context.copy())
            self._runs[task] = run.given
            task.add_done_callback(self._ran)
        self._loop.call_soon(self._handlings.tell)  # behind their first steps

    def _run_parked(self) -> None:
        """Run what is ready, and what was parked when it is due."""
        self._run_ready()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._circuit.lets_run() and self._circuit.lets_parked_run():
            pause = self._inbox.pause()
        else:
            wait = self._circuit.wait()
            pause = None if wait is None else wait + FRESH_FIRST
        if pause is not None and not self._stopping.is_set():
            self._alarm = self._loop.call_later(pause, self._run_parked)

    async def _begin_once(self, runs: Sequence[_Turn]) -> None:
        """As :meth:`_begin`; which of them are run is Redis's to say, so its answer is waited for."""
        commands = self._sources.begin([held for run in runs for held in run.given])
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        said = False
        while commands:
            replies: Sequence[Reply] = ()
            with contextlib.suppress(ConnectionLost, ConfigurationError):  # the reader meets it too, and says so
                replies = await self._commands.execute(*commands)
                self._not_begun(commands, replies)
                refused = self._sources.refused(commands, replies)
                commands = [command for command, _ in refused]
                if refused and not said:
                    journal.begin_refused(self.config, refused[0][1])
                    said = True
            if commands:
                await asyncio.sleep(backoff.next())
        self._start(runs)

    def _not_begun(self, commands: Sequence[streams.Command], replies: Sequence[Reply]) -> None:
        """Some of what was about to be run is not."""
        lost, gone = self._sources.not_owned(commands, replies)
        self._not_owned(NotOwned(lost, gone))
        skipped, busy = self._sources.aside(commands, replies)
        for key in (*lost, *gone):
            self._inbox.set_aside(key)
        for key in lost:
            self._leads_no_more(key)
        for key in skipped:
            if (held := self._inbox.set_aside(key)) is not None:
                self._telemetry.skipped(held.incoming.stream, self.config.group)
                journal.skipped(held.incoming, self.config.group)
        for key in busy:
            if (held := self._inbox.postpone(key)) is not None:
                self._post(held, delivery.WAIT_FOR_THE_OTHER)

    def _begin(self, runs: Sequence[_Turn]) -> Coroutine[Any, Any, None]:
        """Note in Redis that handlers begin, so that a run whose process dies is counted; then let them.

        That the note is on its way is enough, where the server is known to understand it.
        """
        commands = self._sources.begin([held for run in runs for held in run.given])
        started = _Once(lambda: self._start(runs))
        request = self._commands.send(*commands, written=started if self._noted else None)

        async def noted() -> None:
            try:
                replies = await request
            except QuantumBusError:
                return  # counted as not begun, should the process die now
            finally:
                started.set()
            self._noted = all(isinstance(reply, list) for reply in replies)
            self._not_owned(self._sources.not_owned(commands, replies))

        return noted()

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._inbox.ran(self._runs.pop(task))
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Runs have ended, in one turn of the loop: what follows on them is done together."""
        self._turning = False
        self._run_ready()
        self._make_room()

    def _make_room(self) -> None:
        """Wake the reader where it would find room: it takes as long as two messages."""
        if self._inbox.room() > 0 or self._succession is not None or self.config.breaker is not None:
            self._room.set()

    async def _handle(self, turn: _Turn) -> None:
        """Run the handler, and have the outcomes written."""
        try:
            held = turn.left()
            if self._succession is not None and not self._succession.may_run(held):
                for item in held:
                    self._inbox.set_aside(item.key)
                held = ()
            if held:
                turn.ran = await self._run(held, probe=turn.probe)
        except (Exception, KeyboardInterrupt, GeneratorExit) as error:
            for item in turn.given:  # nobody would run it again while this consumer renews its lease
                self._inbox.drop(item)
            if not isinstance(error, Exception):
                raise
            journal.internal_error(f"A run of {self._handler.name}", error)
        finally:
            if turn.probe and not turn.ran:
                self._circuit.void()

    async def _run(self, held: Sequence[Held], *, probe: bool) -> bool:
        """Run the handler."""
        run = Run(held, self._handler, self.config, self._by_hand)
        outcomes: Outcomes | None = None
        failed = False
        try:
            with run.handling(self._handlings) as handling:
                try:
                    error: BaseException | None = None
                    if self._is_plain and self._wrap(_nothing) is _nothing:  # saves two coroutines, 1 µs
                        await self._handler.function(**run.arguments)
                    else:
                        error = await self._call(run)
                except BaseException as raised:  # it becomes an outcome; sys.exit() ends no event loop
                    if self._handler.is_async and isinstance(raised, (KeyboardInterrupt, GeneratorExit)):
                        raise  # Ctrl-C, or the loop has ended under it: not the handler's
                    error = raised
                spare = False
                if error is not None:
                    self._failed(run, error)
                    failed = self._circuit.counts(error)
                    spare = (
                        probe
                        and failed
                        and self._circuit.spares([(item.incoming.stream, item.incoming.id) for item in held])
                    )
                outcomes = run.end(error, spare=spare)
                handling.finish(*run.summary())
        except Exception as broken:  # noqa: BLE001 - a span processor of the user's: the run counts as what it was
            journal.internal_error(f"Telemetry of {self._handler.name}", broken)
            if outcomes is None:
                outcomes = run.end(broken)
        finally:
            run.close()
        posted = self._outbox.post_run(outcomes)
        self._inbox.settling(posted)
        if not posted:  # it was settled by hand: no write comes that would tell of its end
            self._handlings.tell()
        self._posted.set()
        if self._circuit.ended(failed, probe=probe):
            self._turned()
        return True

    def _turned(self) -> None:
        """The circuit breaker has opened or closed."""
        journal.breaker(self.config, self._circuit.state, self._circuit.pause_seconds)
        self._telemetry.breaker_state(self.config.streams, self.config.group, self._circuit.state)
        if self._circuit.rests:
            self._rest()

    async def _call(self, run: Run) -> BaseException | None:
        """Run the handler behind its middleware, in a thread, or with a limit; what it is over it, is returned."""

        async def innermost(_: Any) -> Any:
            call = self._handler.function
            if self._handler.is_async:
                return await call(**run.arguments)
            context = contextvars.copy_context()

            def in_thread() -> tuple[Any, BaseException | None]:
                try:
                    return context.run(call, **run.arguments), None
                except BaseException as raised:  # noqa: BLE001 - a future takes no StopIteration, and would never end
                    return None, raised

            result, error = await self._loop.run_in_executor(self._threads, in_thread)
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # its traceback holds this frame
            return result

        process = self._wrap(innermost)
        subject = None if process is innermost else run.subject  # only middleware looks at it
        limit = asyncio.timeout(self.config.timeout)
        try:
            async with limit:
                await process(subject)
        except Exception:
            if not limit.expired():
                raise
            return TimeoutError(f"the handler ran longer than its timeout of {self.config.timeout:g} s")
        return None

    def _failed(self, run: Run, error: BaseException) -> None:
        """A run has raised this."""
        if isinstance(error, asyncio.CancelledError):
            if self._cutting_off:
                raise error  # the bus is stopping, past its deadline
            task = asyncio.current_task()
            while task is not None and task.cancelling():  # by the handler, or somebody that it gave its task to
                task.uncancel()
        journal.handler_failed(self._handler.name, run.messages, error)

    # --- outcomes --------------------------------------------------------------------------------

    def _post(self, held: Held, outcome: Outcome, settled: Callable[[str], None] | None = None) -> None:
        self._outbox.post(held, outcome, settled)
        self._posted.set()

    def _has_read(self) -> bool:
        return self._stopping.is_set() and (self._reading is None or self._reading.done())

    async def _write(self) -> None:
        """Write what the outbox holds, until the consumer has stopped reading and nothing is left."""
        while not (self._has_read() and not self._runs and not self._beginning and not self._outbox):
            self._posted.clear()
            pause = self._outbox.pause()
            if pause is None or pause > 0:
                await _wait(self._posted, pause)
                continue
            await self._write_due()

    async def _write_due(self) -> None:
        """Write what is due; a call for each, so that nothing of it is kept while there is nothing to write."""
        request = self._commands.send(*self._outbox.take())
        self._handlings.tell()  # while Redis is at work
        try:
            answered = self._outbox.answered(await request)
        except QuantumBusError as error:
            answered = self._outbox.failed(error)
        journal.outcomes_refused(answered.refused)
        for letter in answered.settled:
            if letter.result is DONE and letter.settled is None and type(letter.outcome) is Ack:
                self._inbox.release(letter.held)
            else:
                self._settled(letter)
        self._make_room()
        if self._succession is not None:
            self._run_parked()

    def _settled(self, letter: Letter) -> None:
        self._inbox.release(letter.held, letter.again)
        if letter.result == LOST and not letter.held.gone and self._succession is not None:
            self._succession.lost(letter.held.incoming.stream)
        letter.count(self._telemetry, self.config.group)
        journal.settled(letter, self.config.group)
        if self._sources.scheduled(letter):
            self._scheduled.set()
        if letter.settled is not None:
            letter.settled(letter.result)

    async def _move(self) -> None:
        """Make scheduled messages readable when their time has come, and look after the streams."""
        while not self._stopping.is_set():
            self._scheduled.clear()
            pause = min(self._sources.pause(), self._upkeep.pause())
            if pause > 0:
                await _wait(self._scheduled, pause)
            if self._sources.pause() == 0:
                refusal = self._sources.moved(await self._ask(self._sources.due()))
                if refusal is not None:
                    journal.schedule_refused(self.config, refusal)
            if surplus := self._inbox.surplus():
                await self._hand_back(surplus)
            if self._upkeep.pause() == 0:
                for alarm in self._upkeep.answered(await self._ask(self._upkeep.commands())):
                    journal.stream_long(alarm, self._bus.cap)

    async def _ask(self, commands: Sequence[streams.Command]) -> Sequence[Reply]:
        """The replies, or none where Redis does not answer: the reader meets it too, and says so."""
        with contextlib.suppress(ConnectionLost, ConfigurationError):
            return await self._commands.execute(*commands)
        return ()

    # --- by hand ---------------------------------------------------------------------------------

    def post_by_hand(self, held: Held, outcome: Outcome) -> Coroutine[Any, Any, None]:
        """Ack or dead-letter now, awaited or not; the coroutine returns when Redis has done it.

        Raises:
            LeaseLost: in the coroutine; another consumer owns the message by now.
            ConnectionLost: in the coroutine; the bus was stopped before.
        """
        future: asyncio.Future[str] = self._loop.create_future()

        def settled(result: str) -> None:
            if not future.done():
                future.set_result(result)

        self._inbox.settling()
        self._post(held, outcome, settled)

        async def confirmed() -> None:
            check_settled(held, await future)

        return confirmed()

    async def keep_by_hand(self, held: Held) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: another consumer owns the message by now.
            ConnectionLost: Redis did not do it.
        """
        command = streams.KEEP.call([held.source], self.config.group, self.name, held.source_id)
        reply = await self._commands.execute_one(command)
        if isinstance(reply, BaseException):
            raise ConnectionLost(f"the lease of message {held.incoming.id} could not be renewed: {reply}") from reply
        if any(reply):
            raise held.lease_lost()

    async def check_by_hand(self, held: Held) -> None:
        """Whether it may be nacked, which the run's end does: it reads that off the message.

        Raises:
            LeaseLost: another consumer owns the message by now.
        """
        with contextlib.suppress(ConnectionLost):  # then Redis says so when it is told the outcome
            await self.keep_by_hand(held)


async def _nothing(_: Any) -> None:
    """What middleware is put around to see whether there is any."""


class _Turn:
    """A run that is to begin: what it was given, in which turn of each, and whether it is a circuit breaker's probe."""

    __slots__ = ("given", "probe", "ran", "turns")

    def __init__(self, given: Sequence[Held], turns: Sequence[int], probe: bool) -> None:
        self.given = given
        self.turns = turns
        self.probe = probe
        self.ran = False

    def left(self) -> Sequence[Held]:
        """What of it is still to be run."""
        return [item for item, turn in zip(self.given, self.turns, strict=True) if item.aside < turn]


class _Once(asyncio.Event):
    """Calls something when it is set for the first time, at once: an event's waiters would be a turn later."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def set(self) -> None:
        if not self.is_set():
            super().set()
            self._call()


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    """Until ``event`` is set, or ``seconds`` have passed."""
    if seconds is None:
        await event.wait()
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
