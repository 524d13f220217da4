"""What a publish writes next, and what the replies make of it; the bus's own tests are the contract's."""

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from quantum_bus import streams
from quantum_bus.config import BusConfig
from quantum_bus.confirmation import ANSWER_MARGIN, ANSWER_SHARE, CHUNK, Confirmation
from quantum_bus.envelope import Event, prepare
from quantum_bus.errors import BackPressure, ConnectionLost, NotDurable, PublishError, PublishTimeout
from quantum_bus.receipt import Receipt
from quantum_bus.telemetry import Telemetry

CONFIG = BusConfig(url="redis://localhost/0", service="svc")
TELEMETRY = Telemetry(sampled=True, send_baggage=False, server=None)


def confirmation(count: int = 1, *, wait_replicas: int | None = None, **options: Any) -> Confirmation:
    events = [Event(n, stream="s", message_id=f"m-{n}", **options) for n in range(count)]
    outgoing = [prepare(event, max_payload_bytes=100) for event in events]
    with TELEMETRY.sending_many("s", outgoing) as sending:
        return Confirmation(outgoing, sending, CONFIG, wait_replicas=wait_replicas)


def names(confirming: Confirmation, left: float = 10.0) -> list[Any]:
    return [command[0] for command in confirming.commands(left)]


def test_a_plain_publish_is_a_plain_xadd() -> None:
    assert names(confirmation()) == ["XADD"]
    assert names(confirmation(2)) == ["XADD", "XADD"]


def test_the_first_script_of_several_is_sent_with_its_text() -> None:
    assert names(confirmation(dedupe=1)) == ["EVALSHA"]
    assert names(confirmation(3, dedupe=1)) == ["EVAL", "EVALSHA", "EVALSHA"]


def test_in_front_of_a_wait_every_script_is_sent_with_its_text() -> None:
    assert names(confirmation(2, dedupe=1, wait_replicas=1)) == ["EVAL", "EVAL", "WAIT"]


@pytest.mark.parametrize(
    ("left", "count", "milliseconds"),
    [
        (10.0, 1, int((10 - ANSWER_MARGIN) * 1000)),
        (1.0, 1, int((1 - ANSWER_SHARE) * 1000)),
        (10.0, CHUNK + 1, int((5 - ANSWER_MARGIN) * 1000)),
        (0.0001, 1, 1),  # 0 would be for ever
        (-1.0, 1, 1),
    ],
)
def test_replicas_have_what_is_left_less_the_way_back_shared_by_the_requests(
    left: float, count: int, milliseconds: int
) -> None:
    assert confirmation(count, wait_replicas=2).commands(left)[-1] == ("WAIT", 2, milliseconds)


def test_enough_replicas_make_a_receipt_and_too_few_do_not() -> None:
    for told, kind in ((2, Receipt), (3, Receipt), (1, NotDurable), (0, NotDurable)):
        confirming = confirmation(wait_replicas=2)
        confirming.answered([b"1-0", told])
        assert not confirming.unfinished
        [result] = confirming.results()
        assert type(result) is kind
        if isinstance(result, NotDurable):
            assert (result.receipt.id, result.wanted, result.confirmed) == ("1-0", 2, told)


def test_a_wait_that_is_refused_confirms_nothing_and_says_why() -> None:
    confirming = confirmation(wait_replicas=1)
    refusal = ResponseError("NOPERM this user has no permissions to run 'wait'")
    confirming.answered([b"1-0", refusal])
    [result] = confirming.results()
    assert isinstance(result, NotDurable)
    assert result.__cause__ is refusal


@pytest.mark.parametrize("told", [ConnectionLost("gone"), ResponseError("UNBLOCKED the master is a replica now")])
def test_a_wait_without_an_answer_has_everything_written_again(told: Exception) -> None:
    confirming = confirmation(wait_replicas=1)
    assert confirming.answered([b"1-0", told]) > 0
    assert names(confirming) == ["XADD", "WAIT"]
    [result] = confirming.results()
    assert isinstance(result, NotDurable), "should the time be up now"
    assert result.__cause__ is told
    confirming.answered([b"2-0", 1])
    [result] = confirming.results()
    assert isinstance(result, Receipt)
    assert result.id == "2-0"


def test_what_is_known_to_be_stored_stays_so_when_it_is_refused_later() -> None:
    confirming = confirmation(wait_replicas=1)
    confirming.answered([b"1-0", ConnectionLost("gone")])
    confirming.answered([OutOfMemoryError("command not allowed"), 1])
    [result] = confirming.results()
    assert isinstance(result, NotDurable)
    assert result.receipt.id == "1-0"
    assert result.confirmed == 0


def test_refused_and_unanswered_ones_are_told_apart_from_those_not_durable() -> None:
    confirming = confirmation(3, wait_replicas=1)
    confirming.answered([b"1-0", OutOfMemoryError("command not allowed"), ConnectionLost("gone"), 0])
    assert [type(result) for result in confirming.results()] == [NotDurable, BackPressure, PublishTimeout]
    assert [command[0] for command in confirming.commands(1.0)] == ["XADD", "WAIT"]


READONLY = ReadOnlyError("You can't write against a read only replica.")
LOST = ConnectionLost("gone")


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ([READONLY], PublishError),
        ([READONLY, READONLY], PublishError),
        ([LOST, READONLY], PublishTimeout),
        ([READONLY, LOST], PublishTimeout),
        ([READONLY, LOST, READONLY], PublishTimeout),
        ([READONLY, None], PublishTimeout),  # the time is up while it is on its way
        ([None], PublishTimeout),
        ([], PublishTimeout),
        ([READONLY, OutOfMemoryError("command not allowed")], BackPressure),
        ([READONLY, b"1-0"], Receipt),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [True, False], ids=["no answer", "no reply"])
def test_only_what_each_try_has_refused_is_known_not_to_be_stored(told: list[Any], kind: type, whole: bool) -> None:
    confirming = confirmation()
    for reply in told:
        confirming.commands(1.0)
        if reply is LOST and whole:
            confirming.lost(LOST)
        elif reply is not None:
            confirming.answered([reply])
    [result] = confirming.results()
    assert type(result) is kind


def test_of_many_each_is_known_by_its_own_replies() -> None:
    confirming = confirmation(3)
    confirming.commands(1.0)
    confirming.answered([READONLY, LOST, b"1-0"])
    assert [type(result) for result in confirming.results()] == [PublishError, PublishTimeout, Receipt]
    assert not confirming.gives_up(0.0, 5.0), "one may still be confirmed"


def test_a_try_is_left_out_only_where_its_answer_may_come_too_late() -> None:
    confirming = confirmation()
    confirming.commands(1.0)
    confirming.answered([READONLY])
    assert [confirming.gives_up(left, 5.0) for left in (ANSWER_MARGIN, ANSWER_MARGIN / 2)] == [False, True]
    assert [confirming.gives_up(left, 1.0) for left in (ANSWER_SHARE, ANSWER_SHARE / 2)] == [False, True]


def test_a_receipt_of_an_earlier_publish_names_its_flow() -> None:
    confirming = confirmation(dedupe=1)
    confirming.answered([b"1-0 first-flow"])
    [result] = confirming.results()
    assert isinstance(result, Receipt)
    assert (result.id, result.correlation_id) == ("1-0", "first-flow")


def test_wait_never_waits_for_ever() -> None:
    assert streams.wait(1, 0.0) == ("WAIT", 1, 1)
    assert streams.wait(3, 1.5) == ("WAIT", 3, 1500)


def test_a_refusal_behind_a_lost_reply_leaves_it_open_whether_the_message_is_stored() -> None:
    """Of two, only that one: what was refused at its first try is not stored."""
    refused = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
    confirming = confirmation(2)
    confirming.answered([refused, ConnectionLost("broke")])
    confirming.answered([refused])
    first, second = confirming.results()
    assert isinstance(first, BackPressure)
    assert isinstance(second, PublishTimeout)
    assert "may be stored" in str(second)
    confirming = confirmation()
    confirming.commands(1.0)
    confirming.lost(ConnectionLost("broke"))
    confirming.answered([refused])
    with pytest.raises(PublishTimeout, match="may be stored"):
        confirming.result()
