"""One connection to Redis that many coroutines share.

Requests that are made while one is under way are written together when it is answered, so that concurrent publishes
share round trips; replies come back in order. redis-py opens the connection (TLS, ACL users, Sentinel and Unix sockets
stay its business); its client layer, and with it its retries, is passed by. Nothing of what is done here is seen by
opentelemetry-instrumentation-redis, which instruments that layer: the bus makes its own spans.

A request cancelled before it is written is never written. One cancelled later may have been carried out; its reply is
read and dropped, and the connection goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from . import driver, streams
from .errors import ConnectionLost, QuantumBusError
from .streams import Command

Reply = Any
"""A reply as bytes, int, list or None; or, where it said no, one of ``driver.REFUSALS``; or a ``ConnectionLost``."""

# Commands written in one go: bounds what a broken connection leaves in doubt, and how long the first one waits.
MAX_WRITTEN_TOGETHER: Final = 1_000


class _Request:
    __slots__ = ("commands", "future", "timeout", "written")

    def __init__(
        self,
        commands: Sequence[Command],
        timeout: float,
        future: asyncio.Future[list[Reply]],
        written: asyncio.Event | None,
    ) -> None:
        self.commands = commands
        self.timeout = timeout
        self.future = future
        self.written = written


class Link:
    """A shared connection.

    Args:
        pool: redis-py's, of the asyncio kind.
        timeout: seconds that a request may take once it is written, where it does not say otherwise.
        where: the server's address, for error texts.
    """

    def __init__(self, pool: Any, *, timeout: float, where: str) -> None:
        self._pool = pool
        self._timeout = timeout
        self._where = where
        self._connection: AbstractConnection | None = None
        self._waiting: deque[_Request] = deque()
        self._writer: asyncio.Task[None] | None = None
        self.client_id: int | None = None
        """CLIENT ID of the connection, once :meth:`identify` has asked for it."""

    async def execute(
        self, *commands: Command, timeout: float | None = None, written: asyncio.Event | None = None
    ) -> list[Reply]:
        """Write commands together and return their replies, in order.

        What the server refuses is returned in its place, as ``ResponseError``. If the connection breaks after some
        replies, the missing ones are ``ConnectionLost``: those commands may have been carried out.

        Args:
            timeout: seconds from writing to the last reply, for a command that blocks.
            written: set as soon as the commands are on their way.

        Raises:
            ConnectionLost: no reply came; the commands may have been carried out if they were written.
            ConfigurationError: Redis refused the credentials.
        """
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(commands, self._timeout if timeout is None else timeout, future, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        replies = await future
        for index, reply in enumerate(replies):
            if driver.is_no_script(reply) and (text := streams.as_text(commands[index])) is not None:
                replies[index] = (await self.execute(text, timeout=timeout))[0]
        return replies

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
        return self._connection is not None and self._connection.is_connected

    async def close(self) -> None:
        """Give the connection back. Requests still under way end in ``ConnectionLost``."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)  # replies may be outstanding: nobody else may read them
            await self._pool.release(connection)

    async def _write(self) -> None:
        taken: list[_Request] = []
        try:
            while self._waiting:
                taken = self._take()
                if taken:
                    await self._exchange(taken)
        except QuantumBusError as error:
            self._fail(taken, error)
        except (*driver.CONNECTION_ERRORS, RedisError) as error:  # what is no reply at all is no connection to Redis
            lost = ConnectionLost(
                f"the connection to Redis at {self._where} broke: {str(error) or type(error).__name__}"
            )
            lost.__cause__ = error
            self._fail(taken, lost)
        except BaseException as error:  # close() cancels; nobody may be left waiting, whatever it is
            closing = ConnectionLost("the bus is closing its connection")
            closing.__cause__ = error
            self._fail(taken, closing)
            raise
        finally:
            self._writer = None

    def _take(self) -> list[_Request]:
        """What is written next: requests whose caller still waits, up to the bound."""
        taken: list[_Request] = []
        count = 0
        while self._waiting and count < MAX_WRITTEN_TOGETHER:
            request = self._waiting.popleft()
            if not request.future.done():
                taken.append(request)
                count += len(request.commands)
        return taken

    async def _exchange(self, requests: Sequence[_Request]) -> None:
        connection = await self._connected()
        packed = streams.pack(command for request in requests for command in request.commands)
        replies: list[Reply] = []
        current = requests[0]
        try:
            async with asyncio.timeout(max(request.timeout for request in requests)):
                await connection.send_packed_command([packed], check_health=False)
                for request in requests:
                    if request.written is not None:
                        request.written.set()
                for current in requests:
                    replies = []
                    for _ in current.commands:
                        replies.append(await self._reply(connection))
                    if not current.future.done():
                        current.future.set_result(replies)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if replies and not current.future.done():
                lost = ConnectionLost(f"the connection to Redis at {self._where} broke before this reply")
                lost.__cause__ = error
                current.future.set_result(replies + [lost] * (len(current.commands) - len(replies)))
            raise

    async def _reply(self, connection: AbstractConnection) -> Reply:
        try:
            # math.inf: the deadline is the caller's; redis-py's own would return None, which is also what nil is
            return await connection.read_response(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
        except driver.REFUSALS as refusal:
            return refusal

    async def _connected(self) -> AbstractConnection:
        if self._connection is not None and self._connection.is_connected:
            return self._connection
        try:
            # redis-py bounds how long TCP may take, and not the handshake behind it
            async with asyncio.timeout(self._timeout):
                if self._connection is None:
                    driver.check_free(self._pool)
                    self._connection = await self._pool.get_connection()
                else:
                    await self._connection.connect()
        except driver.CONNECTION_ERRORS as error:
            raise driver.connect_error(error, self._where) from error
        return self._connection

    def _fail(self, taken: Sequence[_Request], error: QuantumBusError) -> None:
        """Tell everyone: those that were written, and those that wait behind them."""
        for request in (*taken, *self._waiting):
            if not request.future.done():
                request.future.set_exception(error)
        self._waiting.clear()
