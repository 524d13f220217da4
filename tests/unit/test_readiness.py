"""Alive and ready: what counts, what does not, and how it is told."""

import json
from dataclasses import replace
from typing import Any

import pytest

from quantum_bus import Health, SubscriberHealth, names
from quantum_bus.config import State
from quantum_bus.readiness import METHOD_NOT_ALLOWED, NOT_FOUND, STATES, answer, no_such_method, no_such_path

READS = SubscriberHealth(streams=("orders",), group="shop", since=1.0, longest=9.0)
WELL = Health(service="shop", state=names.HEALTH_RUNNING, redis="redis://***@localhost", subscribers=(READS,))


def subscriber(**changes: Any) -> Health:
    return replace(WELL, subscribers=(READS, replace(READS, streams=("refunds",), **changes)))


def told(path: str, health: Health) -> tuple[int, dict[str, Any]]:
    given = answer(path, health)
    assert dict(given.headers)["content-length"] == str(len(given.body))
    return given.status, json.loads(given.body)


def test_a_bus_whose_subscribers_read_is_live_and_ready() -> None:
    assert told(names.PATH_LIVE, WELL) == (200, {"live": True, "service": "shop", "state": "running", "faults": []})
    status, body = told(names.PATH_READY, WELL)
    assert (status, body["ready"], body["faults"]) == (200, True, [])
    assert body["subscribers"] == [{"streams": ["orders"], "group": "shop", "doing": "reading", "fault": None}]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"begun": False}, "it has not begun to read"),
        ({"since": None}, "it has not begun to read"),
        ({"failures": 3}, "its reads fail: 3 in a row"),
        ({"since": 9.5}, "its reader has done nothing for 10 s"),
        ({"ended": ("reader", "writer")}, "its reader and writer ended"),
    ],
)
def test_a_subscriber_that_does_not_read_makes_the_service_unready_and_is_named(
    changes: dict[str, Any], fault: str
) -> None:
    status, body = told(names.PATH_READY, subscriber(**changes))
    assert (status, body["ready"]) == (503, False)
    assert body["faults"] == [f"refunds / shop: {fault}"]
    assert [each["doing"] for each in body["subscribers"]] == ["reading", "nothing"]


@pytest.mark.parametrize(
    ("intent", "doing"),
    [("full", "full"), ("paused", "paused"), ("breaker_open", "breaker open"), ("standing_by", "standing by")],
)
def test_a_subscriber_that_does_not_read_by_intent_is_ready_and_says_so(intent: str, doing: str) -> None:
    """However long ago it last read, and whatever became of that."""
    health = subscriber(since=1000.0, failures=2, **{intent: True})
    assert health.ready
    assert told(names.PATH_READY, health)[1]["subscribers"][1]["doing"] == doing
    assert subscriber(since=None, **{intent: True}).ready
    assert not subscriber(begun=False, **{intent: True}).ready
    assert not subscriber(ended=("reader",), **{intent: True}).ready


@pytest.mark.parametrize("state", [names.HEALTH_STARTING, names.HEALTH_DRAINING, names.HEALTH_STOPPED])
def test_a_bus_that_starts_or_stops_is_live_and_not_ready(state: str) -> None:
    health = replace(WELL, state=state)
    assert (health.live, health.ready) == (True, False)
    assert health.faults == (f"the bus is {state}",)


def test_redis_decides_about_ready_and_not_about_live() -> None:
    health = replace(WELL, redis_fault="Redis at redis://***@localhost cannot be reached")
    assert (health.live, health.ready) == (True, False)
    assert told(names.PATH_READY, health)[1]["faults"] == [health.redis_fault]
    assert told(names.PATH_LIVE, health) == told(names.PATH_LIVE, WELL)


@pytest.mark.parametrize(
    ("health", "fault"),
    [
        (replace(WELL, stalled="the event loop has not turned for 2 s"), "the event loop has not turned for 2 s"),
        (replace(WELL, ended=("heartbeat",)), "the heartbeat ended"),
        (subscriber(ended=("worker",)), "the worker ended"),
    ],
)
def test_what_only_a_new_start_mends_is_not_live(health: Health, fault: str) -> None:
    status, body = told(names.PATH_LIVE, health)
    assert (status, body["live"], body["faults"]) == (503, False, [fault])
    status, body = told(names.PATH_READY, health)
    assert (status, body["ready"]) == (503, False)
    assert body["faults"]


def test_every_state_of_a_bus_has_its_word() -> None:
    assert set(STATES) == set(State)


def test_other_paths_and_methods_are_told_what_there_is() -> None:
    assert (no_such_path().status, no_such_method().status) == (NOT_FOUND, METHOD_NOT_ALLOWED)
    assert dict(no_such_method().headers)["allow"] == "GET, HEAD"
    assert names.PATH_READY in no_such_path().body.decode()
