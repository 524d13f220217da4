"""One connection to Redis that many coroutines share.

What is asked for while replies are due is written together, once a turn of the event loop, so that concurrent publishes
share round trips; with none due, it is written at once. Replies come back in order, and all that arrive together are
given to their callers in one pass. redis-py opens the connection (TLS, ACL users, Sentinel and Unix sockets stay its
business); its client layer, and with it its retries, is passed by. Nothing of what is done here is seen by
opentelemetry-instrumentation-redis, which instruments that layer: the bus makes its own spans.

A request cancelled before it is written is never written. One cancelled later may have been carried out; its reply is
read and dropped, and the connection goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from . import driver, streams, wire
from .busy_poll import BusyPoll
from .errors import ConnectionLost, QuantumBusError
from .streams import Command

Reply = Any
"""A reply as bytes, int, list or None; or, where it said no, one of ``driver.REFUSALS``; or a ``ConnectionLost``."""

# Commands under way at once: bounds what a broken connection leaves in doubt, and how long the next one waits.
MAX_UNANSWERED: Final = 1_000


class _Request:
    __slots__ = ("expected", "future", "packed", "replies", "timeout", "until", "written")

    def __init__(
        self,
        packed: bytes,
        expected: int,
        timeout: float,
        until: float,
        future: asyncio.Future[list[Reply]],
        written: asyncio.Event | None,
    ) -> None:
        self.packed = packed
        self.expected = expected
        self.timeout = timeout
        self.until = until
        self.future = future
        self.written = written
        self.replies: list[Reply] = []


class Link:
    """A shared connection.

    Args:
        pool: redis-py's, of the asyncio kind.
        timeout: seconds that a request may take once it is written and those before it are answered, where it does not
            say otherwise.
        where: the server's address, for error texts.
        busy_poll: seconds for which :meth:`look` looks.
    """

    def __init__(self, pool: Any, *, timeout: float, where: str, busy_poll: float = 0.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._where = where
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: AbstractConnection | None = None
        self._wire: wire.Wire | None = None
        self._opening: asyncio.Task[None] | None = None
        self._waiting: deque[_Request] = deque()
        self._written: deque[_Request] = deque()
        self._unanswered = 0
        self._closed = False
        self._unnoticed: ConnectionLost | None = None  # of a connection that broke while nobody used it
        self._busy_poll = BusyPoll(busy_poll)
        self._looked_for: _Request | None = None
        self._look_until = 0.0
        self._flushing = False
        self._progress = 0.0  # when the request at the head of what is written got there
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.client_id: int | None = None
        """CLIENT ID of the connection, once :meth:`identify` has asked for it."""

    async def execute(
        self,
        *commands: Command,
        timeout: float | None = None,
        written: asyncio.Event | None = None,
        anew: bool = False,
    ) -> list[Reply]:
        """Write commands together and return their replies, in order.

        What the server refuses is returned in its place, as ``ResponseError``. If the connection breaks after some
        replies, the missing ones are ``ConnectionLost``: those commands may have been carried out.

        Args:
            timeout: seconds from writing to the last reply, for a command that blocks.
            written: set as soon as the commands are on their way.
            anew: whether the caller does not care that the connection may be another one than the last time.

        Raises:
            ConnectionLost: no reply came; the commands may have been carried out if they were written. Also of a
                connection that broke since the last request: who reads over it has to know that it is another one now;
                not with ``anew``.
            ConfigurationError: Redis refused the credentials.
        """
        return await self.send(*commands, timeout=timeout, written=written, anew=anew)

    def send(
        self,
        *commands: Command,
        timeout: float | None = None,
        written: asyncio.Event | None = None,
        anew: bool = False,
    ) -> Coroutine[Any, Any, list[Reply]]:
        """As :meth:`execute`; they are on their way before the coroutine is awaited, which must be done."""
        if self._unnoticed is not None and not anew:
            lost, self._unnoticed = self._unnoticed, None
            future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
            future.set_exception(lost)
        else:
            future = self.ask(streams.pack(commands), len(commands), timeout=timeout, written=written)
        return self._replies(commands, future, timeout)

    async def _replies(
        self, commands: Sequence[Command], future: asyncio.Future[list[Reply]], timeout: float | None
    ) -> list[Reply]:
        replies = await future
        for index, reply in enumerate(replies):
            if (
                type(reply) is not bytes
                and driver.is_no_script(reply)
                and (text := streams.as_text(commands[index])) is not None
            ):
                replies[index] = (await self.execute(text, timeout=timeout))[0]
        return replies

    def ask(
        self,
        packed: bytes,
        expected: int,
        *,
        timeout: float | None = None,
        until: float = math.inf,
        written: asyncio.Event | None = None,
    ) -> asyncio.Future[list[Reply]]:
        """As :meth:`execute`, for commands that are packed already, and none of which calls a script by its digest.

        Args:
            expected: how many commands that are.
            until: by the loop's clock, when the caller gives up with a ``TimeoutError``, wherever its request is then.
                One timer serves all callers: a timeout of its own for each takes 3 µs.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Reply]] = loop.create_future()
        if self._closed:
            future.set_exception(ConnectionLost("the bus has closed its connection"))
            return future
        self._waiting.append(
            _Request(packed, expected, self._timeout if timeout is None else timeout, until, future, written)
        )
        if until < self._timer_at:
            self._wake_at(until)
        if not self._flushing:
            if self._written or self._wire is None:
                self._flushing = True
                loop.call_soon(self._flush)
            else:  # nothing is under way that others would ride with
                self._flush()
        return future

    def look(self) -> None:
        """Look for the reply to what was just written, for a moment, before the event loop may sleep for it.

        For who has nothing else to do. All that the loop has to do goes on meanwhile.
        """
        if self._looked_for is None and self._written:
            seconds = self._busy_poll.seconds()
            if seconds:
                assert self._loop is not None
                self._looked_for = self._written[-1]
                self._look_until = perf_counter() + seconds
                self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """With something to call at once, the event loop asks for what has come, and does not wait for it."""
        looked_for = self._looked_for
        assert looked_for is not None
        came = looked_for.future.done()
        if not came and perf_counter() < self._look_until:
            assert self._loop is not None
            self._loop.call_soon(self._look_again)
            return
        self._looked_for = None
        self._busy_poll.ended(came=came)

    @property
    def alone(self) -> bool:
        """Whether at most one request is under way: who made it has nothing else to wait for."""
        return len(self._written) + len(self._waiting) <= 1

    async def execute_one(self, command: Command, *, timeout: float | None = None) -> Reply:
        """As :meth:`execute`, for one command."""
        return (await self.execute(command, timeout=timeout))[0]

    async def identify(self) -> None:
        """Learn the connection's CLIENT ID, so that another one may unblock it; None where the server won't tell."""
        reply = await self.execute_one(("CLIENT", "ID"))
        self.client_id = reply if isinstance(reply, int) else None

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as anyone has noticed."""
        return self._wire is not None

    async def close(self) -> None:
        """Give the connection back. Requests still under way end in ``ConnectionLost``, and so do later ones."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        self._drop(ConnectionLost("the bus is closing its connection"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)  # replies may be outstanding: nobody else may read them
            await self._pool.release(connection)

    # --- connecting ------------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            # redis-py bounds how long TCP may take, and not the handshake behind it
            async with asyncio.timeout(self._timeout):
                if self._connection is None:
                    driver.check_free(self._pool)
                    self._connection = await self._pool.get_connection()
                else:
                    await self._connection.disconnect(nowait=True)
                    await self._connection.connect()
            self._wire = wire.over(self._connection, self)
            self._unnoticed = None
        except driver.CONNECTION_ERRORS as error:
            failure = driver.connect_error(error, self._where)
            failure.__cause__ = error
            self._drop(failure)
        except RedisError as error:
            self._drop(self._broken(error))
        except BaseException as error:  # close() cancels; nobody may be left waiting, whatever it is
            closing = ConnectionLost("the bus is closing its connection")
            closing.__cause__ = error
            self._drop(closing)
            raise
        else:
            self._flush()
        finally:
            self._opening = None

    def _broken(self, error: BaseException) -> ConnectionLost:
        lost = ConnectionLost(f"the connection to Redis at {self._where} broke: {str(error) or type(error).__name__}")
        lost.__cause__ = error
        return lost

    def _drop(self, error: QuantumBusError) -> None:
        """The connection is of no more use. Tell everyone: whose request was written, and who waits behind them."""
        current, self._wire = self._wire, None
        if current is not None:
            current.abort()
        if self._written and self._written[0].replies:
            self._keep_what_came(self._written.popleft(), error)
        for request in self._written:
            if not request.future.done():
                request.future.set_exception(error)
        if isinstance(error, ConnectionLost):
            error = error.unwritten()
        for request in self._waiting:
            if not request.future.done():
                request.future.set_exception(error)
        self._written.clear()
        self._waiting.clear()
        self._unanswered = 0

    def _keep_what_came(self, request: _Request, error: QuantumBusError) -> None:
        lost = ConnectionLost(f"the connection to Redis at {self._where} broke before this reply")
        lost.__cause__ = error.__cause__ or error
        if not request.future.done():
            request.future.set_result(request.replies + [lost] * (request.expected - len(request.replies)))

    # --- writing and reading ---------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what waits, up to the bound: requests whose caller still does."""
        self._flushing = False
        if not self._waiting:
            return
        assert self._loop is not None
        current = self._wire
        if current is None:
            if self._opening is None:
                self._opening = self._loop.create_task(self._open())
            return
        if current.full:
            return
        waiting, written = self._waiting, self._written
        if not written:
            self._progress = self._loop.time()
        together: list[bytes] = []
        count = 0
        room = MAX_UNANSWERED - self._unanswered
        while waiting and count < room:
            request = waiting.popleft()
            if not request.future.done():
                written.append(request)
                together.append(request.packed)
                request.packed = b""
                count += request.expected
                if request.written is not None:
                    request.written.set()
        if count:
            self._unanswered += count
            current.write(together[0] if len(together) == 1 else b"".join(together), count)
            due = self._progress + written[0].timeout
            if due < self._timer_at:
                self._wake_at(due)

    def writable(self) -> None:
        """The server takes bytes again."""
        self._flush()

    def took(self, replies: list[Reply]) -> None:
        """Give replies to who asked for them."""
        assert self._loop is not None
        written = self._written
        self._progress = self._loop.time()
        self._unanswered -= len(replies)
        for reply in replies:
            if not written:
                self.lost(RedisError("a reply came that nobody had asked for"))
                return
            request = written[0]
            request.replies.append(reply)
            if len(request.replies) == request.expected:
                written.popleft()
                if not request.future.done():
                    request.future.set_result(request.replies)
        if written and (due := self._due()) < self._timer_at:  # behind one that may take longer
            self._wake_at(due)
        if self._waiting and not self._flushing:
            self._flush()

    def came(self) -> None:
        """The server is at it: a large reply may take longer than a timeout to arrive."""
        assert self._loop is not None
        self._progress = self._loop.time()

    def lost(self, error: BaseException) -> None:
        """The connection is gone, and with it every reply that was due."""
        broken = self._broken(error)
        if not self._written and not self._waiting:
            self._unnoticed = broken
        self._drop(broken)

    # --- deadlines -------------------------------------------------------------------------------

    def _due(self) -> float:
        """When the connection counts as dead, unless a reply comes before."""
        return self._progress + self._written[0].timeout if self._written else math.inf

    def _wake_at(self, moment: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        self._timer = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        """End what is over its time."""
        assert self._loop is not None
        self._timer, self._timer_at = None, math.inf
        now = self._loop.time()
        if self._due() <= now:
            self._drop(self._broken(TimeoutError()))
            return
        soonest = self._due()
        for request in (*self._written, *self._waiting):
            if request.until <= now and not request.future.done():
                request.future.set_exception(TimeoutError())
            if not request.future.done():
                soonest = min(soonest, request.until)
        if soonest < math.inf:
            self._wake_at(soonest)
