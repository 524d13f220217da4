"""What others write into the stream, whatever it is, ends with a handling or as a dead letter, and holds up nothing."""

import random
from collections.abc import Callable

from quantum_bus.envelope import Entry, decode
from tests.faults.history import OK
from tests.faults.scenario import NEVER, STREAM, Scenario

Fields = list[bytes]


def _bytes(random: random.Random, longest: int = 40) -> bytes:
    return random.randbytes(random.randrange(longest))


def _id(random: random.Random) -> bytes:
    return b"%016x" % random.getrandbits(64)


def _of_ours(random: random.Random, **changed: bytes | None) -> Fields:
    fields: dict[str, bytes | None] = {
        "v": b"1",
        "data": b'["ok"]',
        "message_id": b"hostile-" + _id(random),
        "correlation_id": b"hostile",
        "traceparent": f"00-{random.getrandbits(127) + 1:032x}-{random.getrandbits(63) + 1:016x}-01".encode(),
        "service": b"hostile",
        "ts": b"2026-01-01T00:00:00.000000Z",
    }
    fields |= changed
    return [part for name, value in fields.items() if value is not None for part in (name.encode(), value)]


HOSTILE: dict[str, Callable[[random.Random], Fields]] = {
    "random bytes": lambda random: [_bytes(random) for _ in range(2 * random.randrange(1, 8))],
    "empty name and value": lambda random: [b"", b""],
    "no data": lambda random: _of_ours(random, data=None),
    "only a version": lambda random: [b"v", b"1"],
    "no message id": lambda random: _of_ours(random, message_id=None),
    "no context": lambda random: _of_ours(random, traceparent=None, correlation_id=None),
    "a version of junk": lambda random: _of_ours(random, v=_bytes(random)),
    "a version to come": lambda random: _of_ours(random, v=b"2"),
    "a version beyond any": lambda random: _of_ours(random, v=b"9" * 5_000),
    "data that is no JSON": lambda random: _of_ours(random, data=_bytes(random, 400)),
    "data cut off": lambda random: _of_ours(random, data=b'{"a": [1, 2'),
    "data deep in brackets": lambda random: _of_ours(random, data=b"[" * 50_000),
    "data of another shape": lambda random: _of_ours(random, data=b'{"runs": 1}'),
    "ids of broken UTF-8": lambda random: _of_ours(random, correlation_id=b"\xff", message_id=b"\xc3" + _id(random)),
    "ids with line ends": lambda random: _of_ours(random, correlation_id=b"a\r\nb", message_id=b"a\n" + _id(random)),
    "a context of junk": lambda random: _of_ours(random, traceparent=_bytes(random, 200)),
    "an endless baggage": lambda random: _of_ours(random, baggage=b"a=b," * 50_000),
    "headers of bytes": lambda random: [*_of_ours(random), *(b"h." + _bytes(random) for _ in range(8))],
    "a field of megabytes": lambda random: [*_of_ours(random), b"big", random.randbytes(2_000_000)],
    "data of megabytes": lambda random: _of_ours(random, data=b'["ok", "' + b"x" * 2_000_000 + b'"]'),
    "thousands of fields": lambda random: [*_of_ours(random), *([b"f", b"x"] * 9_000)],
    "the same field many times": lambda random: _of_ours(random) * 20,
    "what looks like a retry": lambda random: [*_of_ours(random), b"retry.id", b"0-1", b"retry.attempts", b"-7"],
    "what looks like a dead letter": lambda random: [*_of_ours(random), b"dlq.attempts", b"x", b"dlq.group", b"\xff"],
}


async def test_whatever_is_written_into_the_stream_ends_and_holds_up_nothing(load: Scenario) -> None:
    """Hostile entries count as published: under the ids that any reader gives them, they must not be lost either."""
    await load.begin(lease=NEVER)
    for _ in range(load.form.of(2, 10, 200)):
        for make in HOSTILE.values():
            fields = make(load.random)
            entry_id = (await load.client.execute_command("XADD", STREAM, "*", *fields)).decode()
            seen = decode(Entry(STREAM, entry_id, fields))
            load.recorder.publish(seen.message_id, seen.correlation_id, f"{seen.context.trace_id:032x}")
            load.recorder.published(seen.message_id, OK, entry_id)
    await load.progress()
    verdict = await load.over()
    assert verdict.figures["dead letters"] > 20
    assert load.of("consumer") == []
