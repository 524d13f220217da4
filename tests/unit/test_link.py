"""What is written when, who gets which reply, and what is over its time; against a server that does as it is told."""

import asyncio
import gc
import math
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
import redis.asyncio
from redis.exceptions import ReadOnlyError

from quantum_bus import streams
from quantum_bus.errors import ConnectionLost
from quantum_bus.link import MAX_UNANSWERED, Link
from quantum_bus.wire import DriverWire, TransportWire

PATIENCE = 10.0


class Server:
    """Answers each command with its last argument, in order; holds its replies back while it is told to.

    Attributes:
        arrivals: what came together, each command as its arguments.
    """

    def __init__(self) -> None:
        self.arrivals: list[list[list[bytes]]] = []
        self.connections = 0
        self._open = asyncio.Event()
        self._open.set()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        parser = hiredis.Reader()
        while data := await reader.read(1 << 20):
            parser.feed(data)
            commands = []
            while (command := parser.gets()) is not False:
                commands.append(command)
            handshake = commands[0][0] in (b"CLIENT", b"HELLO", b"SELECT")
            if not handshake:
                self.arrivals.append(commands)
            for command in commands:
                if not handshake:
                    await self._open.wait()
                writer.write(b"+OK\r\n" if handshake else self._reply(command[-1]))

    def _reply(self, said: bytes) -> bytes:
        return b"-READONLY no\r\n" if said == b"READONLY" else b"$%d\r\n%b\r\n" % (len(said), said)

    def hold(self) -> None:
        self._open.clear()

    def answer(self) -> None:
        self._open.set()

    def say(self, data: bytes) -> None:
        self._writers[-1].write(data)

    def hang_up(self) -> None:
        self._writers[-1].close()

    @property
    def said(self) -> list[bytes]:
        return [command[-1] for commands in self.arrivals for command in commands]

    async def has(self, *said: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while not set(said) <= set(self.said):  # noqa: ASYNC110 - what arrives sets no event
                await asyncio.sleep(0.001)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    yield server
    server.answer()
    for writer in server._writers:
        writer.close()
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def link(server: Any, request: pytest.FixtureRequest) -> AsyncIterator[Link]:
    """Its parameter: for how long it looks for a reply."""
    client = redis.asyncio.Redis(host="127.0.0.1", port=server.port, protocol=2)
    busy_poll = getattr(request, "param", 0.0)
    link = Link(client.connection_pool, timeout=10 * PATIENCE, where="here", busy_poll=busy_poll)
    await link.execute(("ECHO", "hello"))
    server.arrivals.clear()
    yield link
    await link.close()
    await client.aclose()


def echo(text: str) -> tuple[str, str]:
    return ("ECHO", text)


async def test_what_is_asked_within_one_turn_is_written_together_and_each_gets_its_own(
    server: Server, link: Link
) -> None:
    server.hold()
    first = link.ask(streams.pack_one(echo("first")), 1)
    await server.has(b"first")
    asked = [asyncio.ensure_future(link.execute(echo(f"{n}"), echo(f"{n}b"))) for n in range(50)]
    await asyncio.sleep(0.01)
    assert not link._waiting, "written, in one go"
    server.answer()
    assert await first == [b"first"]
    assert await asyncio.gather(*asked) == [[b"%d" % n, b"%db" % n] for n in range(50)]
    assert len(server.arrivals) == 2


async def test_with_no_reply_due_it_is_written_at_once(server: Server, link: Link) -> None:
    written = asyncio.Event()
    request = link.send(echo("first"), written=written)
    assert written.is_set()
    assert link.alone
    second = link.send(echo("second"))
    assert not link.alone
    assert (await request, await second) == ([b"first"], [b"second"])


@pytest.fixture
async def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How long the event loop has said it would sleep, each time it asked for what has come; None without an end."""
    seen: list[float | None] = []
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select = selector.select

    def watched(timeout: float | None = None) -> Any:
        seen.append(timeout)
        return select(timeout)

    monkeypatch.setattr(selector, "select", watched)
    return seen


async def longest_sleep(sleeps: list[float | None]) -> float:
    """Of those of the next moments, which are slept through where nothing keeps the loop busy; seconds."""
    sleeps.clear()
    await asyncio.sleep(0.02)
    return max(math.inf if timeout is None else timeout for timeout in sleeps)


async def looked_for(server: Server, link: Link, text: str) -> asyncio.Future[list[Any]]:
    """A request that has arrived, is not answered, and whose reply is looked for."""
    server.hold()
    asked = link.ask(streams.pack_one(echo(text)), 1)
    link.look()
    await server.has(text.encode())
    return asked


@pytest.mark.parametrize("link", [PATIENCE], indirect=True)
async def test_while_a_reply_is_looked_for_the_loop_does_not_sleep(
    server: Server, link: Link, sleeps: list[float | None]
) -> None:
    asked = await looked_for(server, link, "first")
    assert await longest_sleep(sleeps) == 0
    server.answer()
    assert await asked == [b"first"]
    await asyncio.sleep(0.01)
    assert await longest_sleep(sleeps) > 0, "it came: nothing is looked for any more"
    assert link._busy_poll.seconds(), "and the next one is"


@pytest.mark.parametrize("link", [1e-9], indirect=True)
async def test_a_reply_that_was_looked_for_in_vain_is_slept_for(
    server: Server, link: Link, sleeps: list[float | None]
) -> None:
    asked = await looked_for(server, link, "first")
    assert await longest_sleep(sleeps) > 0
    assert not link._busy_poll.seconds(), "nor is the next one looked for"
    server.answer()
    assert await asked == [b"first"]


@pytest.mark.parametrize("link", [PATIENCE], indirect=True)
async def test_what_is_given_up_or_breaks_is_looked_for_no_longer(
    server: Server, link: Link, sleeps: list[float | None]
) -> None:
    given_up = await looked_for(server, link, "first")
    given_up.cancel()
    await asyncio.sleep(0.01)
    assert await longest_sleep(sleeps) > 0
    server.answer()
    assert await link.execute_one(echo("behind it")) == b"behind it"
    broken = await looked_for(server, link, "second")
    server.hang_up()
    with pytest.raises(ConnectionLost):
        await broken
    await asyncio.sleep(0.01)
    assert await longest_sleep(sleeps) > 0


async def test_what_is_asked_while_a_reply_is_due_does_not_wait_for_it(server: Server, link: Link) -> None:
    server.hold()
    first = asyncio.ensure_future(link.execute_one(echo("first")))
    await server.has(b"first")
    second = link.ask(streams.pack_one(echo("second")), 1)
    await asyncio.sleep(0)
    assert not link._waiting, "written, though the first is not answered"
    server.answer()
    assert (await first, await second) == (b"first", [b"second"])


async def test_a_request_cancelled_before_it_is_written_never_is(server: Server, link: Link) -> None:
    first = link.ask(streams.pack_one(echo("first")), 1)
    cancelled = link.ask(streams.pack_one(echo("cancelled")), 1)
    other = link.ask(streams.pack_one(echo("other")), 1)
    cancelled.cancel()
    assert [await first, await other] == [[b"first"], [b"other"]]
    assert server.said == [b"first", b"other"]


async def test_the_reply_to_a_request_cancelled_later_is_dropped_and_the_connection_goes_on(
    server: Server, link: Link
) -> None:
    server.hold()
    cancelled = link.ask(streams.pack_one(echo("cancelled")), 1)
    await server.has(b"cancelled")
    cancelled.cancel()
    other = link.ask(streams.pack_one(echo("other")), 1)
    server.answer()
    assert await other == [b"other"]
    assert server.connections == 1


async def test_who_gives_up_is_told_in_time_and_the_connection_goes_on(server: Server, link: Link) -> None:
    server.hold()
    loop = asyncio.get_running_loop()
    late = link.ask(streams.pack_one(echo("late")), 1, until=loop.time() + 60)
    hasty = link.ask(streams.pack_one(echo("hasty")), 1, until=loop.time() + 0.02)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(hasty), PATIENCE)
    assert hasty.done()
    assert not late.done()
    server.answer()
    assert await late == [b"late"]
    assert server.connections == 1


async def test_a_server_that_does_not_answer_in_time_is_a_lost_connection_and_the_next_request_makes_another(
    server: Server, link: Link
) -> None:
    server.hold()
    with pytest.raises(ConnectionLost, match="here broke: TimeoutError"):
        await link.execute_one(echo("first"), timeout=0.02)
    server.answer()
    assert await link.execute_one(echo("second")) == b"second"
    assert server.connections == 2


async def test_a_request_behind_one_that_may_take_long_has_its_own_time(server: Server, link: Link) -> None:
    server.hold()
    slow = asyncio.ensure_future(link.execute_one(echo("slow"), timeout=3600.0))
    await server.has(b"slow")
    quick = asyncio.ensure_future(link.execute_one(echo("quick"), timeout=0.02))
    await asyncio.sleep(0)
    server.say(b"$4\r\nslow\r\n")  # and nothing more
    assert await slow == b"slow"
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(quick, PATIENCE)


async def test_no_more_than_the_bound_is_under_way(server: Server, link: Link) -> None:
    server.hold()
    asked = [link.ask(streams.pack_one(echo(f"{n}")), 1) for n in range(MAX_UNANSWERED + 5)]
    await asyncio.sleep(0)
    assert len(link._written) == MAX_UNANSWERED
    server.answer()
    assert await asked[-1] == [b"%d" % (MAX_UNANSWERED + 4)]


async def test_of_a_connection_that_breaks_between_replies_those_that_came_are_given(
    server: Server, link: Link
) -> None:
    server.hold()
    half = asyncio.ensure_future(link.execute(echo("a"), echo("b")))
    behind = asyncio.ensure_future(link.execute(echo("c")))
    await server.has(b"a", b"b", b"c")
    server.say(b"$1\r\na\r\n")
    while not link._written[0].replies:  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.001)
    server.hang_up()
    came, missing = await half
    assert came == b"a"
    assert isinstance(missing, ConnectionLost)
    with pytest.raises(ConnectionLost, match="Connection closed by server"):
        await behind
    assert not link.connected


@pytest.mark.parametrize("said", [b"+unasked\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_what_nobody_asked_for_ends_the_connection(server: Server, link: Link, said: bytes) -> None:
    server.say(said)
    async with asyncio.timeout(PATIENCE):
        while link.connected:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.001)
    with pytest.raises(ConnectionLost, match=r"nobody had asked for|Protocol error"):
        await link.execute_one(echo("lost"))
    assert await link.execute_one(echo("again")) == b"again"
    assert server.connections == 2


async def test_a_connection_that_broke_while_nobody_used_it_is_told_of_once_to_who_has_to_know(
    server: Server, link: Link
) -> None:
    server.hang_up()
    async with asyncio.timeout(PATIENCE):
        while link.connected:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.001)
    with pytest.raises(ConnectionLost, match="Connection closed by server"):
        await link.execute_one(echo("first"))
    assert await link.execute_one(echo("second")) == b"second"
    assert server.said == [b"second"]


async def test_whoever_waits_when_the_link_is_closed_is_told(server: Server, link: Link) -> None:
    server.hold()
    asked = asyncio.ensure_future(link.execute(echo("a")))
    await server.has(b"a")
    await link.close()
    with pytest.raises(ConnectionLost, match="closing"):
        await asked


async def test_a_connection_that_reads_in_its_own_way_is_read_through_it(server: Any) -> None:
    """Sentinel's leaves a master that was demoted when it reads that it was."""

    class Managed(redis.asyncio.Connection):
        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*args, **options)
            except ReadOnlyError:
                raise redis.exceptions.ConnectionError("The previous master is now a slave") from None

    pool = redis.asyncio.ConnectionPool(connection_class=Managed, host="127.0.0.1", port=server.port, protocol=2)
    link = Link(pool, timeout=PATIENCE, where="here")
    replies = await asyncio.gather(*(link.execute_one(echo(f"{n}")) for n in range(20)))
    assert replies == [b"%d" % n for n in range(20)]
    assert isinstance(link._wire, DriverWire)
    server.hold()
    first = asyncio.ensure_future(link.execute_one(echo("first")))
    await server.has(b"first")
    others = [asyncio.ensure_future(link.execute_one(echo(f"{n}"))) for n in range(20)]
    await asyncio.sleep(0.01)
    assert len(link._waiting) == len(others), "held back until the reply is there, and then written together"
    server.answer()
    await asyncio.gather(first, *others)
    with pytest.raises(ConnectionLost, match="now a slave"):
        await link.execute_one(echo("READONLY"))
    await link.close()
    await pool.aclose()


async def test_redis_pys_own_connections_are_read_by_a_protocol(link: Link) -> None:
    assert isinstance(link._wire, TransportWire)
    gc.collect()  # what redis-py left behind warns of nothing
