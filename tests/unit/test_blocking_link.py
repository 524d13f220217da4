"""A connection that is closed by one thread while another one writes, reads, or waits for its turn."""

from typing import Any

import pytest

from quantum_bus.blocking_link import Link, _Request
from quantum_bus.busy_poll import BusyPoll
from quantum_bus.errors import ConnectionLost


class Connection:
    """Answers everything, and lets the test act in the midst of it."""

    def __init__(self, at: str, act: Any) -> None:
        self._at = at
        self._act = act
        self.connected = True

    def connect(self) -> None: ...

    def send_packed_command(self, command: Any, check_health: bool) -> None:
        if self._at == "writing":
            self._act()

    def read_response(self, **options: Any) -> bytes:
        if self._at == "reading":
            self._act()
        if self._at == "reading, and it breaks":
            self._act()
            raise AttributeError("'NoneType' object has no attribute 'recv'")
        return b"PONG"

    def disconnect(self) -> None:
        self.connected = False


class Pool:
    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.released: list[Connection] = []

    def get_connection(self) -> Connection:
        assert self.connection is not None
        return self.connection

    def release(self, connection: Connection) -> None:
        self.released.append(connection)


def test_a_reply_is_looked_for_where_nobody_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    monkeypatch.setattr(BusyPoll, "seconds", lambda poll: looked.append(poll._seconds) or 0.0)
    pool = Pool()
    pool.connection = Connection("", None)
    link = Link(pool, timeout=1.0, where="here", busy_poll=0.001)
    link.ask(b"PING", 1, meanwhile=lambda: None)
    assert looked == [0.001]
    link.ask(b"PING", 1, meanwhile=lambda: link._waiting.append(_Request(b"PING", 1)))
    assert looked == [0.001], "another one waits to be written"


@pytest.mark.parametrize("at", ["writing", "reading", "reading, and it breaks"])
def test_who_leads_while_the_link_is_closed_is_told_that_the_connection_is_lost(at: str) -> None:
    """It was an IndexError, and the end of the heartbeat's, the writer's or the scheduler's thread."""
    pool = Pool()
    link = Link(pool, timeout=1.0, where="here")
    pool.connection = Connection(at, link.close)
    with pytest.raises(ConnectionLost, match="closed its connection"):
        link.execute(("PING",))
    assert pool.released == [pool.connection]
    assert not pool.connection.connected
    with pytest.raises(ConnectionLost, match="closed its connection"):
        link.execute(("PING",))


def test_what_is_to_be_done_meanwhile_is_done_between_the_writing_and_the_reading() -> None:
    done: list[str] = []

    class Watched(Connection):
        def send_packed_command(self, command: Any, check_health: bool) -> None:
            done.append("written")

        def read_response(self, **options: Any) -> bytes:
            done.append("read")
            return b"PONG"

    pool = Pool()
    link = Link(pool, timeout=1.0, where="here")
    pool.connection = Watched("", None)
    assert link.ask(b"PING", 2, meanwhile=lambda: done.append("meanwhile")) == [b"PONG", b"PONG"]
    assert done == ["written", "meanwhile", "read", "read"]
