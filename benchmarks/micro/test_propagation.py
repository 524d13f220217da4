"""The W3C context into headers and out of them: ours, and OpenTelemetry's beside it."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pytest_benchmark.fixture import BenchmarkFixture

from quantum_bus import propagation

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
THEIRS = TraceContextTextMapPropagator()


@pytest.mark.benchmark(group="propagation")
def test_inject(benchmark: BenchmarkFixture) -> None:
    context = propagation.parse_context(HEADER)
    assert context is not None
    assert benchmark(lambda: (propagation.format_traceparent(context), propagation.format_tracestate(context))) == (
        HEADER,
        "",
    )


@pytest.mark.benchmark(group="propagation")
def test_extract(benchmark: BenchmarkFixture) -> None:
    context = benchmark(propagation.parse_context, HEADER)
    assert propagation.format_traceparent(context) == HEADER


@pytest.mark.benchmark(group="propagation")
def test_inject_by_opentelemetry(benchmark: BenchmarkFixture) -> None:
    context = propagation.parse_context(HEADER)
    assert context is not None
    current = trace.set_span_in_context(NonRecordingSpan(context))
    carrier: dict[str, str] = {}
    benchmark(lambda: THEIRS.inject(carrier, current))
    assert carrier == {"traceparent": HEADER}


@pytest.mark.benchmark(group="propagation")
def test_extract_by_opentelemetry(benchmark: BenchmarkFixture) -> None:
    context = benchmark(lambda: THEIRS.extract({"traceparent": HEADER}))
    assert trace.get_current_span(context).get_span_context() == propagation.parse_context(HEADER)
