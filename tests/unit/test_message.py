"""The message in a handler's hands."""

from typing import Any

import pytest

from quantum_bus import Message, MessageAlreadySettled
from quantum_bus.envelope import Entry, decode
from tests.unit.incoming import incoming


class Noting:
    """Where a message's settlement goes."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def ack(self, held: object) -> str:
        self.calls.append(("ack", held))
        return "awaitable"

    def nack(self, held: object) -> None:
        self.calls.append(("nack", held))

    def term(self, held: object, reason: str) -> None:
        self.calls.append(("term", held, reason))

    def in_progress(self, held: object) -> None:
        self.calls.append(("in_progress", held))


@pytest.fixture
def noting() -> Noting:
    return Noting()


@pytest.fixture
def message(noting: Noting) -> Message:
    return Message(incoming(7, event="E"), group="g", attempt=2, settlement=noting, held="held")


def test_it_shows_what_the_entry_carries() -> None:
    fields = [
        b"v", b"1", b"data", b'{"n": 1}', b"event", b"E", b"key", b"K", b"message_id", b"m-1",
        b"correlation_id", b"c-1", b"causation_id", b"m-0",
        b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"service", b"engine", b"ts", b"2026-01-03T10:15:23.456789Z", b"h.tenant", b"eu", b"other", b"kept",
    ]  # fmt: skip
    message = Message(decode(Entry("s", "7-0", fields)), group="g", attempt=1, settlement=Noting())
    shown = {name: getattr(message, name) for name in dir(Message) if not name.startswith("_")}
    assert {name: value for name, value in shown.items() if not callable(value)} == {
        "id": "7-0",
        "message_id": "m-1",
        "stream": "s",
        "group": "g",
        "event": "E",
        "key": "K",
        "data": {"n": 1},
        "raw": b'{"n": 1}',
        "correlation_id": "c-1",
        "causation_id": "m-0",
        "service": "engine",
        "ts": "2026-01-03T10:15:23.456789Z",
        "headers": {"tenant": "eu"},
        "extra": {"other": "kept"},
        "attempt": 1,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "settled": None,
        "retry_delay": None,
        "term_reason": "",
    }


def test_settling_goes_where_it_came_from(message: Message, noting: Noting) -> None:
    assert message.ack() == "awaitable"  # type: ignore[comparison-overlap]
    assert noting.calls == [("ack", "held")]
    assert message.settled == "ack"


@pytest.mark.parametrize("first", ["ack", "nack", "term"])
@pytest.mark.parametrize("second", ["ack", "nack", "term", "in_progress"])
def test_it_is_settled_once(message: Message, noting: Noting, first: str, second: str) -> None:
    calls = {"ack": (), "nack": (1.0,), "term": ("why",), "in_progress": ()}
    getattr(message, first)(*calls[first])
    with pytest.raises(MessageAlreadySettled, match=first):
        getattr(message, second)(*calls[second])
    assert len(noting.calls) == 1


def test_in_progress_settles_nothing(message: Message, noting: Noting) -> None:
    message.in_progress()
    message.in_progress()
    message.term("why")
    assert [call[0] for call in noting.calls] == ["in_progress", "in_progress", "term"]


@pytest.mark.parametrize("delay", [-0.1, float("inf"), float("nan"), "1", True])
def test_a_wrong_delay_is_refused_and_leaves_it_unsettled(message: Message, delay: Any) -> None:
    with pytest.raises(ValueError, match="delay"):
        message.nack(delay)
    assert message.settled is None
    message.ack()


def test_after_its_handler_it_is_closed(message: Message) -> None:
    message.close()
    assert message.settled == "return"
    with pytest.raises(MessageAlreadySettled):
        message.ack()


def test_closing_keeps_how_it_was_settled(message: Message) -> None:
    message.nack(0.5)
    message.close()
    assert (message.settled, message.retry_delay) == ("nack", 0.5)


def test_its_repr_is_short_and_shows_no_payload() -> None:
    message = Message(incoming(7, data=b'"secret"'), group="g", attempt=2, settlement=Noting())
    assert repr(message) == "Message(id='7-0', stream='s', event=None, correlation_id='flow-7', attempt=2)"
