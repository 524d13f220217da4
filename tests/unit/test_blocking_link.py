"""A connection that is closed by one thread while another one writes, reads, or waits for its turn."""

import contextlib
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from _pytest.outcomes import Failed

from quantum_bus import blocking_link
from quantum_bus.blocking_link import Link, _Request
from quantum_bus.busy_poll import BusyPoll
from quantum_bus.errors import ConfigurationError, ConnectionLost


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


class Interrupted(Exception):
    """What a signal's handler raises, as for a time limit."""


def interrupted_at(line: int, call: Callable[[], Any]) -> bool:
    """Whether it had so many lines of the link to run, and raised there.

    Those that take a lock are passed by: they are traced again before it is let go, where Python runs no handler.
    """
    ran = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal ran
        if frame.f_code.co_filename != blocking_link.__file__:
            return None
        if event == "line" and "with self._lock" not in linecache.getline(blocking_link.__file__, frame.f_lineno):
            ran += 1
            if ran == line:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(Interrupted):
            call()
    except Failed:
        return False
    finally:
        sys.settrace(before)
    return True


def test_wherever_a_caller_is_interrupted_the_next_one_is_answered() -> None:
    # fails without: a leader that hands over wherever its thread leaves. At 11 of 79 lines it did not: nobody led any
    # more, and every publish timed out for ever
    lines = 0
    while True:
        pool = Pool()
        pool.connection = Connection("", None)
        link = Link(pool, timeout=0.2, where="here")
        if not interrupted_at(lines + 1, lambda link=link: link.execute(("PING",))):  # type: ignore[misc]
            break
        lines += 1
        assert link.execute(("PING",)) == [b"PONG"], f"interrupted at line {lines}"
    assert lines > 20


@contextlib.contextmanager
def another_leads() -> Iterator[tuple[Link, threading.Event]]:
    """A link over which a thread reads; it gets its reply when the event is set, at the block's end at the latest."""
    reading, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reading.set()
        go_on.wait(10.0)

    pool = Pool()
    pool.connection = Connection("reading", hold)
    link = Link(pool, timeout=10.0, where="here")
    leading = threading.Thread(target=link.execute, args=(("PING",),))
    leading.start()
    assert reading.wait(10.0)
    yield link, go_on
    go_on.set()
    leading.join(10.0)


def test_wherever_one_that_waits_for_others_is_interrupted_it_is_not_named_to_lead() -> None:
    lines = 0
    while True:
        with another_leads() as (link, _):
            interrupted = interrupted_at(lines + 1, lambda link=link: suppressing(link))  # type: ignore[misc]
        assert link.execute(("PING",), timeout=0.2) == [b"PONG"], f"interrupted at line {lines + 1}"
        if not interrupted:
            break
        lines += 1
    assert lines > 10


def suppressing(link: Link) -> None:
    with contextlib.suppress(ConnectionLost):  # it is not answered in time, which is as it should be
        link.execute(("PING",), timeout=0.001)


@pytest.mark.parametrize("at", ["writing", "reading"])
def test_who_asks_in_a_signals_handler_while_its_own_thread_waits_is_told_that_it_cannot(at: str) -> None:
    # fails without: a look at who leads; it waited for its own thread, or for a lock of it, for ever
    errors: list[str] = []

    def handler() -> None:
        with pytest.raises(ConfigurationError) as told:
            link.execute(("PING",), timeout=0.2)
        errors.append(str(told.value))

    pool = Pool()
    link = Link(pool, timeout=1.0, where="here")
    pool.connection = Connection(at, handler)
    assert link.execute(("PING",)) == [b"PONG"]
    assert len(errors) == 1
    assert "signal" in errors[0]


def test_one_that_waits_for_others_may_have_centuries() -> None:
    # fails without: the longest that a lock may be waited for; it was an OverflowError
    with another_leads() as (link, go_on):
        threading.Timer(0.05, go_on.set).start()
        assert link.execute(("PING",), timeout=1e12) == [b"PONG"]
