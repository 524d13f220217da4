"""One connection to Redis that many threads share.

Of the threads that wait for a reply one leads: it writes what all have asked for, reads the replies in order, and hands
the lead on when it has its own. So concurrent publishes share round trips, and a single one pays for no thread switch.
A thread that gives up leaves its reply to be read, and dropped, by whoever leads next; the connection goes on.

As with asyncio's link, redis-py opens the connection, and its client layer with its retries is passed by.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

from redis.connection import ConnectionInterface
from redis.exceptions import RedisError

from . import driver, forks, streams
from .blocking_wire import Wire, over
from .busy_poll import BusyPoll
from .errors import ConfigurationError, ConnectionLost, QuantumBusError
from .streams import Command

Reply = Any


class _Request:
    __slots__ = ("abandoned", "error", "expected", "packed", "replies", "thread", "wake", "written_at")

    def __init__(self, packed: bytes, expected: int) -> None:
        self.packed = packed
        self.expected = expected
        self.replies: list[Reply] = []
        self.error: QuantumBusError | None = None
        self.wake: threading.Event | None = None
        self.abandoned = False
        self.thread = threading.get_ident()
        self.written_at = 0.0

    @property
    def done(self) -> bool:
        return self.error is not None or len(self.replies) == self.expected


class Link:
    """A shared connection.

    Args:
        pool: redis-py's, of the blocking kind.
        timeout: seconds that Redis may take to answer before the connection counts as dead.
        where: the server's address, for error texts.
        busy_poll: seconds for which a reply is looked for, again and again, before its thread sleeps for it.
    """

    def __init__(self, pool: Any, *, timeout: float, where: str, busy_poll: float = 0.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._where = where
        self._lock = threading.RLock()  # a signal's handler may come in anywhere
        self._waiting: deque[_Request] = deque()
        self._written: deque[_Request] = deque()
        self._leader: _Request | None = None  # the one whose thread writes and reads for all
        self._busy_poll = BusyPoll(busy_poll)
        self._closed = False
        self._connection: ConnectionInterface | None = None
        self._wire: Wire | None = None
        self.client_id: int | None = None
        forks.mind(self)

    def execute(self, *commands: Command, timeout: float | None = None) -> list[Reply]:
        """Write commands together and return their replies, in order.

        What the server refuses is returned in its place, as ``ResponseError``. If the connection breaks after some
        replies, the missing ones are ``ConnectionLost``: those commands may have been carried out.

        Args:
            timeout: seconds to wait; after them the commands may still be carried out.

        Raises:
            ConnectionLost: no reply came; the commands may have been carried out if they were written.
            ConfigurationError: Redis refused the credentials.
        """
        replies = self.ask(streams.pack(commands), len(commands), timeout=timeout)
        for index, reply in enumerate(replies):
            if (
                type(reply) is not bytes
                and driver.is_no_script(reply)
                and (text := streams.as_text(commands[index])) is not None
            ):
                replies[index] = self.execute(text, timeout=timeout)[0]
        return replies

    def ask(
        self,
        packed: bytes,
        expected: int,
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Reply]:
        """As :meth:`execute`, for commands that are packed already, and none of which calls a script by its digest.

        Args:
            expected: how many commands that are.
            meanwhile: called while the server is at work, where the caller itself waits for its replies; must not
                raise. What is asked with it is looked for before its thread sleeps for it.
        """
        request = _Request(packed, expected)
        deadline = monotonic() + (self._timeout if timeout is None else timeout)
        try:
            with self._lock:
                if self._closed:
                    raise ConnectionLost("the bus has closed its connection")
                if self._leader is not None and self._leader.thread == request.thread:
                    raise ConfigurationError(
                        "a signal's handler has come in while this thread waits for Redis, which it would wait for: "
                        "have it note what is to be done, and do that elsewhere"
                    )
                self._waiting.append(request)
                if self._leader is None:
                    self._leader = request
                else:
                    request.wake = threading.Event()
            if request.wake is not None:
                request.wake.wait(min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX))
            if self._leader is request:
                self._lead(request, deadline, meanwhile)
            if not request.done:
                self._give_up(request)
        except BaseException as error:
            self._leaves(request, error)
            raise
        if request.error is None:
            return request.replies
        if not request.replies:
            raise request.error
        return request.replies + [request.error] * (expected - len(request.replies))

    def _give_up(self, request: _Request) -> None:
        with self._lock:
            if not request.done:
                request.abandoned = True
                if self._leader is request:  # or named in the moment of giving up
                    self._hand_over()
                raise ConnectionLost(f"Redis at {self._where} did not answer in time")

    def _leaves(self, request: _Request, error: BaseException) -> None:
        """Its thread goes, as where a signal's handler has raised at any point: it is neither answered nor to lead."""
        with self._lock:
            request.abandoned = True
        if self._leader is request:  # in the middle of a reply: nobody can read on from here
            self._interrupted(error)
            with self._lock:
                self._hand_over()

    def _interrupted(self, error: BaseException) -> None:
        lost = ConnectionLost(f"the connection to Redis at {self._where} was interrupted")
        lost.__cause__ = error
        self._break(lost)

    def execute_one(self, command: Command, *, timeout: float | None = None) -> Reply:
        """As :meth:`execute`, for one command."""
        return self.execute(command, timeout=timeout)[0]

    def identify(self) -> None:
        """Learn the connection's CLIENT ID, so that another one may unblock it; None where the server won't tell."""
        reply = self.execute_one(("CLIENT", "ID"))
        self.client_id = reply if isinstance(reply, int) else None

    def close(self) -> None:
        """Give the connection back. Requests still under way end in ``ConnectionLost``."""
        with self._lock:
            self._closed = True
            self._fail(ConnectionLost("the bus has closed its connection"))
            connection, self._connection, self._wire = self._connection, None, None
        if connection is not None:
            connection.disconnect()  # replies may be outstanding: nobody else may read them
            self._pool.release(connection)

    def after_fork(self) -> None:
        """In the child: what is under way is the parent's, and so is the connection; here another one is opened."""
        self._lock = threading.RLock()
        self._waiting, self._written, self._leader = deque(), deque(), None
        connection, self._connection, self._wire = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()  # in another process than it was opened in, that closes a descriptor alone

    # --- leading ---------------------------------------------------------------------------------

    def _lead(self, mine: _Request, deadline: float, meanwhile: Callable[[], None] | None) -> None:
        try:
            while not mine.done:
                if not self._written:
                    self._write()
                    if meanwhile is not None:
                        meanwhile()
                        meanwhile = None
                        self._look()
                if not self._read(deadline):
                    break
        except QuantumBusError as error:
            self._break(error)
        except (*driver.CONNECTION_ERRORS, RedisError) as error:  # what is no reply at all is no connection to Redis
            lost = ConnectionLost(
                f"the connection to Redis at {self._where} broke: {str(error) or type(error).__name__}"
            )
            lost.__cause__ = error
            self._break(lost)
        except Exception as error:
            if not self._closed:
                raise
            self._interrupted(error)  # it is redis-py's own, of a connection closed under it
        if mine.done:
            with self._lock:
                self._hand_over()

    def _write(self) -> None:
        """Write what waits; whoever has given up before this moment is passed by."""
        wire = self._connected()
        now = monotonic()
        with self._lock:
            taken = [request for request in self._waiting if not request.abandoned]
            self._waiting.clear()
            self._written.extend(taken)
        for request in taken:
            request.written_at = now
        wire.write(b"".join([request.packed for request in taken]))

    def _look(self) -> None:
        """Look for the reply to what was just written, before this thread sleeps for it; not where others wait, too."""
        with self._lock:
            wire, alone = self._wire, len(self._written) == 1 and not self._waiting
        if wire is not None and alone and (seconds := self._busy_poll.seconds()):
            self._busy_poll.ended(came=wire.look(perf_counter() + seconds))

    def _read(self, deadline: float) -> bool:
        """Read the next reply, and what has come with it; whether it came before ``deadline``."""
        with self._lock:  # close() may come from another thread at any moment
            wire = self._wire
            if wire is None or not self._written:
                raise ConnectionLost("the bus has closed its connection")
            current = self._written[0]
        dead_at = current.written_at + self._timeout
        replies: list[Reply] = []
        try:
            wire.read(
                max(0.001, min(deadline, dead_at) - monotonic()), replies, current.expected - len(current.replies)
            )
        except driver.TIMEOUT_ERROR as error:
            if monotonic() >= dead_at:
                raise ConnectionLost(f"Redis at {self._where} has not answered for {self._timeout:g} s") from error
            return False
        finally:
            if replies:  # also before what could not be read
                self._take(current, replies)
        return True

    def _take(self, current: _Request, replies: list[Reply]) -> None:
        with self._lock:
            if not self._written:
                raise ConnectionLost("the bus has closed its connection")
            current.replies += replies
            if current.done:
                self._written.popleft()
                if current.wake is not None:
                    current.wake.set()

    def _connected(self) -> Wire:
        if self._wire is not None:
            return self._wire
        try:
            if self._connection is None:
                driver.check_free(self._pool)
                self._connection = self._pool.get_connection()
            else:
                self._connection.connect()
        except driver.CONNECTION_ERRORS as error:
            raise driver.connect_error(error, self._where) from error
        assert self._connection is not None
        self._wire = over(self._connection)
        return self._wire

    def _break(self, error: QuantumBusError) -> None:
        """The connection is gone, and with it every reply that was due."""
        with self._lock:
            self.client_id = None  # of a connection that is no more: nobody may be unblocked by it
            self._wire = None
            if self._connection is not None:
                self._connection.disconnect()
            self._fail(error)

    def _fail(self, error: QuantumBusError) -> None:
        unwritten = error.unwritten() if isinstance(error, ConnectionLost) else error
        for request in (*self._written, *self._waiting):
            request.error = error if request.written_at else unwritten
            if request.wake is not None:
                request.wake.set()
        self._written.clear()
        self._waiting.clear()

    def _hand_over(self) -> None:
        """Name the next leader among those that wait; with none, the next caller leads."""
        for request in (*self._written, *self._waiting):
            if request.wake is not None and not request.abandoned:
                self._leader = request
                request.wake.set()
                return
        self._leader = None
