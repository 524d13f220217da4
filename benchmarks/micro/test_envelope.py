"""An event into an entry's fields, and back."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contestants.trial import EVENT, PAYLOAD, SERVICE
from quantum_bus import Event, propagation
from quantum_bus.envelope import Entry, Outgoing, carried, decode, encode, prepare
from quantum_bus.streams import add, pack

LIMIT = 1_000_000


def prepared() -> Outgoing:
    return prepare(Event(PAYLOAD, event=EVENT, stream="s"), max_payload_bytes=LIMIT)


def encoded(outgoing: Outgoing) -> list[bytes | str]:
    context = propagation.mint()
    return list(
        encode(outgoing, correlation_id=f"{context.trace_id:032x}", carried=carried(context, ""), service=SERVICE)
    )


@pytest.mark.benchmark(group="envelope")
def test_prepare(benchmark: BenchmarkFixture) -> None:
    assert benchmark(prepared).event == EVENT


@pytest.mark.benchmark(group="envelope")
def test_encode(benchmark: BenchmarkFixture) -> None:
    fields = benchmark(encoded, prepared())
    assert fields[:2] == ["v", b"1"]


@pytest.mark.benchmark(group="envelope")
def test_pack(benchmark: BenchmarkFixture) -> None:
    packed = benchmark(lambda command: pack([command]), add("s", encoded(prepared())))
    assert packed.startswith(b"*")


@pytest.mark.benchmark(group="envelope")
def test_decode(benchmark: BenchmarkFixture) -> None:
    fields = [field if isinstance(field, bytes) else field.encode() for field in encoded(prepared())]
    incoming = benchmark(lambda: decode(Entry("s", "1735900523456-0", fields)))
    assert incoming.data == PAYLOAD
    assert incoming.reason is None
