"""The tree of a flow, from whatever was seen of it: also from what hostile or half-gone entries say."""

import json
import random
from collections.abc import Sequence
from io import StringIO
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from quantum_bus.assembly import build
from quantum_bus.cli import trace_view
from quantum_bus.envelope import timestamp
from quantum_bus.flow import Flow, Hop, LogLine, Message, Outcome, log_line, walk
from quantum_bus.found import Found
from quantum_bus.sightings import Given, Place, Run, Sighting, Standing, in_retry_stream, in_stream, runs, scheduled
from quantum_bus.streams import retry_fields

T0 = 1_767_435_323_000


def fields(message_id: str, *, service: str = "shop", cause: str | None = None, at: float = 0.0, **more: str) -> Any:
    told = {
        "v": "1", "data": "{}", "message_id": message_id, "correlation_id": "flow", "service": service,
        "ts": timestamp(T0 / 1000 + at), **more,
    }  # fmt: skip
    if cause is not None:
        told["causation_id"] = cause
    return [part.encode() for pair in told.items() for part in pair]


def seen(message_id: str, number: int, *, stream: str = "s", at: float = 0.0, **more: Any) -> Sighting:
    return in_stream(stream, f"{T0 + int(at * 1000)}-{number}", fields(message_id, at=at, **more))


def run(
    entry: Sighting, *, group: str, at: float, duration: float = 0.01, outcome: str = "ack", attempt: int = 1
) -> Run:
    return Run(
        stream=entry.stream, entry_id=entry.entry_id, message_id=entry.message.message_id, correlation_id="flow",
        group=group, service=group, consumer="c", started=T0 / 1000 + at, duration=duration, attempt=attempt,
        outcome=outcome, noted_ms=T0 + int((at + duration) * 1000),
    )  # fmt: skip


def shape(hop: Hop) -> Any:
    return [
        (step.message_id, [(below.service, shape(below)) for below in step.hops])
        if isinstance(step, Message)
        else step.event
        for step in hop.steps
    ]


def test_messages_hang_under_the_handling_that_published_them() -> None:
    first = seen("m-1", 0, service="gate")
    second = seen("m-2", 1, service="shop", cause="m-1", at=0.015, stream="t")
    third = seen("m-3", 2, service="risk", cause="m-1", at=0.016, stream="u")
    flow = build(
        [third, second, first],
        [run(first, group="shop", at=0.01), run(first, group="risk", at=0.012), run(second, group="pay", at=0.02)],
        lines=[LogLine(T0 / 1000 + 0.014, "shop", "INFO", "LOG", "at work"), LogLine(0.0, "stranger", "", "LOG", "?")],
    )
    stranger, root = flow.roots
    assert (stranger.service, shape(stranger)) == ("stranger", ["LOG"])
    assert shape(root) == [
        ("m-1", [("shop", ["LOG", ("m-2", [("pay", [])])]), ("risk", [("m-3", [])])]),
    ]
    assert flow.outcome is Outcome.HANDLED
    assert [message.message_id for message in flow.messages] == ["m-1", "m-2", "m-3"]


def test_of_two_runs_the_one_that_was_at_work_has_the_line_and_the_message() -> None:
    one, two = seen("m-1", 0, service="gate"), seen("m-2", 1, service="gate", at=5.0)
    made = seen("m-3", 2, service="shop", cause="m-2", at=5.02)
    flow = build(
        [one, two, made],
        [run(one, group="shop", at=0.01), run(two, group="shop", at=5.01, duration=0.1)],
        lines=[LogLine(T0 / 1000 + 5.05, "shop", "", "LATE", ""), LogLine(T0 / 1000 + 0.012, "shop", "", "EARLY", "")],
    )
    [root] = flow.roots
    assert shape(root) == [("m-1", [("shop", ["EARLY"])]), ("m-2", [("shop", [("m-3", []), "LATE"])])]


@pytest.mark.parametrize(
    ("outcomes", "given_", "expected"),
    [
        (["ack"], None, Outcome.HANDLED),
        (["skip"], None, Outcome.SKIPPED),
        (["retry", "ack"], None, Outcome.HANDLED),
        (["retry"], None, Outcome.RETRYING),
        (["retry"], Given.PENDING, Outcome.RETRYING),
        (["dead_letter"], None, Outcome.DEAD),
        ([], Given.PENDING, Outcome.PENDING),
        ([], Given.WAITING, Outcome.WAITING),
        ([], Given.PAST, Outcome.UNKNOWN),
    ],
)
def test_what_became_of_a_message(outcomes: Sequence[str], given_: Given | None, expected: Outcome) -> None:
    entry = seen("m-1", 0)
    told = [run(entry, group="g", at=0.1 * n, outcome=o, attempt=n + 1) for n, o in enumerate(outcomes)]
    standings = [Standing("s", entry.entry_id, "g", given_, "c", 1.0)] if given_ else []
    flow = build([entry], told, standings)
    [hop] = flow.messages[0].hops
    assert hop.outcome is expected
    assert flow.outcome is expected


def test_what_waits_for_a_retry_says_until_when_and_a_delayed_message_too() -> None:
    entry = seen("m-1", 0)
    own = [*fields("m-1"), *(part.encode() for part in retry_fields(entry.entry_id, 2, "", ""))]
    packed = b"".join(b"%d:%s" % (len(part), part) for part in own)
    waits = scheduled("s", "g", entry.entry_id, packed, T0 + 60_000)
    delayed = scheduled("s", None, "m-9", b"".join(b"%d:%s" % (len(p), p) for p in fields("m-9")), T0 + 90_000)
    assert waits is not None
    assert delayed is not None
    ready = in_retry_stream("s", "g", "{s}:retry:g", f"{T0}-5", own)
    assert ready is not None
    assert (ready.entry_id, ready.attempts) == (entry.entry_id, 2)
    flow = build([entry, waits, delayed])
    hop = flow.messages[0].hops[0]
    assert (hop.outcome, hop.due) == (Outcome.RETRYING, T0 / 1000 + 60)
    assert [(message.entry_id, message.due) for message in flow.messages][1:] == [("", T0 / 1000 + 90)]


def test_records_that_outlived_their_entries_still_tell_the_flow() -> None:
    value = json.dumps(
        {"message_id": "m-1", "correlation_id": "flow", "started": timestamp(T0 / 1000), "duration": 0.5,
         "attempt": 1, "outcome": "ack"}
    ).encode()  # fmt: skip
    head = [b"group", b"g", b"service", b"svc", b"consumer", b"c"]
    told = list(runs("s", f"{T0}-0", [*head, b"1-1", value, b"1-2", b"{}", b"x", b"\xff", b"1-3", b'{"a":1}']))
    assert [(found.entry_id, found.service, found.outcome) for found in told] == [("1-1", "svc", "ack")]
    assert not list(runs("s", f"{T0}-0", [*head, b"1-1", value], [b"another"]))
    [message] = build([], told).messages
    assert message.incoming is None
    assert [(hop.service, hop.outcome) for hop in message.hops] == [("svc", Outcome.HANDLED)]


def test_log_lines_without_a_time_are_none_and_errors_show() -> None:
    assert log_line({"ts": "yesterday"}) is None
    assert log_line({"ts": "2026-01-03T10:15:23"}) is None, "of no zone"
    line = log_line({"ts": timestamp(1.0), "msg": "no", "exc_type": "ValueError", "exc_message": "bad"})
    assert line is not None
    assert line.text == "no: ValueError: bad"


def test_a_chain_of_thousands_is_built_and_drawn() -> None:
    chain = [seen("m-0", 0)] + [seen(f"m-{n}", n, cause=f"m-{n - 1}", at=n / 1000) for n in range(1, 1_500)]
    flow = build(chain, [run(entry, group="shop", at=n / 1000) for n, entry in enumerate(chain)])
    assert len(flow.messages) == 1_500
    assert max(depth for depth, _ in walk(flow.roots)) == 1_500
    assert draw(flow).count("→ s") == 1_500


IDS = st.sampled_from(["m-1", "m-2", "m-3", "m-4"])
TIMES = st.one_of(st.integers(0, 10_000), st.sampled_from([-(10**14), 10**16, -T0]))


@st.composite
def facts(drawn: st.DrawFn) -> tuple[list[Sighting], list[Run], list[Standing], list[LogLine]]:
    count = drawn(st.integers(0, 8))
    sightings = []
    for number in range(count):
        at = drawn(TIMES)
        entry_id = f"{max(0, T0 + at)}-{drawn(st.integers(0, 2))}"
        own = fields(
            drawn(IDS), service=drawn(st.sampled_from(["a", "b", ""])), cause=drawn(st.none() | IDS),
            **({"ts": drawn(st.sampled_from(["", "never", "9999-12-31T23:59:59Z", "2026-01-03T10:15:23.5+99:00"]))}
               if drawn(st.booleans()) else {}),
        )  # fmt: skip
        place = drawn(st.sampled_from(list(Place)))
        plain = in_stream(drawn(st.sampled_from(["s", "t"])), entry_id, own)
        if place in (Place.STREAM, Place.DELAYED):
            sightings.append(
                plain if place is Place.STREAM else Sighting(place, plain.stream, "", T0 + number, plain.message)
            )
        elif place is not Place.DEAD:
            sightings.append(
                Sighting(place, plain.stream, entry_id, T0 + at, plain.message, drawn(st.sampled_from("gh")))
            )
    told = [
        run(
            drawn(st.sampled_from([s for s in sightings if s.entry_id] or [seen("m-1", 0)])),
            group=drawn(st.sampled_from("abg")),
            at=drawn(TIMES) / 1000, outcome=drawn(st.sampled_from(["ack", "retry", "skip", "dead_letter"])),
            attempt=drawn(st.integers(0, 4)),
        )
        for _ in range(drawn(st.integers(0, 6)))
    ]  # fmt: skip
    standings = [
        Standing(entry.stream, entry.entry_id, "g", drawn(st.sampled_from(list(Given))), "c", 0.5)
        for entry in sightings
    ]
    lines = [
        LogLine(T0 / 1000 + drawn(TIMES), drawn(st.sampled_from("abz")), "INFO", "LOG", "x")
        for _ in range(drawn(st.integers(0, 4)))
    ]
    return sightings, told, standings, lines


def draw(flow: Flow) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(trace_view.summary(flow))
    console.print(trace_view.tree(flow, T0 / 1000))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def nothing_found() -> Found:
    return Found(0.0, ["flow"], (), (), (), (), False, 0, False, False, (), ())


@settings(max_examples=150, deadline=None)
@given(facts(), st.randoms(use_true_random=False))
def test_whatever_is_seen_every_message_and_line_is_in_the_tree_once_and_can_be_shown(
    told: tuple[list[Sighting], list[Run], list[Standing], list[LogLine]], order: random.Random
) -> None:
    sightings, noted, standings, lines = told
    flow = build(sightings, noted, standings, lines)
    steps = [step for _, hop in walk(flow.roots) for step in hop.steps]
    messages = [step for step in steps if isinstance(step, Message)]
    assert len({id(message) for message in messages}) == len(messages) == len(flow.messages)
    assert {(m.stream, m.entry_id) for m in messages} >= {(r.stream, r.entry_id) for r in noted}
    assert sum(isinstance(step, LogLine) for step in steps) == len(lines)
    text = draw(flow)
    assert text.count("→ ") == len(messages)
    orjson.loads(orjson.dumps(trace_view.as_object("flow", flow, nothing_found(), everything=False)))
    told_of = [fact["kind"] for fact in trace_view.facts(flow)]
    assert (told_of.count("message"), told_of.count("log")) == (len(messages), len(lines))
    shuffled = sightings[:]
    order.shuffle(shuffled)
    again = build(shuffled, noted, standings, lines)
    assert sorted((m.stream, m.entry_id) for m in again.messages) == sorted(
        (m.stream, m.entry_id) for m in flow.messages
    )
