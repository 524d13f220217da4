"""A request to stop is safe to make from a signal handler, wherever in its wait the main thread just is."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import pytest

from quantum_bus import stopping
from quantum_bus.stopping import StopRequest
from quantum_bus.sync import EventBus

WAITS_IN = {stopping.__file__, threading.__file__}


class SignalAt:
    """Sends this process a signal as the main thread begins the n-th line of what waits."""

    def __init__(self, number: int, line: int) -> None:
        self._number = number
        self._left = line
        self.sent = False

    def __enter__(self) -> Self:
        self._former = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._former)

    def _called(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in WAITS_IN and not self.sent else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        if event == "line" and not self.sent:
            self._left -= 1
            if self._left == 0:
                self.sent = True
                signal.raise_signal(self._number)
        return self._line


@pytest.fixture
def _deaf() -> Iterator[None]:
    """Before and after the wait SIGTERM does nothing."""
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, former)


def run_a_bus(signalled: SignalAt) -> None:
    bus = EventBus("redis://127.0.0.1:1/0", service="svc")
    bus.start = bus.stop = lambda *_: None  # type: ignore[method-assign, assignment]
    with signalled:
        bus.run()


def wait_for_it(signalled: SignalAt) -> None:
    stop = StopRequest()
    former = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with signalled:
            assert stop.wait()
    finally:
        signal.signal(signal.SIGTERM, former)


def signal_until(over: threading.Event, thread: int) -> None:
    while not over.wait(0.1):
        signal.pthread_kill(thread, signal.SIGTERM)


@pytest.mark.timeout(20)
@pytest.mark.usefixtures("_deaf")
@pytest.mark.parametrize("waits", [wait_for_it, run_a_bus])
def test_a_signal_ends_the_wait_in_whichever_line_it_comes(waits: Callable[[SignalAt], None]) -> None:
    for line in range(1, 100):
        signalled = SignalAt(signal.SIGTERM, line)
        over = threading.Event()
        # It waits, and has no further line before it is woken. Before it listens, it is not.
        later = threading.Thread(target=signal_until, args=(over, threading.get_ident()))
        later.start()
        waits(signalled)
        over.set()
        later.join()
        if not signalled.sent:
            break
    assert 2 < line < 99


@pytest.mark.timeout(20)
@pytest.mark.usefixtures("_deaf")
def test_a_signal_that_the_kernel_gave_another_thread_ends_the_wait() -> None:
    stop = StopRequest()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    another = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
    another.start()
    assert stop.wait()
    another.join()


class TooLong(Exception):
    pass


@pytest.mark.timeout(20)
@pytest.mark.usefixtures("_deaf")
def test_while_a_thread_is_waited_for_a_signal_of_another_thread_is_heard() -> None:
    def interrupt(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGTERM, interrupt)
    over = threading.Event()

    def signalled() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        over.wait()

    thread = threading.Thread(target=signalled)

    def begin_and_join() -> None:
        thread.start()
        stopping.join(thread, time.monotonic() + 60)

    with pytest.raises(TooLong):
        begin_and_join()
    over.set()
    stopping.join(thread, time.monotonic() + 60)
    assert not thread.is_alive()


def test_a_thread_is_waited_for_until_the_deadline_or_not_at_all() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    stopping.join(thread, time.monotonic() + 60)  # it has not begun
    thread.start()
    stopping.join(thread, time.monotonic() + 0.01)
    assert thread.is_alive()
    over.set()
    stopping.join(thread, time.monotonic() + 60)
    assert not thread.is_alive()


def test_it_stays_set_and_a_wait_may_end_by_its_time() -> None:
    stop = StopRequest()
    assert not stop.wait(0.0)
    assert not stop.wait(0.01)
    assert not stop.is_set()
    stop.set()
    stop.set()
    assert stop.wait(0.0)
    assert stop.wait()
    assert stop.is_set()
