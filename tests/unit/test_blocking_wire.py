"""The bytes of a blocking connection: looked for without sleeping, and read."""

import socket
import time
from collections.abc import Iterator

import hiredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from quantum_bus.blocking_wire import SocketWire


class Parser:
    """Of redis-py's, as much as makes errors."""

    @staticmethod
    def parse_error(text: str) -> hiredis.ReplyError:
        return hiredis.ReplyError(text)


class Pair:
    """A wire, and the server's end of it."""

    def __init__(self) -> None:
        ours, self.server = socket.socketpair()
        ours.settimeout(5.0)
        self.wire = SocketWire(ours, Parser())
        self.ours = ours


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.server.close()
    pair.ours.close()


def soon(seconds: float = 0.0) -> float:
    return time.perf_counter() + seconds


def test_bytes_that_are_there_are_seen_and_read(pair: Pair) -> None:
    pair.server.sendall(b"+OK\r\n+again\r\n")
    assert pair.wire.look(soon(60))
    pair.server.close()  # nothing else can be read
    replies: list[object] = []
    pair.wire.read(5.0, replies, 2)
    assert replies == [b"OK", b"again"]


def test_it_stops_looking_in_time_and_the_reply_is_read_when_it_comes(pair: Pair) -> None:
    assert not pair.wire.look(soon())
    pair.server.sendall(b"+OK\r\n")
    replies: list[object] = []
    pair.wire.read(5.0, replies, 1)
    assert replies == [b"OK"]


def test_half_a_reply_is_kept(pair: Pair) -> None:
    pair.server.sendall(b"$5\r\nhe")
    assert pair.wire.look(soon(60))
    pair.server.sendall(b"llo\r\n")
    replies: list[object] = []
    pair.wire.read(5.0, replies, 1)
    assert replies == [b"hello"]


def test_a_connection_that_has_ended_is_an_error(pair: Pair) -> None:
    pair.server.close()
    with pytest.raises(RedisConnectionError, match="closed by server"):
        pair.wire.look(soon(60))


def test_one_that_was_closed_here_is_an_error(pair: Pair) -> None:
    pair.ours.close()
    with pytest.raises(OSError, match="descriptor"):
        pair.wire.look(soon(60))


def test_what_tls_carries_is_not_looked_at(pair: Pair) -> None:
    class Tls(socket.socket):
        """What an ``SSLSocket`` is: a socket's subclass."""

    server, ours = socket.socketpair()
    with server, Tls(ours.family, ours.type, ours.proto, ours.detach()) as wrapped:
        wrapped.settimeout(5.0)
        server.sendall(b"not for hiredis")
        assert SocketWire(wrapped, Parser()).look(soon(60))
        assert wrapped.recv(100) == b"not for hiredis"
