"""`quantum-bus dlq` on a real Redis: what it shows, and what becomes of what it gives back."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from quantum_bus import Message, Reject, Retry
from quantum_bus.cli.app import app
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.entries import all_acked, stored
from tests.contract.recording import Recorder
from tests.contract.twins import Buses, blocking, settled

SPAN = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class Ended:
    code: int
    out: list[str]
    errors: list[str]

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out]


class Dlq:
    """The command, and the dead-letter stream that it is about."""

    def __init__(self, url: str, stream: str) -> None:
        self.url = url
        self.stream = stream
        self.key = f"{{{stream}}}:dlq"
        self.client = redis.Redis.from_url(url)

    def __call__(self, command: str, *arguments: str) -> Ended:
        ended = CliRunner().invoke(app, ["dlq", command, self.stream, "--url", self.url, *arguments])
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return Ended(ended.exit_code, ended.stdout.splitlines(), ended.stderr.splitlines())

    def bury(self, number: int = 1, *, letter_id: str = "*", own: tuple[Any, ...] = (), **said: Any) -> str:
        """A dead letter, as dead_letter.lua writes one; its id."""
        fields = own or (
            "v", "1", "data", json.dumps({"n": number}), "event", said.pop("event", "E"), "message_id", f"m-{number}",
            "correlation_id", said.pop("correlation_id", f"flow-{number}"), "traceparent", TRACEPARENT,
        )  # fmt: skip
        values = {
            "stream": self.stream, "id": f"{number}-0", "group": "g", "consumer": "c", "attempts": "3",
            "reason": "max_attempts", "error_type": "ValueError", "error_message": "no", "stack": "Traceback\n  here",
            "first_failed_at": "2026-01-03T10:15:23.456789Z", "last_failed_at": "2026-01-03T10:15:24.456789Z",
            "span": SPAN,
        } | said  # fmt: skip
        dlq = [part for name, value in values.items() for part in (f"dlq.{name}", value)]
        made: Any = self.client.execute_command("XADD", self.key, letter_id, *fields, *dlq)
        return str(made.decode())

    def group(self, name: str = "g", key: str = "") -> None:
        self.client.xgroup_create(key or self.stream, name, "0", mkstream=True)

    def raw(self, key: str) -> list[tuple[str, list[bytes]]]:
        found: Any = self.client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, key)
        return [(entry_id.decode(), values) for entry_id, values in found]

    @property
    def ids(self) -> list[str]:
        return [entry_id for entry_id, _ in self.raw(self.key)]

    @property
    def retry_key(self) -> str:
        return f"{{{self.stream}}}:retry:g"


@pytest.fixture
def dlq_of(real_backend: Backend, stream: str) -> Iterator[Dlq]:
    assert real_backend.url is not None
    made = Dlq(real_backend.url, stream)
    yield made
    made.client.close()


# --- with a bus ----------------------------------------------------------------------------------


@dataclass
class Groups:
    """Two groups on one stream; `g` fails until it is mended."""

    seen: list[tuple[str, int, str, str, int, dict[str, str]]] = field(default_factory=list)
    mended: bool = False

    def of(self, group: str) -> list[tuple[int, str]]:
        return [(attempt, correlation_id) for name, attempt, correlation_id, *_ in self.seen if name == group]


def two_groups(bus: Any, stream: str, *, term: bool = False) -> Groups:
    groups = Groups()

    def note(message: Message) -> None:
        assert message.group is not None
        groups.seen.append(
            (message.group, message.attempt, message.correlation_id, message.message_id, len(message.raw),
             dict(message.extra))
        )  # fmt: skip

    @bus.subscriber(stream, group="g", retry=Retry(max_attempts=2, initial=0))
    async def failing(message: Message) -> None:
        note(message)
        if not groups.mended:
            if term:
                await settled(message.term("no"))
                return
            raise ValueError("not yet")

    @bus.subscriber(stream, group="other")
    async def fine(message: Message) -> None:
        note(message)

    return groups


def ids_of(traceparent: str) -> tuple[int, int]:
    _, trace_id, span_id, _ = traceparent.split("-")
    return int(trace_id, 16), int(span_id, 16)


@pytest.mark.parametrize("foreign", [False, True])
async def test_a_replay_runs_only_the_failing_groups_handler_again_in_its_flow_and_linked_to_the_failing_run(
    buses: Buses, dlq_of: Dlq, recorder: Recorder, redis_client: Any, stream: str, foreign: bool
) -> None:
    bus = buses(**recorder.options)
    groups = two_groups(bus, stream)
    if foreign:
        await redis_client.xadd(stream, {"symbol": "BTC"})
    else:
        await bus.publish(stream, {"n": 1}, event="E", headers={"tenant": "eu"})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
        await eventually(lambda: len(groups.of("other")) == 1)
        before = list(groups.seen)
        groups.mended = True
        ended = await blocking(dlq_of, "replay", "--all")
        assert (ended.code, ended.errors) == (0, [])
        assert ended.out == [f"replayed 1 dead letter: 1 → {dlq_of.retry_key}"]
        await eventually(lambda: len(groups.of("g")) == 3)
        await eventually(lambda: all_acked(redis_client, stream, "g"))
    assert len(groups.of("other")) == 1, "the group that had handled it is not given it again"
    *_, last = groups.seen
    assert last[:3] == ("g", 1, before[0][2]), "attempts count from 1 again, in the same flow"
    assert {seen[2:] for seen in map(_hashable, groups.seen)} == {_hashable(last)[2:]}, "it is the same message"
    runs = [span for span in recorder.named(f"process {stream}") if _group(span) == "g"]
    assert len(runs) == 3
    assert len({span.context.trace_id for span in runs}) == 1, "in its trace"
    links = [(link.context.trace_id, link.context.span_id) for link in runs[2].links]
    failing = (runs[1].context.trace_id, runs[1].context.span_id)
    assert failing in links
    assert ids_of(dead["dlq.span"]) == failing
    assert not dlq_of.ids


def _hashable(seen: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*seen[:-1], tuple(seen[-1].items()))


def _group(span: Any) -> Any:
    return span.attributes["messaging.consumer.group.name"]


@pytest.mark.parametrize("foreign", [False, True])
async def test_a_replay_to_the_stream_runs_every_groups_handler_in_its_flow_and_linked_to_the_failing_run(
    buses: Buses, dlq_of: Dlq, recorder: Recorder, redis_client: Any, stream: str, foreign: bool
) -> None:
    """Without `replay.id` the ids that a foreign entry lacks were derived anew, and it was in another flow."""
    bus = buses(**recorder.options)
    groups = two_groups(bus, stream)
    if foreign:
        await redis_client.xadd(stream, {"symbol": "BTC"})
    else:
        await bus.publish(stream, {"n": 1}, event="E", headers={"tenant": "eu"})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
        await eventually(lambda: len(groups.of("other")) == 1)
        groups.mended = True
        ended = await blocking(dlq_of, "replay", "--to", "stream", dead.id)
        assert (ended.code, ended.out) == (0, [f"replayed 1 dead letter: 1 → {stream}"])
        await eventually(lambda: len(groups.of("g")) == 3)
        await eventually(lambda: len(groups.of("other")) == 2)
        await eventually(lambda: all_acked(redis_client, stream, "g"))
    flow = groups.seen[0][2]
    assert (groups.of("g")[2], groups.of("other")[1]) == ((1, flow), (1, flow))
    assert len({seen[2:] for seen in map(_hashable, groups.seen)}) == 1, "nothing of the replay shows in the message"
    spans = recorder.named(f"process {stream}")
    assert len({span.context.trace_id for span in spans}) == 1
    failing = ids_of(dead["dlq.span"])
    for group in ("g", "other"):
        last = [span for span in spans if _group(span) == group][-1]
        assert failing in [(link.context.trace_id, link.context.span_id) for link in last.links]
    [original, again] = await stored(redis_client, stream)
    assert again.pairs[: len(original.pairs)] == original.pairs
    assert again.names[len(original.pairs) :] == ["replay.id", "replay.span"]
    assert again["replay.id"] == original.id


async def test_what_is_dead_lettered_and_replayed_over_and_over_stays_one_message(
    buses: Buses, dlq_of: Dlq, redis_client: Any, stream: str
) -> None:
    bus = buses()
    groups = two_groups(bus, stream)
    await redis_client.xadd(stream, {"symbol": "BTC"})
    async with bus:
        for round_number, to in enumerate(("stream", "group", "stream", "stream"), 1):
            [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
            await eventually(lambda: all_acked(redis_client, stream, "other"))
            groups.mended = round_number == 4
            ended = await blocking(dlq_of, "replay", "--to", to, dead.id)
            assert ended.code == 0
        await eventually(lambda: len(groups.of("g")) == 9)
        await eventually(lambda: all_acked(redis_client, stream, "g"))
        await eventually(lambda: all_acked(redis_client, stream, "other"))
    assert len({seen[2:] for seen in map(_hashable, groups.seen)}) == 1
    assert [attempt for attempt, _ in groups.of("g")] == [1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert [entry.names for entry in await stored(redis_client, stream)][-1] == ["symbol", "replay.id", "replay.span"]


async def test_a_group_that_handles_each_id_once_handles_the_replayed_one(
    buses: Buses, dlq_of: Dlq, redis_client: Any, stream: str
) -> None:
    """Its dead letter was not handled: the id is free again, for its group; another that had handled it skips it."""
    bus = buses()
    seen: list[tuple[str | None, int]] = []

    @bus.subscriber(stream, group="g", retry=Retry(max_attempts=1), idempotent=600)
    async def failing_once(message: Message) -> None:
        seen.append((message.group, message.attempt))
        if seen.count(("g", 1)) < 3:
            raise ValueError("not yet")

    @bus.subscriber(stream, group="other", idempotent=600)
    async def fine(message: Message) -> None:
        seen.append((message.group, message.attempt))

    await bus.publish(stream, {}, message_id="m-1")
    async with bus:
        for to in ("group", "stream"):
            await eventually(lambda: len(dlq_of.ids) == 1)
            await eventually(lambda: all_acked(redis_client, stream, "other"))
            ended = await blocking(dlq_of, "replay", "--all", "--to", to)
            assert ended.code == 0
        await eventually(lambda: seen.count(("g", 1)) == 3)
        await eventually(lambda: all_acked(redis_client, stream, "g"))
        await eventually(lambda: all_acked(redis_client, stream, "other"))
    assert seen.count(("other", 1)) == 1
    assert not dlq_of.ids


async def test_the_span_of_a_run_that_its_handler_ended_by_hand_is_kept_too(
    buses: Buses, dlq_of: Dlq, recorder: Recorder, redis_client: Any, stream: str
) -> None:
    """While the run's span was noted at its end only, a dead letter by `term` named none."""
    bus = buses(**recorder.options)
    two_groups(bus, stream, term=True)
    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
    [run] = [span for span in recorder.named(f"process {stream}") if _group(span) == "g"]
    assert ids_of(dead["dlq.span"]) == (run.context.trace_id, run.context.span_id)


async def test_what_reached_no_handler_names_no_span_and_can_be_replayed(
    buses: Buses, dlq_of: Dlq, redis_client: Any, stream: str
) -> None:
    bus = buses()

    @bus.subscriber(stream, group="g")
    async def handle(number: int) -> None:
        raise Reject

    await redis_client.xadd(stream, {"v": "1", "data": "{half"})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
        assert dead["dlq.span"] == ""
        ended = await blocking(dlq_of, "replay", dead.id)
        assert ended.code == 0
        [again] = await eventually(lambda: stored(redis_client, dlq_of.key))
    assert again.pairs[:2] == dead.pairs[:2]
    assert again["dlq.id"] == dead["dlq.id"]


# --- list and show -------------------------------------------------------------------------------


def test_a_list_has_one_row_a_dead_letter(dlq_of: Dlq) -> None:
    first = dlq_of.bury(1, event="ORDER", error_message="no\nsuch\x1b[2J symbol" + "x" * 500)
    second = dlq_of.bury(2, reason="rejected")
    ended = dlq_of("list")
    header, *rows = ended.out
    assert (ended.code, len(rows)) == (0, 2)
    assert header.split() == ["id", "when", "event", "correlation", "id", "group", "runs", "reason", "error"]
    assert rows[0].split()[0] == first
    assert rows[0].split()[2:7] == ["ORDER", "flow-1", "g", "3", "max_attempts"]
    assert r"ValueError: no\nsuch\u001b[2J symbolx" in rows[0]
    assert len(rows[0]) < 250
    assert rows[1].split()[0] == second


def test_of_many_the_first_are_listed_and_the_others_counted(dlq_of: Dlq) -> None:
    made = [dlq_of.bury(number) for number in range(130)]
    ended = dlq_of("list")
    assert [row.split()[0] for row in ended.out[1:-1]] == made[:50]
    assert ended.out[-1].startswith("and 80 more")
    assert len(dlq_of("list", "--limit", "120").out) == 121
    assert [item["id"] for item in dlq_of("list", "--json").objects] == made


def test_no_dead_letters_are_said_to_be_none(dlq_of: Dlq) -> None:
    assert dlq_of("list").out == [f"no dead letters in {dlq_of.key}"]
    dlq_of.bury()
    assert dlq_of("list", "--event", "none").out == [f"no dead letters that match in {dlq_of.key}"]
    assert dlq_of("list", "--event", "none", "--json").out == []


def test_a_prefix_stands_before_the_streams_name(dlq_of: Dlq) -> None:
    made = dlq_of.bury()
    prefix, name = dlq_of.stream[:10], dlq_of.stream[10:]
    ended = CliRunner().invoke(app, ["dlq", "list", name, "--prefix", prefix, "--url", dlq_of.url, "--json"])
    assert json.loads(ended.stdout)["id"] == made


FILTERS: list[tuple[list[str], set[int]]] = [
    ([], {1, 2, 3, 4}),
    (["--event", "A"], {1, 2}),
    (["--correlation-id", "flow-3"], {3}),
    (["--group", "h"], {2}),
    (["--reason", "rejected"], {3}),
    (["--error", "timeout"], {4}),
    (["--error", "KEYERROR"], {1}),
    (["--older-than", "1h"], {1, 2}),
    (["--newer-than", "90m"], {2, 3, 4}),
    (["--older-than", "30m", "--newer-than", "90m"], {2}),
    (["--older-than", "3h"], set()),
    (["--event", "A", "--group", "h"], {2}),
    (["--limit", "1", "--event", "A"], {1}),
]


def several(dlq_of: Dlq) -> dict[str, int]:
    now: Any = dlq_of.client.time()
    ids = [f"{(now[0] - seconds) * 1000}-0" for seconds in (7200, 4000, 60, 50)]
    dlq_of.bury(1, letter_id=ids[0], event="A", error_type="KeyError")
    dlq_of.bury(2, letter_id=ids[1], event="A", group="h")
    dlq_of.bury(3, letter_id=ids[2], event="B", reason="rejected")
    dlq_of.bury(4, letter_id=ids[3], event="B", error_message="read Timeout")
    return {letter_id: number for number, letter_id in enumerate(ids, 1)}


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters_choose(dlq_of: Dlq, filters: list[str], expected: set[int]) -> None:
    numbers = several(dlq_of)
    assert {numbers[item["id"]] for item in dlq_of("list", "--json", *filters).objects} == expected


def test_all_of_one_dead_letter_is_shown(dlq_of: Dlq) -> None:
    own = (
        "v", "1", "data", '{"symbol":"BTC","note":"\\u202e \\"q\\""}', "h.tenant", "eu", "x", "1", "x", b"\xff\x1b[2J",
        "correlation_id", "flow-9", "traceparent", TRACEPARENT,
    )  # fmt: skip
    made = dlq_of.bury(own=own)
    ended = dlq_of("show", made)
    text = "\n".join(ended.out)
    assert ended.code == 0
    for part in (made, "flow-9", TRACEPARENT, SPAN, "tenant: eu", "ValueError: no", "Traceback", "max_attempts"):
        assert part in text
    assert '  "symbol": "BTC",' in text
    assert '"note": "\\u202e \\"q\\""' in text
    assert "  x: 1" in text
    assert "  x: \\\\xff\\u001b[2J" in text
    assert "\x1b" not in text
    [found] = dlq_of("show", made, "--json").objects
    assert found["fields"][3:5] == [["x", "1"], ["x", "\\xff\x1b[2J"]]
    assert (found["data"]["symbol"], found["stack"], found["span"]) == ("BTC", "Traceback\n  here", SPAN)


def test_an_entry_of_anybodys_is_shown_too(dlq_of: Dlq) -> None:
    deep = "[" * 400 + "\n1" + "]" * 400
    for fields in ({"a": "b"}, {"v": "1", "data": "{half\x1b"}, {"v": "1", "data": deep}, {"dlq.attempts": "x"}):
        made: Any = dlq_of.client.xadd(dlq_of.key, fields)
        assert dlq_of("show", made.decode()).code == 0
        assert dlq_of("show", made.decode(), "--json").code == 0
    dlq_of.client.xadd(dlq_of.key, {"a": "b"}, id="18446744073709551615-1")
    assert len(dlq_of("list", "--json").out) == 5
    assert len(dlq_of("list").out) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "1-0"], 1, "1-0: there is no such dead letter in"),
        (["show", "1"], 2, "'1' is no dead letter's id"),
        (["list", "--older-than", "5"], 2, "'5' is no duration"),
        (["replay"], 2, "nothing says which to replay"),
        (["replay", "--limit", "1"], 2, "nothing says which to replay"),
        (["replay", "1-0", "--all"], 2, "either ids or --all"),
        (["replay", "x"], 2, "'x' is no dead letter's id"),
        (["purge"], 2, "nothing says which to purge"),
    ],
)
def test_a_wrong_call_changes_nothing(dlq_of: Dlq, arguments: list[str], code: int, says: str) -> None:
    dlq_of.bury()
    before = dlq_of.raw(dlq_of.key)
    ended = dlq_of(arguments[0], *arguments[1:])
    assert (ended.code, len(ended.errors)) == (code, 1)
    assert says in ended.errors[0]
    assert dlq_of.raw(dlq_of.key) == before


def test_a_reader_that_has_seen_enough_is_no_error(dlq_of: Dlq) -> None:
    """While an OSError counted as Redis's, `| head` ended in a line that said Redis was away."""
    for number in range(300):
        dlq_of.bury(number)
    command = [sys.executable, "-m", "quantum_bus", "dlq", "list", dlq_of.stream, "--json", "--url", dlq_of.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith('{"id":')
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 1


# --- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["group", "stream"])
def test_fields_go_back_byte_for_byte(dlq_of: Dlq, to: str) -> None:
    dlq_of.group()
    own = (b"v", b"1", b"data", b"{}", b"x", b"1", b"x", b"2", b"\xff\x00", b"\r\n", b"", b"")
    dlq_of.bury(own=own)
    assert dlq_of("replay", "--all", "--to", to).code == 0
    [(_, values)] = dlq_of.raw(dlq_of.retry_key if to == "group" else dlq_of.stream)
    assert values[: len(own)] == list(own)
    assert not dlq_of.ids


@pytest.mark.parametrize(("filters", "expected"), [case for case in FILTERS if case[0]])
def test_only_what_the_filters_choose_is_replayed(dlq_of: Dlq, filters: list[str], expected: set[int]) -> None:
    numbers = several(dlq_of)
    dlq_of.group()
    dlq_of.group("h")
    assert dlq_of("replay", *filters).code == 0
    assert {numbers[letter_id] for letter_id in dlq_of.ids} == {1, 2, 3, 4} - expected
    h = f"{{{dlq_of.stream}}}:retry:h"
    back = {values[-7].decode() for key in (dlq_of.retry_key, h) for _, values in dlq_of.raw(key)}
    assert back == {f"{number}-0" for number in expected}


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(dlq_of: Dlq) -> None:
    dlq_of.group()
    made = [dlq_of.bury(1), dlq_of.bury(2, group="gone"), dlq_of.bury(3)]
    before = dlq_of.raw(dlq_of.key)
    ended = dlq_of("replay", "--all", "--dry-run")
    assert ended.out == [
        f"{made[0]} → {dlq_of.retry_key}",
        f"{made[2]} → {dlq_of.retry_key}",
        f"would replay 2 dead letters: 2 → {dlq_of.retry_key}; 1 left, see above",
    ]
    assert ended.code == 1
    assert made[1] in ended.errors[0]
    purged = dlq_of("purge", made[0], "--dry-run")
    assert (purged.code, purged.out) == (0, [made[0], "would delete 1 dead letter"])
    assert dlq_of.raw(dlq_of.key) == before
    assert not dlq_of.client.exists(dlq_of.retry_key)


def test_a_group_that_is_not_there_any_more_is_said_and_gets_nothing_unless_forced(dlq_of: Dlq) -> None:
    dlq_of.group()
    kept = dlq_of.bury(1, group="gone")
    dlq_of.bury(2)
    ended = dlq_of("replay", "--all")
    assert ended.code == 1
    assert "the group 'gone' is not on" in ended.errors[0]
    assert dlq_of.ids == [kept]
    groups: Any = dlq_of.client.xinfo_groups(dlq_of.stream)
    assert [group["name"] for group in groups] == [b"g"]
    assert dlq_of("replay", "--all", "--force").code == 0
    assert len(dlq_of.raw(f"{{{dlq_of.stream}}}:retry:gone")) == 1
    assert not dlq_of.ids


def test_a_group_that_goes_while_its_messages_are_replayed_gets_no_more(
    dlq_of: Dlq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the script's own look at the groups this message went into a stream that nobody reads."""
    dlq_of.group()
    made = dlq_of.bury()
    monkeypatch.setattr("quantum_bus.deadletter_stream.DeadLetterStream.groups", lambda self: {"g"})
    dlq_of.client.xgroup_destroy(dlq_of.stream, "g")
    ended = dlq_of("replay", made)
    assert ended.code == 1
    assert "'g' is not on" in ended.errors[0]
    dlq_of.client.delete(dlq_of.stream)
    assert dlq_of("replay", made).code == 1
    assert dlq_of.ids == [made]


def test_what_redis_refuses_stays_and_is_said_for_each(dlq_of: Dlq) -> None:
    """With XDEL before XADD in the script both messages were lost."""
    dlq_of.group()
    made = [dlq_of.bury(1), dlq_of.bury(2)]
    dlq_of.client.set(dlq_of.retry_key, "text")
    before = dlq_of.raw(dlq_of.key)
    ended = dlq_of("replay", "--all")
    assert (ended.code, ended.out) == (1, ["replayed 0 dead letters; 2 left, see above"])
    for letter_id, line in zip(made, ended.errors, strict=True):
        assert f"{letter_id}: {dlq_of.retry_key}: Redis refused it, and it stays" in line
        assert "WRONGTYPE" in line
    assert dlq_of.raw(dlq_of.key) == before
    dlq_of.client.delete(dlq_of.retry_key)
    assert dlq_of("replay", "--all").code == 0


async def test_a_very_wide_message_is_shown_whole_and_stays(
    buses: Buses, dlq_of: Dlq, redis_client: Any, stream: str
) -> None:
    bus = buses()

    @bus.subscriber(stream, group="g")
    async def handle(payload: dict[str, str]) -> None:
        raise Reject

    await redis_client.xadd(stream, {f"f{n}": "x" for n in range(4_000)})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq_of.key))
        [found] = (await blocking(dlq_of, "show", dead.id, "--json")).objects
        assert found["fields"] == [[f"f{n}", "x"] for n in range(4_000)]
        ended = await blocking(dlq_of, "replay", "--all")
    assert ended.code == 1
    assert "its 4,000 fields are more than a script can add" in ended.errors[0]
    assert dlq_of.ids == [dead.id]


def test_the_widest_that_is_not_packed_goes_back(dlq_of: Dlq) -> None:
    dlq_of.group()
    own = [part for number in range(3_500) for part in (f"f{number}", "x")]
    dlq_of.bury(own=tuple(own))
    assert dlq_of("replay", "--all").code == 0
    [(_, values)] = dlq_of.raw(dlq_of.retry_key)
    assert len(values) == 7_008


def test_ids_that_are_not_there_are_said_and_the_others_replayed(dlq_of: Dlq) -> None:
    dlq_of.group()
    made = dlq_of.bury()
    ended = dlq_of("replay", "1-0", made, made)
    assert (ended.code, len(ended.errors)) == (1, 1)
    assert ended.out == [f"replayed 1 dead letter: 1 → {dlq_of.retry_key}; 1 left, see above"]
    assert not dlq_of.ids


def test_what_is_dead_lettered_anew_by_its_replay_is_not_replayed_for_ever(
    dlq_of: Dlq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bound at the newest one this ran until it was stopped."""
    dlq_of.group()
    for number in range(60):
        dlq_of.bury(number)
    give_back = "quantum_bus.deadletter_stream.DeadLetterStream.give_back"

    def failing_at_once(self: Any, command: Any) -> str:
        dlq_of.client.xdel(dlq_of.key, command[6])
        dlq_of.bury()
        return "ok"

    monkeypatch.setattr(give_back, failing_at_once)
    assert dlq_of("replay", "--all").out == [f"replayed 60 dead letters: 60 → {dlq_of.retry_key}"]
    assert len(dlq_of.ids) == 60


def test_of_what_others_replayed_meanwhile_nothing_is_doubled(dlq_of: Dlq, monkeypatch: pytest.MonkeyPatch) -> None:
    dlq_of.group()
    made = [dlq_of.bury(1), dlq_of.bury(2)]
    plain = dlq_of("replay", "--all", "--dry-run")
    assert plain.code == 0

    class Slow:
        def pause(self) -> float:
            dlq_of.client.xdel(dlq_of.key, made[1])
            return 0.0

    monkeypatch.setattr("quantum_bus.cli.dlq.Pace", lambda *_, **__: Slow())
    ended = dlq_of("replay", "--all")
    assert (ended.code, ended.out) == (0, [f"replayed 1 dead letter: 1 → {dlq_of.retry_key}; 1 had gone meanwhile"])
    assert len(dlq_of.raw(dlq_of.retry_key)) == 1


# --- purge ---------------------------------------------------------------------------------------


def test_purge_deletes_what_is_chosen_and_says_how_many(dlq_of: Dlq) -> None:
    made = [dlq_of.bury(number, event="A" if number % 2 else "B") for number in range(300)]
    ended = dlq_of("purge", "--event", "A")
    assert (ended.code, ended.out) == (0, ["deleted 150 dead letters"])
    assert dlq_of.ids == made[::2]
    assert dlq_of("purge", made[0], made[2], "1-0").out == ["deleted 2 dead letters; 1 left, see above"]
    assert dlq_of("purge", "--all").out == ["deleted 148 dead letters"]
    assert dlq_of("purge", "--all").out == ["deleted 0 dead letters"]


# --- on a terminal -------------------------------------------------------------------------------


def on_terminal(
    dlq_of: Dlq, answer: str | None, *arguments: str, before: Callable[[], object] = lambda: None
) -> tuple[int, str]:
    """Exit code, and what stood on the terminal; `before` is called before the answer."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "quantum_bus", "dlq", *arguments, "--url", dlq_of.url]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal says that nobody holds its other end any more
        while part := os.read(ours, 4096):
            shown += part
            if answer is not None and b"[y/N]" in shown:
                before()
                os.write(ours, answer.encode() + b"\n")
                answer = None
    os.close(ours)
    return process.wait(30), shown.decode()


@pytest.mark.parametrize("command", ["purge", "replay"])
def test_on_a_terminal_it_asks_first(dlq_of: Dlq, command: str) -> None:
    dlq_of.group()
    made = [dlq_of.bury(1), dlq_of.bury(2)]
    code, shown = on_terminal(dlq_of, "n", command, dlq_of.stream, "--all")
    assert code == 1
    assert "nothing was changed" in shown
    assert f"2 → {dlq_of.retry_key if command == 'replay' else dlq_of.key}? [y/N]" in shown.replace("\r\n", "")
    assert dlq_of.ids == made
    assert on_terminal(dlq_of, "y", command, dlq_of.stream, made[0])[0] == 0
    assert dlq_of.ids == made[1:]
    assert on_terminal(dlq_of, None, command, dlq_of.stream, "--all", "--yes")[0] == 0
    assert not dlq_of.ids


@pytest.mark.parametrize("command", ["purge", "replay"])
def test_what_comes_while_it_asks_was_not_asked_for(dlq_of: Dlq, command: str) -> None:
    """With the newest one's id taken after the answer, this deleted a dead letter that nobody had seen."""
    dlq_of.group()
    dlq_of.bury(1)
    later: list[str] = []
    code, _ = on_terminal(dlq_of, "y", command, dlq_of.stream, "--all", before=lambda: later.append(dlq_of.bury(2)))
    assert code == 0
    assert dlq_of.ids == later
