"""A real Redis, an event loop, and the bus's telemetry with and without an SDK behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from benchmarks.contestants.observed import NullSpans
from quantum_bus.demo.redis_server import start_redis


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with start_redis() as process:
        yield process.url


@pytest.fixture
def loop() -> Iterator[uvloop.Loop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(params=["no SDK", "all sampled"])
def providers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """For a bus: none of its own, or an SDK that samples everything and exports nothing."""
    if request.param == "no SDK":
        return {}
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(NullSpans()))
    return {"tracer_provider": tracing, "meter_provider": MeterProvider([InMemoryMetricReader()])}
