"""What nobody should log, in the midst of what one should: nothing good is lost, and no label gets many values."""

import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quantum_bus import names
from scripts.stack import Stack
from tests.stack.asking import get_good, wait_until
from tests.stack.loki_reader import DAY_NS, HOUR_NS, Entry, LokiReader
from tests.stack.running import Running

SERVICE = "portfolio"
EVENTS = 100_000  # of different names
# Loki's own limit is 5,000 streams.
STREAMS = 50
LEVELS = {"TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "UNKNOWN"}


def good(number: int, *, ts: str | None = None, **fields: Any) -> bytes:
    written = {
        "ts": ts or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": "INFO", "service": SERVICE,
        "event": "LOG", "correlation_id": "c", "msg": "said", "number": number,
    }  # fmt: skip
    return json.dumps(written | fields, separators=(",", ":")).encode()


def stamp(**ago: float) -> str:
    return (datetime.now(UTC) - timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# By what it is called, a line that is kept as text: it is in Loki as it was written.
KEPT = {
    "not JSON": b"Traceback (most recent call last): kept-0",
    "half of it JSON": b'{"ts":"2026-01-03T10:15:23.456789Z","level":"INFO","kept":1',
    "a JSON array": b'["kept-2",{"level":"ERROR"}]',
    "a JSON number": b"42",
    "NaN": b'{"level":"INFO","service":"portfolio","kept":NaN}',
    "each key of another type": b'{"ts":5,"level":["INFO"],"service":{"a":1},"event":null,"correlation_id":7,'
    b'"order_id":[1,{"x":2}],"trace_id":9,"span_id":{},"latency_ms":"slow","kept":4}',
    "an id of the wrong form": b'{"service":"portfolio","trace_id":"XYZ","span_id":"1","correlation_id":"","kept":5}',
    "a service that is a path": b'{"service":"../../etc/passwd\\u0000","level":"loud","event":"kept 6"}',
    "an event of 100,000 characters": b'{"service":"portfolio","event":"' + b"E" * 100_000 + b'"}',
    "ids of 100,000 characters": b'{"service":"portfolio","correlation_id":"%b","order_id":"%b","intent_id":{"a":"%b"}}'
    % (b"i" * 100_000, b"o" * 100_000, b"u" * 100_000),
    "ANSI codes": b"\x1b[31mERROR\x1b[0m \x1b]0;title\x07kept-8",
    "control characters": b"kept-9 \x01\x02\x7f\t\x0b",
    "a deep object": b'{"kept":10,"deep":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    "a key twice": b'{"service":"portfolio","service":"other_service","kept":11}',
    "a large integer": b'{"service":"portfolio","order_id":123456789012345678901234567890,"kept":12}',
}
AT_ARRIVAL = {
    "a year ahead": good(-1, ts=stamp(days=-365)),
    "two hours ahead": good(-2, ts=stamp(hours=-2)),
    "forty days ago": good(-3, ts=stamp(days=40)),
    "of 1970": good(-4, ts="1970-01-01T00:00:00.000000Z"),
    "of the year 0": good(-5, ts="0000-01-01T00:00:00.000000Z"),
    "of the year 9999": good(-6, ts="9999-12-31T23:59:59.999999Z"),
    "of no time": good(-7, ts="yesterday"),
}
# Stored with U+FFFD in place of what is no text.
INVALID = {
    "invalid UTF-8": b"kept-inv \xff\xfe\xc3\x28 end",
    "invalid UTF-8 in JSON": b'{"service":"portfolio","msg":"kept-inv2 \xff"}',
}
LONG = good(-8, text="x" * 1_000_000)


def written() -> Iterator[bytes]:
    """Good lines with a bad one between each two, and the many events behind."""
    bad = [*KEPT.values(), *AT_ARRIVAL.values(), *INVALID.values(), LONG, b"", b"   "]
    for number, line in enumerate(bad):
        yield good(number)
        yield line
    yield good(len(bad))
    for number in range(EVENTS):
        yield good(number, event=f"EVENT_{number}")
    yield good(len(bad) + 1)


@pytest.fixture
def read(stack: Stack) -> Callable[[str], list[Entry]]:
    reader = LokiReader(stack.loki_url)

    def read(logql: str) -> list[Entry]:
        now = time.time_ns()
        return list(reader.query(logql, start_ns=now - DAY_NS, end_ns=now + HOUR_NS))

    return read


def test_good_lines_arrive_among_bad_ones_which_are_kept_and_make_no_label_long(
    stack: Stack, real_loki: Running, real_collector: Running, read: Callable[[str], list[Entry]]
) -> None:
    (stack.logs / f"{SERVICE}.jsonl").write_bytes(b"".join(line + b"\n" for line in written()))
    many = LokiReader(stack.loki_url)
    last = len(KEPT) + len(AT_ARRIVAL) + len(INVALID) + 4
    wait_until(
        lambda: many.count('{event="OTHER"}') >= EVENTS and bool(read(f'{{event="LOG"}} |= "\\"number\\":{last}}}"')),
        timeout=120, what="all events in Loki", interval=0.5,
    )  # fmt: skip

    # Every good line once, under its labels.
    numbers = [
        json.loads(entry.line)["number"]
        for entry in read(f'{{service="{SERVICE}",event="LOG",level="INFO"}} | correlation_id="c"')
    ]
    assert [number for number in sorted(numbers) if number >= 0] == list(range(last + 1))
    # Of the others each is there as it was written.
    everything = [entry for entry in read('{service_name=~".+", event!="OTHER"}') if len(entry.line) < 500_000]
    everything += read('{event="OTHER"} != "EVENT_"')
    texts = [entry.line for entry in everything]
    for what, line in KEPT.items():
        assert texts.count(line.decode()) == 1, what
    for what, line in AT_ARRIVAL.items():
        [found] = [entry for entry in everything if entry.line == line.decode()]
        assert found.labels["time_source"] == "arrival", what
        assert abs(found.time_ns - time.time_ns()) < HOUR_NS
    for what, line in INVALID.items():
        assert texts.count(line.decode(errors="replace")) == 1, what
    [long] = read(f'{{service="{SERVICE}"}} |= "xxxx"')
    assert long.line == LONG.decode()
    assert long.labels["line_bytes"] == str(len(LONG))

    # Labels have few values, in Loki and in Prometheus; the name is kept beside.
    now = time.time_ns()
    query = {"match[]": '{service_name=~".+"}', "start": now - DAY_NS, "end": now + HOUR_NS}
    streams = get_good(f"{stack.loki_url}/loki/api/v1/series", **query).json()["data"]
    assert len(streams) < STREAMS
    assert {stream["event"] for stream in streams} <= set(names.LISTED_EVENTS) | {names.EVENT_OTHER}
    assert {stream["level"] for stream in streams} <= LEVELS
    assert {stream["service"] for stream in streams} == {SERVICE, "other_service"}
    [named] = read('{event="OTHER"} | event_original="EVENT_77777"')
    assert json.loads(named.line)["event"] == "EVENT_77777"
    counts = get_good(f"http://127.0.0.1:{stack.ports.metrics}/metrics").text
    series = re.findall(r"^quantum_bus_log_records_total\{.*$", counts, re.MULTILINE)
    assert len(series) < STREAMS
    [others] = [row for row in series if 'event="OTHER"' in row and 'level="INFO"' in row]
    assert float(others.rpartition(" ")[2]) == EVENTS
    # And nothing was refused on the way.
    assert "loki_discarded_samples_total{" not in get_good(f"{stack.loki_url}/metrics").text
    own = get_good(f"http://127.0.0.1:{stack.ports.self_metrics}/metrics").text
    assert not re.search(r"^otelcol_exporter_send_failed_log_records_total\{[^}]*loki[^}]*\} [1-9]", own, re.MULTILINE)


def test_many_long_lines_at_once_take_no_more_memory_than_few(
    stack: Stack, real_loki: Running, real_collector: Running
) -> None:
    """By hundreds, whatever their length, each copy of 200 is 100 MB, and no memory limit lets that pass for long."""
    lines = 200
    text = "x" * 500_000
    (stack.logs / f"{SERVICE}.jsonl").write_bytes(b"".join(good(n, text=text) + b"\n" for n in range(lines)))
    reader = LokiReader(stack.loki_url)
    wait_until(lambda: reader.count(f'{{service="{SERVICE}"}}') >= lines, timeout=120, what="long lines", interval=0.5)
    assert real_collector.resident_mib() < 400  # seen: 156, and 822 by hundreds
