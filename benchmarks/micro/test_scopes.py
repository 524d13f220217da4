"""The scope around a publish: span, metrics and context."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contestants.trial import EVENT, PAYLOAD
from quantum_bus import Event
from quantum_bus.envelope import prepare
from quantum_bus.telemetry import Telemetry


@pytest.mark.benchmark(group="span scope")
def test_sending(benchmark: BenchmarkFixture, providers: dict[str, Any]) -> None:
    telemetry = Telemetry(**providers)
    outgoing = prepare(Event(PAYLOAD, event=EVENT, stream="s"), max_payload_bytes=1_000_000)

    def send() -> str:
        with telemetry.sending(outgoing) as sending:
            sending.sent("1735900523456-0")
            return sending.correlation_id(outgoing)

    assert len(benchmark(send)) == 32
