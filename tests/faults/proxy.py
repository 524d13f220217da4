"""A TCP proxy between the bus and Redis that loses, holds and counts, one command at a time, and cuts between bytes.

It reads requests and replies of RESP2 as far as is needed to know which reply belongs to which command. It runs in a
thread with an event loop of its own, so that blocking code and other processes can be behind it as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

REQUESTS = "requests"
REPLIES = "replies"
AT_FIRST = frozenset({"AUTH", "CLIENT", "HELLO", "SELECT"})
PING = b"*1\r\n$4\r\nPING\r\n"


class Proxy:
    """In front of the Redis at `url`, while its `with` block lasts. Every method may be called from any thread.

    Attributes:
        url: where to connect to instead.
        commands: how often each command was passed on, or refused.
        refused: how often each command was refused; see `refuse_commands`.
        reads: how often bytes arrived from clients: their writes, as long as each fits into a packet.
        connections: how many clients have ever connected.
        cuts: how many connections were cut between two bytes.
        latency: seconds by which each way is late; see `slice`.
        throttled: bytes of replies that come in a second; see `throttle`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._database = parts.path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lose: Counter[str] = Counter()
        self._spare: Counter[str] = Counter()
        self._held: tuple[str, int, threading.Event] | None = None
        self._go_on = asyncio.Event()
        self.lost: Counter[str] = Counter()
        self._refusal: tuple[bytes, frozenset[str]] | None = None
        self.commands: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reads = 0
        self.connections = 0
        self.url = ""
        self._port = 0
        self._refusing = False
        self._swallowing = False
        self._dropping = False
        self._cuts: Iterator[tuple[str, int]] | None = None
        self.latency = 0.0
        self.throttled = 0.0
        self.cuts = 0

    # --- what to do ------------------------------------------------------------------------------

    def lose_reply(self, command: str, *, count: int = 1, after: int = 0) -> None:
        """Redis carries the command out; instead of its reply the client sees the connection closed. `count` times.

        `EVALSHA` is any script; `EVALSHA <digest>` is a certain one, which Redis has to know already. Of a command that
        blocks, only a reply that holds something counts. The first `after` replies get through.
        """

        def lose() -> None:
            self._lose[command] = count
            self._spare[command] = after

        self._call(lose)

    def hold(self, command: str, *, after: int = 0) -> threading.Event:
        """Do not pass on the next such command, but for `after` of them, nor what comes behind it, until `release`.

        Returns:
            Is set as soon as one is held.
        """
        event = threading.Event()

        def set_hold() -> None:
            self._go_on.clear()
            self._held = (command, after, event)

        self._call(set_hold)
        return event

    def release(self, *, drop: bool = False) -> None:
        """Pass on what was held; or close its connection, so that Redis never sees it."""

        def go_on() -> None:
            self._held = None
            self._dropping = drop
            self._go_on.set()

        self._call(go_on)

    def refuse_commands(self, error: str, *commands: str) -> None:
        """Answer these commands with an error, not Redis's reply; with none named all but a connection's first.

        With an empty error they are passed on again.
        """
        self._refusal = (f"-{error}\r\n".encode(), frozenset(commands)) if error else None

    def answer_in_http(self) -> None:
        """Answer every command as a web server would that has taken Redis's place; `refuse_commands("")` ends it."""
        self._refusal = (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", frozenset())

    def cut_between_bytes(self, offsets: Iterator[tuple[str, int]]) -> None:
        """Close each connection that is made from now on when so many bytes have passed it.

        Args:
            offsets: for each connection in turn, which way to count, `REQUESTS` or `REPLIES`, and how far. The byte
                count of the other way is free. When they are used up, connections live on.
        """
        self._cuts = offsets

    def slice(self, latency: float) -> None:
        """Pass everything on byte by byte, each way so many seconds late; with 0 as it comes again."""
        self.latency = latency

    def throttle(self, bytes_per_second: float) -> None:
        """Have replies come no faster than that, on each connection; 0 lets them."""
        self.throttled = bytes_per_second

    def go_dark(self) -> None:
        """Pass nothing on any more on the connections there are, and close none: as a router that forgot them."""

        def go_dark() -> None:
            for session in tuple(self._sessions):
                session.dark = True

        self._call(go_dark)

    def cut(self) -> None:
        """Close every connection."""

        def close() -> None:
            for session in tuple(self._sessions):
                session.close()

        self._call(close)

    def refuse(self) -> None:
        """Close every connection, and each new one at once."""
        self._refusing = True
        self.cut()

    def swallow(self) -> None:
        """Close every connection; take each new one, and never answer on it, not even after `accept`."""
        self._swallowing = True
        self.cut()

    def accept(self) -> None:
        """After `refuse` or `swallow`: serve new connections again."""
        self._refusing = self._swallowing = False

    @property
    def open_connections(self) -> int:
        return len(self._sessions)

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}{self._database}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for session in tuple(self._sessions):
            session.close()
        self._go_on.set()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=0.5)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=5)

    def _call(self, change: object) -> None:
        async def run() -> None:
            change()  # type: ignore[operator]

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    # --- traffic ---------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            if self._refusing:
                return
            if self._swallowing:
                with contextlib.suppress(OSError):
                    while await reader.read(1 << 16):
                        pass
                return
            try:
                upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            except OSError:
                return
            way, offset = ("", 0) if self._cuts is None else next(self._cuts, ("", 0))
            session = _Session(self, writer, upstream_writer, {way: offset})
            self._sessions.add(session)
            try:
                await asyncio.wait(
                    [
                        asyncio.ensure_future(session.requests(reader)),
                        asyncio.ensure_future(session.replies(upstream_reader)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                self._sessions.discard(session)
                session.close()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def admit(self, command: str) -> None:
        """Return when the command may be passed on."""
        if self._held is not None and self._held[0] in names_of(command):
            name, after, event = self._held
            if after:
                self._held = (name, after - 1, event)
            else:
                event.set()
                await self._go_on.wait()
                if self._dropping:
                    raise ConnectionAbortedError("dropped")
        for name in names_of(command):
            self.commands[name] += 1

    def refusal_of(self, command: str) -> bytes | None:
        """What to answer instead of Redis."""
        if self._refusal is None:
            return None
        error, commands = self._refusal
        names = names_of(command)
        if not (commands.intersection(names) if commands else command.partition(" ")[0] not in AT_FIRST):
            return None
        self.refused.update(names)
        return error

    def loses(self, command: str, reply: bytes) -> bool:
        """Whether this reply is to be lost."""
        lost = [name for name in names_of(command) if self._counts(name, reply)]
        return bool(lost)

    def _counts(self, command: str, reply: bytes) -> bool:
        if not self._lose[command] or reply in (b"*-1\r\n", b"$-1\r\n"):
            return False
        if self._spare[command]:
            self._spare[command] -= 1
            return False
        self._lose[command] -= 1
        self.lost[command] += 1
        return True


class _Session:
    """One client's connection and the one made for it.

    Attributes:
        dark: nothing is passed on, and nothing is closed.
    """

    def __init__(
        self, proxy: Proxy, client: asyncio.StreamWriter, upstream: asyncio.StreamWriter, cut_after: dict[str, int]
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._outstanding: deque[tuple[str, bytes | None]] = deque()
        self._left = cut_after
        self.dark = False

    async def requests(self, reader: asyncio.StreamReader) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self._proxy.reads += 1
                await asyncio.sleep(self._proxy.latency)
                buffer += data
                position = 0
                while (end := frame_end(buffer, position)) is not None:
                    frame = buffer[position:end]
                    position = end
                    command = command_of(frame)
                    await self._proxy.admit(command)
                    refusal = self._proxy.refusal_of(command)
                    if refusal is not None:
                        frame = PING  # its reply keeps the place of the refusal
                    self._outstanding.append((command, refusal))
                    await self._pass_on(REQUESTS, self._upstream, frame)
                buffer = buffer[position:]

    async def replies(self, reader: asyncio.StreamReader) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self._proxy.latency)
                buffer += data
                position = 0
                while (end := frame_end(buffer, position)) is not None:
                    frame = buffer[position:end]
                    position = end
                    command, refusal = self._outstanding.popleft() if self._outstanding else ("", None)
                    frame = refusal or frame
                    if self._proxy.loses(command, frame):
                        self.close()
                        return
                    await self._pass_on(REPLIES, self._client, frame)
                buffer = buffer[position:]

    async def _pass_on(self, way: str, writer: asyncio.StreamWriter, frame: bytes) -> None:
        if self.dark:
            return
        if way in self._left:
            if self._left[way] < len(frame):
                writer.write(frame[: self._left[way]])
                await writer.drain()
                self._proxy.cuts += 1
                raise ConnectionAbortedError("cut")
            self._left[way] -= len(frame)
        if self._proxy.throttled and way == REPLIES:
            for at in range(0, len(frame), 4096):
                writer.write(frame[at : at + 4096])
                await writer.drain()
                await asyncio.sleep(4096 / self._proxy.throttled)
        elif self._proxy.latency:
            for at in range(len(frame)):
                writer.write(frame[at : at + 1])
                await asyncio.sleep(0)
        else:
            writer.write(frame)
        await writer.drain()

    def close(self) -> None:
        self._client.close()
        self._upstream.close()


def command_of(frame: bytes) -> str:
    """The name of the command in a request; with its subcommand for those that have one, with its digest a script."""
    parts = frame.split(b"\r\n")
    name = parts[2].decode().upper() if len(parts) > 2 else ""
    if name == "EVALSHA":
        return f"{name} {parts[4].decode()}"
    return f"{name} {parts[4].decode().upper()}" if name in ("CLIENT", "XGROUP", "SCRIPT") else name


def names_of(command: str) -> tuple[str, ...]:
    """What a command is called by: a script by its digest, or as any."""
    return (command, "EVALSHA") if command.startswith("EVALSHA ") else (command,)


def frame_end(buffer: bytes, start: int) -> int | None:
    """Where the RESP2 value that begins at `start` ends; None while it is not complete."""
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, position = buffer[start : start + 1], line_end + 2
    if kind == b"$":
        length = int(buffer[start + 1 : line_end])
        if length < 0:
            return position
        return position + length + 2 if len(buffer) >= position + length + 2 else None
    if kind == b"*":
        for _ in range(max(0, int(buffer[start + 1 : line_end]))):
            end = frame_end(buffer, position)
            if end is None:
                return None
            position = end
        return position
    return position
