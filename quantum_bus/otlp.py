"""Gauges sent over OTLP, as the OpenTelemetry SDK's exporter sends them. Needs the extra ``otel``.

The SDK's own instruments are passed by: an observable gauge keeps a place for every attribute set that it ever had, and
past 2,000 of them whatever is new is summed up in one overflow point. Streams and groups come and go for as long as the
exporter runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import metadata as package_metadata
from typing import Final

from . import names
from .gauges import Gauge

try:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import export
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ImportError as error:
    raise ImportError(
        f"sending over OTLP needs the OpenTelemetry SDK ({error}); install it: pip install 'quantum-bus[otel]'"
    ) from error

_PATH: Final = "/v1/metrics"


class OtlpSender:
    """Sends gauges to a collector over HTTP. One thread at a time.

    Args:
        endpoint: a collector's address, as ``http://localhost:4318``; None reads the environment's
            ``OTEL_EXPORTER_OTLP_ENDPOINT``. The other ``OTEL_EXPORTER_OTLP_*`` variables count either way.
        service: ``service.name``.
    """

    def __init__(self, endpoint: str | None, *, service: str) -> None:
        self._exporter = OTLPMetricExporter(endpoint=endpoint.rstrip("/") + _PATH if endpoint else None)
        version = package_metadata.version("quantum-bus")
        self._resource = Resource.create({"service.name": service, "service.version": version})
        self._scope = InstrumentationScope(names.INSTRUMENTATION_NAME, version)

    def send(self, gauges: Sequence[Gauge]) -> bool:
        """Send; whether the collector has taken it. It is tried again for as long as the exporter's timeout lasts."""
        now = time.time_ns()
        metrics = [
            export.Metric(
                name=gauge.name,
                description=gauge.description,
                unit=gauge.unit,
                data=export.Gauge(
                    [
                        export.NumberDataPoint(
                            attributes=dict(attributes), start_time_unix_nano=now, time_unix_nano=now, value=value
                        )
                        for attributes, value in gauge.points
                    ]
                ),
            )
            for gauge in gauges
        ]
        scope = export.ScopeMetrics(scope=self._scope, metrics=metrics, schema_url="")
        resource = export.ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")
        result = self._exporter.export(export.MetricsData(resource_metrics=[resource]))
        return result is export.MetricExportResult.SUCCESS

    def close(self) -> None:
        """End; a send under way is not tried again."""
        self._exporter.shutdown()
