"""Telemetry at each step of the overhead ladder, the same for everyone who can use it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased


class Level(StrEnum):
    """What is on; each step includes those before it."""

    OFF = "off"
    UNSAMPLED = "unsampled"
    SOME = "some"  # one in twenty
    SAMPLED = "sampled"
    METRICS = "metrics"
    LOGS = "logs"  # all on: what the budgets are about
    OTLP = "otlp"

    @property
    def logs(self) -> bool:
        """Whether a JSON line is logged for each message."""
        return self in (Level.LOGS, Level.OTLP)


_SAMPLERS = {
    Level.UNSAMPLED: ALWAYS_OFF,
    Level.SOME: ParentBased(TraceIdRatioBased(0.05)),
}


class NullSpans(SpanExporter):
    """Counts spans and drops them."""

    def __init__(self) -> None:
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        return SpanExportResult.SUCCESS


class NullMetrics(MetricExporter):
    """Drops metrics, and keeps the names of the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
        self.names = sorted(
            metric.name
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        return MetricExportResult.SUCCESS

    def force_flush(self, *_: Any) -> bool:
        return True

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass


class Observed:
    """OpenTelemetry's global providers, set for a trial.

    A queue that is full drops spans; it is made long enough that what is sampled is paid for.
    """

    def __init__(self, level: Level, *, queue: int = 2_048) -> None:
        self._tracing: TracerProvider | None = None
        self._metering: MeterProvider | None = None
        self.spans = NullSpans()
        self.metrics = NullMetrics()
        if level is Level.OFF:
            return
        self._tracing = TracerProvider(sampler=_SAMPLERS.get(level))
        self._tracing.add_span_processor(BatchSpanProcessor(self._span_exporter(level), max_queue_size=queue))
        trace.set_tracer_provider(self._tracing)
        if level in (Level.METRICS, Level.LOGS, Level.OTLP):
            self._metering = MeterProvider([PeriodicExportingMetricReader(self._metric_exporter(level), 1_000)])
            metrics.set_meter_provider(self._metering)

    def _span_exporter(self, level: Level) -> SpanExporter:
        if level is not Level.OTLP:
            return self.spans
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()

    def _metric_exporter(self, level: Level) -> MetricExporter:
        if level is not Level.OTLP:
            return self.metrics
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()

    def end(self) -> dict[str, Any]:
        """Export what waits; what was exported."""
        if self._tracing is not None:
            self._tracing.shutdown()
        if self._metering is not None:
            self._metering.shutdown()
        return {"spans": self.spans.count, "metrics": self.metrics.names}


def lines_in(folder: Path) -> int:
    """Lines about messages in a trial's log files, rotated ones included."""
    return sum(path.read_bytes().count(b'"event":"INTENT_') for path in folder.glob("*.jsonl*"))
