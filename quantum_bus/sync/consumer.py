"""Consuming with threads: one reader, one writer and ``concurrency`` workers a subscriber.

State and decisions are those of asyncio's consumer: :mod:`~quantum_bus.inbox`, :mod:`~quantum_bus.delivery`,
:mod:`~quantum_bus.outbox`, guarded here by one condition.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any

from redis.exceptions import RedisError

from quantum_bus import delivery, driver, journal, propagation, stopping, streams
from quantum_bus.backoff import Backoff
from quantum_bus.blocking_link import Link
from quantum_bus.breaker import FRESH_FIRST, Circuit, CircuitState
from quantum_bus.config import BusConfig, SubscriberConfig
from quantum_bus.delivery import Outcome
from quantum_bus.errors import ConfigurationError, ConnectionLost, QuantumBusError
from quantum_bus.handlers import Handler
from quantum_bus.handling import Handlings
from quantum_bus.heartbeat import Lease
from quantum_bus.inbox import Held, Inbox
from quantum_bus.lanes import Lanes
from quantum_bus.leadership import Leadership
from quantum_bus.outbox import LOST, Letter, Outbox, check_settled
from quantum_bus.readiness import SubscriberHealth
from quantum_bus.run import Outcomes, Run, admit
from quantum_bus.sources import Key, NotOwned, Sources
from quantum_bus.succession import Step, Succession
from quantum_bus.telemetry import Telemetry
from quantum_bus.upkeep import Upkeep

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
        self._sources = Sources(config, name, bus, clock=monotonic)
        self._changed = threading.Condition()
        self._succession: Succession | None = None  # where messages are handled in order
        self._leadership: Leadership | None = None
        self._inbox = self._in_order() if config.ordered else self._in_any_order()
        self._outbox = Outbox(
            group=config.group,
            consumer=name,
            keys=self._sources.keys,
            config=bus,
            clock=monotonic,
            idempotent=config.idempotent,
            ordered=config.ordered,
        )
        self._by_hand = ByHand(self)
        self._handlings = Handlings(
            telemetry, group=config.group, consumer=name, batch=handler.batch, mode=config.trace_mode
        )
        self._circuit = Circuit(config.breaker, clock=monotonic)
        self._upkeep = Upkeep(self._sources.keys.values(), bus, clock=monotonic)
        self._stopping = threading.Event()
        self._closed = False
        self._lost = False  # whether a reply to a read was lost, and its entries are to be looked for
        self._retrying = Backoff(bus.backoff_initial, bus.backoff_maximum)  # the reader's
        self._read_since: float | None = None
        self._context = propagation.context_of_no_flow()
        self._reading = self._thread("reader", self._read)
        self._writing = self._thread("writer", self._write)
        self._scheduled = threading.Event()
        self._moving = self._thread("scheduler", self._move)
        self._workers = [self._thread(f"worker {number}", self._work) for number in range(config.concurrency)]

    def _in_any_order(self) -> Inbox | Lanes:
        config = self.config
        return Inbox(concurrency=config.concurrency, batch=config.batch, streams=len(config.streams), clock=monotonic)

    def _in_order(self) -> Inbox | Lanes:
        config, sources = self.config, self._sources

        def changed() -> None:
            with self._changed:
                self._changed.notify_all()

        self._leadership = leads = Leadership(sources.keys, self.name, config.ack_wait, changed=changed)
        lanes = Lanes(concurrency=config.concurrency, batch=config.batch, term=leads.term, clock=monotonic)
        self._succession = Succession(
            config, self._bus, consumer=self.name, sources=sources, lanes=lanes, leadership=leads, clock=monotonic
        )
        return lanes

    def _thread(self, role: str, target: Callable[[], None]) -> threading.Thread:
        # daemons: a handler that hangs must not keep the process from ending once the bus is stopped
        context = self._context.copy()
        return threading.Thread(
            target=lambda: context.run(self._kept, role, target),
            name=f"quantum_bus {role} {self.config.group}",
            daemon=True,
        )

    def _kept(self, role: str, work: Callable[[], None]) -> None:
        """Have it done to its end: an error that was not foreseen is logged, and it begins anew."""
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        while True:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 - a subscriber that stands still for ever would be worse
                journal.internal_error(f"The {role} of {self.config.group}", error)
                self._lost = True
                time.sleep(backoff.next())
                if self._closed or (self._stopping.is_set() and role != "writer"):
                    return None

    # --- life ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the groups; errors as over asyncio."""
        self._make_groups(again=False)
        self._reader.identify()

    def begin(self) -> None:
        """Begin to read and to handle."""
        if self.config.breaker is not None:
            self._telemetry.breaker_state(self.config.streams, self.config.group, self._circuit.state)
        for thread in (self._writing, self._moving, *self._workers, self._reading):
            thread.start()

    def lease(self) -> Lease:
        """What the heartbeat is to keep alive."""
        return Lease(
            self.config.group, self.name, self.config.ack_wait, self._inbox.keys, self._not_owned, self._leadership
        )

    def runs_here(self) -> bool:
        """Whether the caller is one of its handlers."""
        return threading.current_thread() in self._workers

    def stop_reading(self, deadline: float) -> None:
        """Take no new messages, and give up at once what has not been begun; as over asyncio."""
        self._stopping.set()
        self._scheduled.set()
        with self._changed:
            self._changed.notify_all()
        until = max(deadline, monotonic() + streams.UNBLOCK_PATIENCE)
        while self._reading.is_alive() and (left := until - monotonic()) > 0:
            if commands := self._unblock():
                try:
                    self._commands.execute(*commands, timeout=left)
                except QuantumBusError:
                    journal.log.debug("The read could not be unblocked; it ends by itself", exc_info=True)
            self._reading.join(streams.UNBLOCK_AGAIN)
        with self._changed:
            given_up = self._inbox.drop_waiting()
            self._changed.notify_all()  # nothing is read any more: the writer may end
        self._say(self._sources.release([held.key for held in given_up]))

    def _hand_back(self, surplus: Sequence[Held]) -> None:
        """Give up what was read ahead while this consumer goes on; what Redis does not confirm is looked for again."""
        try:
            replies = self._commands.execute(*self._sources.release([held.key for held in surplus]))
        except QuantumBusError as error:
            replies = [error]
        if any(isinstance(reply, Exception) for reply in replies):
            with self._changed:
                self._lost = True
                self._changed.notify_all()

    def _say(self, commands: Sequence[streams.Command]) -> None:
        """Tell Redis what it finds out by itself, only later: leases run out, names are forgotten."""
        if commands:
            try:
                self._commands.execute(*commands, timeout=streams.UNBLOCK_PATIENCE)
            except QuantumBusError:
                journal.log.debug("Redis could not be told on leaving", exc_info=True)

    def drain(self, deadline: float) -> int:
        """Let running handlers end and their outcomes be written, until ``deadline`` on the monotonic clock.

        Returns:
            How many messages had to be abandoned; they stay pending in Redis.
        """
        for thread in (self._reading, *self._workers, self._writing):
            stopping.join(thread, deadline)
        with self._changed:
            parked = self._inbox.drop_waiting()  # meanwhile
            running = self._inbox.running
        self._say(self._sources.release([held.key for held in parked]))
        if self._leadership is not None and not running:  # the lease of a thread that goes on has to run out
            self._say(self._leadership.resign())
        self._say(self._sources.forget(leaving=True))
        self._handlings.tell()
        with self._changed:
            return len(self._inbox)

    def close(self) -> None:
        """Give the reader's connection back. A handler that still runs goes on; its outcome is not written."""
        self._stopping.set()
        with self._changed:
            self._closed = True
            self._outbox.close()
            self._changed.notify_all()
        self._reader.close()

    def pause(self) -> None:
        """Take no more messages until :meth:`resume`; what runs goes on."""
        with self._changed:
            if self._circuit.paused:
                return
            self._circuit.paused = True
        journal.paused(self.config)
        self._rest()

    def resume(self) -> None:
        """Go on, where no circuit breaker stands against it."""
        with self._changed:
            if not self._circuit.paused:
                return
            self._circuit.paused = False
            self._changed.notify_all()
        journal.resumed(self.config)

    def _rest(self) -> None:
        """Others may have what waits here, and what a read under way would bring; as over asyncio."""
        if self._succession is None:
            with self._changed:
                given_up = self._inbox.drop_waiting()
            self._say(self._unblock() + self._sources.release([held.key for held in given_up]))

    def _unblock(self) -> list[streams.Command]:
        """Have the server end a read that blocks."""
        return [] if self._reader.client_id is None else [("CLIENT", "UNBLOCK", self._reader.client_id)]

    def health(self) -> SubscriberHealth:
        """What it is doing now, for probes."""
        threads = {"reader": [self._reading], "writer": [self._writing], "scheduler": [self._moving]}
        threads["worker"] = self._workers
        began = self._reading.ident is not None
        with self._changed:
            full = self._inbox.room() < 1
        return SubscriberHealth(
            streams=self.config.streams,
            group=self.config.group,
            begun=began,
            ended=tuple(
                role
                for role, those in threads.items()
                if began and not self._stopping.is_set() and not all(thread.is_alive() for thread in those)
            ),
            failures=self._retrying.failures,
            since=None if self._read_since is None else monotonic() - self._read_since,
            longest=self._sources.read_timeout + self._bus.reply_timeout,
            full=full,
            paused=self._circuit.paused,
            breaker_open=self._circuit.state is not CircuitState.CLOSED,
            standing_by=self._leadership is not None and self._leadership.stands_by(),
        )

    # --- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        backoff = self._retrying
        while not self._stopping.is_set():
            try:
                if self._lost:
                    self._lost = False  # first: it may be found out anew meanwhile
                    self._reader.identify()
                    if (refusal := self._recover_own()) is not None:
                        self._lost = True
                        self._refused(refusal, backoff)
                        continue
                room = self._await_room()
                if not room:
                    continue
                self._read_since = monotonic()
                if (step := self._next_step(room)) is None:
                    continue
                reply = self._reader.execute_one(step.command, timeout=step.timeout)
                if isinstance(reply, ConnectionLost):
                    raise reply
            except (ConnectionLost, ConfigurationError) as error:
                # the reply may have been lost behind the read: its entries are this consumer's, and unseen
                self._lost = True
                if not backoff.failures and not self._closed:
                    journal.connection_lost(error)
                self._stopping.wait(backoff.next())
                continue
            if isinstance(reply, RedisError):
                self._refused(reply, backoff)
                continue
            if backoff.failures:
                journal.reading_again(self.config)
                backoff.reset()
            self._answered(step, reply)
            reply = None  # not kept while the next read waits

    def _await_room(self) -> int:
        with self._changed:
            while (room := self._circuit.room(self._inbox.room())) < 1 and not self._stopping.is_set():
                self._changed.wait(self._circuit.patience())
            return 0 if self._stopping.is_set() else room

    def _next_step(self, room: int) -> Step | None:
        """What to read next; None where something else came first, or this consumer has stood by for a while."""
        if self._succession is None:
            if (command := self._sources.recover(room)) is None:
                return Step(self._sources.read(room), self._sources.read_timeout)
            self._recover(command)
            return None
        if self._succession.tidying():
            self._tidy()
        with self._changed:
            step = self._succession.step(room)
            told = self._tell(self._succession)
            if step is None and not told and not self._stopping.is_set():
                self._changed.wait(self._succession.patience)
        return step

    def _tell(self, succession: Succession) -> bool:
        """Log what is new; whether there was anything, and time has passed."""
        news = list(succession.news())
        for item in news:
            journal.leading(item.stream, self.config.group, leads=item.leading, holder=item.holder)
        if (refusal := succession.refusal()) is not None:
            journal.read_refused(self.config, refusal)
        return bool(news)

    def _answered(self, step: Step, reply: Any) -> None:
        if self._succession is None:
            self._take(self._sources.new(reply))
        else:
            read, taken_over = self._succession.answered(step, reply)
            self._taken_over(taken_over)
            self._take(read)

    def _tidy(self) -> None:
        """Make the groups that could not be made before, forget names: from time to time."""
        if self._sources.incomplete:
            self._make_groups(again=True)
        if commands := self._sources.forget():
            self._commands.execute(*commands)

    def _taken_over(self, count: int) -> None:
        journal.recovered(self.config, count)
        self._telemetry.recovered(self.config.streams[0], self.config.group, count)

    def _recover(self, command: streams.Command) -> None:
        """Take over a page of what dead consumers left."""
        reply = self._commands.execute_one(command)
        if isinstance(reply, ConnectionLost):
            raise reply
        if isinstance(reply, RedisError):
            self._sources.not_recovered()  # NOGROUP and the like: the next read meets it too, and says so
        else:
            read = self._sources.recovered(reply)
            self._taken_over(self._inbox.not_held(read.deliveries))  # its own are among them where renewals were late
            self._take(read)
        self._tidy()

    def _recover_own(self) -> RedisError | None:
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
                reply = self._commands.execute_one(self._sources.own(source, after))
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

    def _refused(self, error: RedisError, backoff: Backoff) -> None:
        """The server answered the read with an error."""
        if not backoff.failures:
            journal.read_refused(self.config, error)
        if self._succession is not None:
            self._succession.look_again()
        self._stopping.wait(backoff.next())
        if driver.is_no_group(error):
            # FLUSHALL, XGROUP DESTROY or a failover: never at `$`, which would pass by what came meanwhile
            try:
                self._make_groups(again=True)
            except (ConnectionLost, ConfigurationError):
                journal.log.debug("The groups could not be made", exc_info=True)  # the next read meets it, and says so

    def _make_groups(self, *, again: bool) -> None:
        for source, start, commands in self._sources.make_groups(again=again):
            reply, groups = self._commands.execute(*commands)
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
        with self._changed:
            for delivered in read.deliveries:
                if (delivered.source, delivered.source_id) not in self._inbox:
                    held, bury = admit(delivered, self._handler, self.config, sampled=self._bus.sampled)
                    if held.unsettled:
                        self._telemetry.redelivered(held.incoming.stream, self.config.group)
                    if bury is None:
                        self._inbox.take(held)
                    else:
                        self._inbox.hold(held)
                        self._outbox.post(held, bury)
            rests = self._circuit.rests
            self._changed.notify_all()
        if rests:
            self._rest()
        for source, entry_id in read.deleted:
            self._deleted(source, entry_id)

    def _not_owned(self, keys: NotOwned) -> None:
        """These turned out to be another consumer's, or deleted."""
        with self._changed:
            for key in keys.lost:
                held = self._inbox.lose(key)
                if held is not None and key not in self._inbox:  # it was not begun: nobody here has acked it meanwhile
                    self._leads_no_more(key)
            deleted = [held for key in keys.gone if (held := self._inbox.lose(key, gone=True)) is not None]
            self._changed.notify_all()
        self._say([command for held in deleted for command in self._sources.unmark(held)])
        for source, entry_id in keys.gone:
            self._deleted(source, entry_id)

    def _leads_no_more(self, key: Key) -> None:
        """Something of its stream is another consumer's, who leads, or has led meanwhile."""
        if self._succession is not None:
            self._succession.lost(self._sources.stream_of(key[0]))

    def _deleted(self, source: str, entry_id: str) -> None:
        stream = self._sources.stream_of(source)
        journal.deleted(stream, entry_id, self.config.group)
        self._telemetry.lost(stream, self.config.group)

    # --- running ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._run_next():  # a call for each, so that no run's messages are kept while the next is waited for
            pass

    def _run_next(self) -> bool:
        """Wait for the next run, and run it; False when stopping."""
        if (given := self._next_run()) is None:
            return False
        self._context.copy().run(self._handle, *given)
        return True

    def _next_run(self) -> tuple[Sequence[Held], bool] | None:
        """Wait for the next run; with it, whether it is a circuit breaker's probe. None when stopping."""
        with self._changed:
            while not self._stopping.is_set():
                lets_run = self._circuit.lets_run()
                if lets_run and (run := self._inbox.next_run(parked=self._circuit.lets_parked_run())) is not None:
                    return run, self._circuit.began()
                if lets_run and self._circuit.lets_parked_run():
                    self._changed.wait(self._inbox.pause())
                else:
                    wait = self._circuit.wait()
                    self._changed.wait(None if wait is None else wait + FRESH_FIRST)
        return None

    def _begin(self, held: Sequence[Held]) -> None:
        """Note in Redis that a handler begins, so that a run whose process dies is counted."""
        commands = self._sources.begin(held)
        backoff = Backoff(self._bus.backoff_initial, self._bus.backoff_maximum)
        said = False
        while commands and not self._closed:
            with contextlib.suppress(QuantumBusError):  # the reader meets it too, and says so
                replies = self._commands.execute(*commands)
                self._not_begun(commands, replies)
                refused = self._sources.refused(commands, replies)
                commands = [command for command, _ in refused]
                if refused and not said:
                    journal.begin_refused(self.config, refused[0][1])
                    said = True
            if self.config.idempotent is None and not self.config.ordered:
                return  # where Redis did not answer: counted as not begun, should the process die now
            if commands:  # which of them are run is Redis's to say
                time.sleep(backoff.next())
        if commands:
            with self._changed:
                for item in held:
                    item.put_back()

    def _not_begun(self, commands: Sequence[streams.Command], replies: Sequence[Any]) -> None:
        """Some of what was about to be run is not."""
        lost, gone = self._sources.not_owned(commands, replies)
        self._not_owned(NotOwned(lost, gone))
        skipped, busy = self._sources.aside(commands, replies)
        with self._changed:
            for key in (*lost, *gone):
                self._inbox.set_aside(key)
            for key in lost:
                self._leads_no_more(key)
            skips = [held for key in skipped if (held := self._inbox.set_aside(key)) is not None]
            for key in busy:
                if (held := self._inbox.postpone(key)) is not None:
                    self._outbox.post(held, delivery.WAIT_FOR_THE_OTHER)
            self._changed.notify_all()
        for held in skips:
            self._telemetry.skipped(held.incoming.stream, self.config.group)
            journal.skipped(held.incoming, self.config.group)

    def _handle(self, given: Sequence[Held], probe: bool) -> None:
        """Run the handler once that is noted, and have the outcomes written."""
        outcomes: Outcomes = ()
        failed = turned = False
        held: Sequence[Held] = ()
        try:
            held = self._begun(given)
            if held:
                outcomes, failed = self._run(held, probe)
        except Exception as error:  # noqa: BLE001 - nobody would run it again while this consumer renews its lease
            journal.internal_error(f"A run of {self._handler.name}", error)
            with self._changed:
                for item in given:
                    self._inbox.drop(item)
            held = ()
        finally:
            with self._changed:
                self._inbox.ran(given)
                posted = self._outbox.post_run(outcomes)
                self._inbox.settling(posted)
                if held:
                    turned = self._circuit.ended(failed, probe=probe)
                elif probe:
                    self._circuit.void()
                self._changed.notify_all()
        if not posted or self._closed:  # no write comes that would tell of its end
            self._handlings.tell()
        if turned:
            self._turned()

    def _begun(self, given: Sequence[Held]) -> Sequence[Held]:
        """What of a run may begin, once that is noted."""
        now = time.time()
        with self._changed:
            for item in given:
                item.begin(now)
            turns = [item.turn for item in given]
        self._begin(given)
        with self._changed:
            held = [item for item, turn in zip(given, turns, strict=True) if item.aside < turn]
            if self._succession is not None and not self._succession.may_run(held):
                for item in held:
                    self._inbox.set_aside(item.key)
                return ()
        return held

    def _run(self, held: Sequence[Held], probe: bool) -> tuple[Outcomes, bool]:
        """Run the handler: the outcomes, and whether it speaks against what the handler needs."""
        run = Run(held, self._handler, self.config, self._by_hand)
        outcomes: Outcomes | None = None
        failed = False
        try:
            with run.handling(self._handlings) as handling:
                self._handlings.tell()
                error = self._call(run)
                failed = self._circuit.counts(error)
                with self._changed:
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
        return outcomes, failed

    def _turned(self) -> None:
        """The circuit breaker has opened or closed."""
        with self._changed:
            state, pause, rests = self._circuit.state, self._circuit.pause_seconds, self._circuit.rests
        journal.breaker(self.config, state, pause)
        self._telemetry.breaker_state(self.config.streams, self.config.group, state)
        if rests:
            self._rest()

    def _call(self, run: Run) -> BaseException | None:
        """Run the handler behind its middleware; its error, if it raised one."""

        def innermost(_: Any) -> Any:
            return self._handler.function(**run.arguments)

        process = self._wrap(innermost)
        subject = None if process is innermost else run.subject  # only middleware looks at it
        try:
            if self.config.timeout is None:
                process(subject)
            else:
                _bounded(process, subject, self.config.timeout)
        except BaseException as error:  # noqa: BLE001 - a handler's error becomes an outcome; sys.exit() ends no worker
            journal.handler_failed(self._handler.name, run.messages, error)
            return error
        return None

    # --- outcomes --------------------------------------------------------------------------------

    def _has_read(self) -> bool:
        return self._stopping.is_set() and not self._reading.is_alive()

    def _write(self) -> None:
        """Write what the outbox holds, until the consumer is stopping and nothing is left."""
        while True:
            with self._changed:
                while self._outbox.pause() != 0 or self._closed:
                    if self._closed or (self._has_read() and not self._inbox.running and not self._outbox):
                        return
                    self._changed.wait(self._outbox.pause())
                commands = self._outbox.take()
            self._write_due(commands)

    def _write_due(self, commands: Sequence[streams.Command]) -> None:
        """Write these; a call for each time, so that nothing of it is kept while there is nothing to write."""
        self._handlings.tell()
        try:
            replies: list[Any] = self._commands.execute(*commands)
        except QuantumBusError as error:
            replies = [error] * len(commands)
        with self._changed:
            answered = self._outbox.answered(replies)
            for letter in answered.settled:
                self._inbox.release(letter.held, letter.again)
                if letter.result == LOST and not letter.held.gone and self._succession is not None:
                    self._succession.lost(letter.held.incoming.stream)
            self._changed.notify_all()
        journal.outcomes_refused(answered.refused)
        for letter in answered.settled:
            self._settled(letter)

    def _settled(self, letter: Letter) -> None:
        letter.count(self._telemetry, self.config.group)
        journal.settled(letter, self.config.group)
        if self._sources.scheduled(letter):
            self._scheduled.set()
        if letter.settled is not None:
            letter.settled(letter.result)

    def _move(self) -> None:
        """Make scheduled messages readable when their time has come, and look after the streams."""
        while not self._stopping.is_set():
            self._scheduled.clear()
            pause = min(self._sources.pause(), self._upkeep.pause())
            if pause > 0:
                self._scheduled.wait(pause)
            if self._sources.pause() == 0:
                refusal = self._sources.moved(self._ask(self._sources.due()))
                if refusal is not None:
                    journal.schedule_refused(self.config, refusal)
            with self._changed:
                surplus = self._inbox.surplus()
            if surplus:
                self._hand_back(surplus)
            if self._upkeep.pause() == 0:
                for alarm in self._upkeep.answered(self._ask(self._upkeep.commands())):
                    journal.stream_long(alarm, self._bus.cap)

    def _ask(self, commands: Sequence[streams.Command]) -> Sequence[Any]:
        """The replies, or none where Redis does not answer: the reader meets it too, and says so."""
        with contextlib.suppress(ConnectionLost, ConfigurationError):
            return self._commands.execute(*commands)
        return ()

    # --- by hand ---------------------------------------------------------------------------------

    def post_by_hand(self, held: Held, outcome: Outcome) -> None:
        """Ack or dead-letter now, and wait until Redis has done it.

        Raises:
            LeaseLost: another consumer owns the message by now.
            ConnectionLost: the bus was stopped before.
        """
        future: Future[str] = Future()

        def settled(result: str) -> None:
            if not future.done():
                future.set_result(result)

        with self._changed:
            self._inbox.settling()
            self._outbox.post(held, outcome, settled)
            self._changed.notify_all()
        check_settled(held, future.result())

    def keep_by_hand(self, held: Held) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: another consumer owns the message by now.
            ConnectionLost: Redis did not do it.
        """
        command = streams.KEEP.call([held.source], self.config.group, self.name, held.source_id)
        reply = self._commands.execute_one(command)
        if isinstance(reply, BaseException):
            raise ConnectionLost(f"the lease of message {held.incoming.id} could not be renewed: {reply}") from reply
        if any(reply):
            raise held.lease_lost()

    def check_by_hand(self, held: Held) -> None:
        """Whether it may be nacked, which the run's end does: it reads that off the message.

        Raises:
            LeaseLost: another consumer owns the message by now.
        """
        with contextlib.suppress(ConnectionLost):  # then Redis says so when it is told the outcome
            self.keep_by_hand(held)


class ByHand:
    """Carries ``message.ack()`` and its siblings to the consumer; they return when Redis has answered."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def ack(self, held: Held) -> None:
        self._consumer.post_by_hand(held, delivery.ACK)

    def nack(self, held: Held) -> None:
        self._consumer.check_by_hand(held)

    def term(self, held: Held, reason: str) -> None:
        self._consumer.post_by_hand(held, delivery.after_term(reason))

    def in_progress(self, held: Held) -> None:
        self._consumer.keep_by_hand(held)


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
