"""Replies as Redis gives them, without one; what real servers say is in the contract's tests."""

from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from quantum_bus import streams
from quantum_bus.errors import ConfigurationError
from quantum_bus.inquiry import answered
from quantum_bus.state import BusState, age, entry_id, id_text, observe
from quantum_bus.streams import Command

NOW = 1_795_000_000


class Replies:
    """A Redis of one stream `s` with one group `g`: each reply by the words its command begins with."""

    def __init__(self, **changed: Any) -> None:
        self.asked: list[str] = []
        self.replies: dict[str, Any] = {
            "TIME": [str(NOW).encode(), b"500000"],
            "TYPE s": b"stream",
            "XINFO STREAM s": [b"length", 9, b"first-entry", entry(-100), b"last-entry", entry(-1)],
            "XINFO GROUPS s": [[b"name", b"g", b"pending", 2, b"last-delivered-id", entry(-50)[0], b"lag", 4]],
            "XLEN {s}:dlq": 0,
            "ZCARD": 0,
            "ZCOUNT": 0,
            "ZRANGE": [],
            "XINFO CONSUMERS s": [[b"name", b"c", b"pending", 2, b"idle", 1500]],
            "XPENDING s": [[entry(-90)[0], b"c", 1500, 1]],
            "XRANGE s": [entry(-40)],
            "XLEN {s}:retry:g": 0,
            "XINFO GROUPS {s}:retry:g": [],
            "XINFO CONSUMERS {s}:retry:g": [],
            "XPENDING {s}:retry:g": [],
            "XRANGE {s}:retry:g": [],
            **{name.replace("__", " "): reply for name, reply in changed.items()},
        }

    def execute(self, *commands: Command) -> list[Any]:
        found = []
        for command in commands:
            text = " ".join(map(str, command))
            self.asked.append(text)
            [key] = [key for key in self.replies if text == key or text.startswith(f"{key} ")]
            found.append(self.replies[key])
        return found

    def state(self) -> BusState:
        return answered(observe(["s"]), self.execute)


def entry(seconds: float) -> list[Any]:
    return [f"{int((NOW + seconds) * 1000) + 500}-0".encode(), [b"n", b"1"]]


def as_maps(rows: list[list[Any]]) -> list[dict[Any, Any]]:
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]


def test_lists_are_read() -> None:
    state = Replies().state()
    [stream] = state.streams
    [group] = stream.groups
    assert state.now == NOW + 0.5
    assert (stream.length, stream.dead_letters, state.refused) == (9, 0, [])
    assert (group.lag, group.lag_age, group.pending, group.pending_age, group.pending_idle) == (4, 40, 2, 90, 1.5)
    assert group.oldest_pending == entry_id(entry(-90)[0])
    assert [(consumer.name, consumer.idle, consumer.pending) for consumer in group.consumers or ()] == [("c", 1.5, 2)]


def test_maps_are_read_as_lists_are() -> None:
    lists = Replies()
    maps = Replies()
    for key, reply in lists.replies.items():
        if key.startswith("XINFO STREAM"):
            maps.replies[key] = as_maps([reply])[0]
        elif key.startswith("XINFO"):
            maps.replies[key] = as_maps(reply)
    assert maps.state() == lists.state()


@pytest.mark.parametrize("value", [None, "absent"])
def test_a_lag_that_redis_does_not_know_is_counted_by_the_script(value: str | None) -> None:
    replies = Replies()
    [row] = replies.replies["XINFO GROUPS s"]
    row[-2:] = [b"lag", None] if value is None else []
    replies.replies[f"EVALSHA {streams.LAG.sha} 1 s"] = 3
    [stream] = replies.state().streams
    assert stream.groups[0].lag == 3


def test_a_script_that_is_refused_leaves_the_lag_out() -> None:
    replies = Replies()
    [row] = replies.replies["XINFO GROUPS s"]
    row[-1] = None
    replies.replies[f"EVALSHA {streams.LAG.sha} 1 s"] = NoPermissionError("no")
    state = replies.state()
    assert (state.streams[0].groups[0].lag, state.streams[0].groups[0].lag_age) == (None, 40)
    assert [refusal.command for refusal in state.refused] == ["EVALSHA"]


def test_a_group_that_has_everything_is_asked_about_no_further_entry() -> None:
    replies = Replies()
    replies.replies["XINFO GROUPS s"][0][5] = entry(-1)[0]
    [stream] = replies.state().streams
    assert (stream.groups[0].lag, stream.groups[0].lag_age) == (0, 0.0)
    assert not [text for text in replies.asked if text.startswith("XRANGE s ")]


def test_one_consumer_of_both_streams_is_one() -> None:
    replies = Replies(
        **{
            "XLEN {s}:retry:g": 3,
            "XINFO GROUPS {s}:retry:g": [[b"name", b"g", b"pending", 1, b"last-delivered-id", entry(-9)[0]]],
            "XINFO CONSUMERS {s}:retry:g": [[b"name", b"c", b"pending", 1, b"idle", 100]],
            "XPENDING {s}:retry:g": [[entry(-95)[0], b"c", 100, 1]],
            "XRANGE {s}:retry:g": [entry(-5)],
        }
    )
    [group] = replies.state().streams[0].groups
    assert (group.lag, group.lag_age, group.pending, group.pending_age, group.pending_idle) == (6, 40, 3, 95, 0.1)
    assert [(consumer.name, consumer.idle, consumer.pending) for consumer in group.consumers or ()] == [("c", 0.1, 3)]


@pytest.mark.parametrize(
    ("refused", "absent"),
    [
        ("XINFO STREAM s", {"lag", "lag_age"}),
        ("XINFO CONSUMERS s", {"consumers"}),
        ("XPENDING s", {"pending_age", "pending_idle", "oldest_pending"}),
        ("XRANGE s", {"lag_age"}),
        ("ZCARD", {"scheduled"}),
        ("XLEN {s}:retry:g", {"lag", "retries", "retry_group"}),
        ("XINFO GROUPS {s}:retry:g", {"lag", "pending", "retry_group"}),
        ("XRANGE {s}:retry:g", {"lag", "lag_age"}),
    ],
)
def test_what_is_refused_leaves_only_its_own_figures_out(refused: str, absent: set[str]) -> None:
    [group] = Replies(**{refused: NoPermissionError("no")}).state().streams[0].groups
    names = {name for name in type(group).__slots__ if getattr(group, name) is None}
    assert names - {"retry_group"} == absent - {"retry_group"}


def test_a_redis_that_does_not_tell_its_time_cannot_be_asked() -> None:
    with pytest.raises(ConfigurationError, match="TIME"):
        Replies(TIME=NoPermissionError("no")).state()


def test_ids_are_read_and_written() -> None:
    assert entry_id(b"12-3") == (12, 3)
    assert entry_id("12") == (12, 0)
    assert id_text((12, 3)) == "12-3"
    assert entry_id("9-1") < entry_id("10-0")


def test_an_age_is_never_below_zero_and_unknown_of_an_id_that_is_no_time() -> None:
    assert age((NOW * 1000, 0), NOW + 1.5) == 1.5
    assert age((NOW * 1000, 0), NOW - 10) == 0.0
    assert age((5, 0), NOW) is None
