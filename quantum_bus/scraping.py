"""Gauges for Prometheus to scrape, under the names that it makes of OpenTelemetry's. Needs prometheus-client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .gauges import Gauge

# OpenTelemetry's units become suffixes; those in braces, which only annotate, do not.
_SUFFIXES: Final = {"s": "_seconds"}


def prometheus_name(name: str, unit: str = "") -> str:
    """As OpenTelemetry's rules for Prometheus have it: ``quantum_bus.lag.age`` in s is quantum_bus_lag_age_seconds."""
    return name.replace(".", "_") + _SUFFIXES.get(unit, "")


class _Gauges(Collector):
    def __init__(self, read: Callable[[], Sequence[Gauge]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for gauge in self._read():
            labels = sorted({label for attributes, _ in gauge.points for label in attributes})
            family = GaugeMetricFamily(
                prometheus_name(gauge.name, gauge.unit), gauge.description, labels=[prometheus_name(x) for x in labels]
            )
            for attributes, value in gauge.points:
                family.add_metric([attributes.get(label, "") for label in labels], value)
            yield family


def serve(host: str, port: int, read: Callable[[], Sequence[Gauge]]) -> WSGIServer:
    """Answer scrapes from a thread of its own until the returned server is shut down.

    Args:
        port: 0 takes a free one; ``server_port`` says which.
        read: called for each scrape.

    Raises:
        OSError: the address cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(_Gauges(read))
    server, _ = start_http_server(port, host, registry)
    return server
