"""The OpenTelemetry SDK, set up for a service from the standard ``OTEL_*`` variables.

Needs the extra ``otel``. The bus itself needs this module as little as it needs an SDK: it speaks to OpenTelemetry's
API, and any other way to configure an SDK is as good.
"""

from __future__ import annotations

import atexit
import importlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata as package_metadata
from typing import Any, Final

from opentelemetry import metrics, trace

from . import names
from .config import MAX_SERVICE_LENGTH
from .errors import ConfigurationError

try:
    from opentelemetry.instrumentation.redis import RedisInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    from .flow_ids import FlowIdGenerator
except ImportError as error:
    raise ImportError(
        f"quantum_bus.otel needs the OpenTelemetry SDK ({error}); install it: pip install 'quantum-bus[otel]'"
    ) from error

DEFAULT_SPAN_LINK_LIMIT: Final = 1024
"""A batch's span links to every message of it; the SDK's own limit of 128 would drop the rest in silence."""

DEFAULT_SHUTDOWN_SECONDS: Final = 5.0
HTTP_PROTOBUF: Final = "http/protobuf"

# Resource attributes, by OpenTelemetry's semantic conventions. The distribution tells our providers from other ones.
_SERVICE_NAME: Final = "service.name"
_SERVICE_INSTANCE: Final = "service.instance.id"
_DISTRIBUTION: Final = "telemetry.distro.name"
_DISTRIBUTION_VERSION: Final = "telemetry.distro.version"
_PACKAGE: Final = "quantum-bus"


@dataclass(frozen=True, slots=True)
class TelemetrySetup:
    """What :func:`setup` has configured.

    Attributes:
        tracer_provider: the process's, or None where ``OTEL_SDK_DISABLED`` says so.
        meter_provider: the same for metrics.
    """

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    _ours: tuple[Any, ...] = field(default=(), repr=False)
    _instrumented: bool = field(default=False, repr=False)

    def flush(self, timeout: float = DEFAULT_SHUTDOWN_SECONDS) -> bool:
        """Send what is waiting; whether all of it was sent within ``timeout`` seconds."""
        return self._within(timeout, lambda provider: provider.force_flush(int(timeout * 1000)))

    def shutdown(self, timeout: float = DEFAULT_SHUTDOWN_SECONDS) -> bool:
        """Send what is waiting and end; whether that was done within ``timeout`` seconds.

        Later spans and values are dropped: OpenTelemetry configures a process once. Providers that were there before
        :func:`setup` are left alone.
        """
        atexit.unregister(self.shutdown)
        if self._instrumented:
            RedisInstrumentor().uninstrument()
        return self._within(timeout, lambda provider: provider.shutdown())

    def _within(self, timeout: float, act: Callable[[Any], object]) -> bool:
        """In threads of their own: an exporter whose collector is away would wait for longer than a service may."""
        threads = []
        for provider in self._ours:
            thread = threading.Thread(target=act, args=(provider,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # at the exit of some Pythons no thread can be started any more
                act(provider)
            else:
                threads.append(thread)
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


def setup(
    service: str | None = None,
    *,
    resource_attributes: Mapping[str, str | int | float | bool] | None = None,
    instrument_redis: bool = True,
) -> TelemetrySetup:
    """Configure traces and metrics for this process, and have them exported over OTLP.

    The standard variables count: ``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER``
    (``otlp``, ``console``, ``none``), ``OTEL_EXPORTER_OTLP_*``, ``OTEL_TRACES_SAMPLER``, ``OTEL_RESOURCE_ATTRIBUTES``,
    ``OTEL_BSP_*``, ``OTEL_SPAN_*_LIMIT``, ``OTEL_METRIC_EXPORT_INTERVAL``. Call it before the first bus is started. A
    second call changes nothing; a provider that the program has configured otherwise is kept.

    Args:
        service: ``service.name``; None reads ``QUANTUM_BUS_SERVICE``, else ``OTEL_SERVICE_NAME``.
        resource_attributes: more of what describes this process, as ``{"deployment.environment.name": "staging"}``.
        instrument_redis: have opentelemetry-instrumentation-redis trace the program's own Redis commands. The bus's are
            not among them: it makes its own spans.

    Raises:
        ConfigurationError: a variable names an exporter or protocol that cannot be had, or telemetry is set up for
            another service already.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return TelemetrySetup(None, None)
    service = _checked_service(service)
    traces = _exporters("traces", _span_processor)
    metric_readers = _exporters("metrics", _metric_reader)

    resource = _resource(service, resource_attributes or {})
    ours: list[Any] = []
    made = False
    tracer_provider = trace.get_tracer_provider()
    if isinstance(tracer_provider, TracerProvider):
        _refuse_another(tracer_provider, service)
        if _is_ours(tracer_provider):
            ours.append(tracer_provider)
    else:
        # Its own shutdown at exit would wait for a collector that is away; ours, below, has a deadline.
        tracer_provider = TracerProvider(
            resource=resource, span_limits=_span_limits(), id_generator=FlowIdGenerator(), shutdown_on_exit=False
        )
        for make in traces:
            tracer_provider.add_span_processor(make())
        trace.set_tracer_provider(tracer_provider)
        ours.append(tracer_provider)
        made = True

    meter_provider = metrics.get_meter_provider()
    if isinstance(meter_provider, MeterProvider):
        if _is_ours(meter_provider):
            ours.append(meter_provider)
    else:
        meter_provider = MeterProvider(
            resource=resource, metric_readers=[make() for make in metric_readers], shutdown_on_exit=False
        )
        metrics.set_meter_provider(meter_provider)
        ours.append(meter_provider)
        made = True

    instrumentor = RedisInstrumentor()
    instrument = instrument_redis and not instrumentor.is_instrumented_by_opentelemetry
    if instrument:
        instrumentor.instrument(tracer_provider=tracer_provider, meter_provider=meter_provider)
    done = TelemetrySetup(tracer_provider, meter_provider, tuple(ours), instrument)
    if made:
        atexit.register(done.shutdown)
    return done


def _checked_service(service: str | None) -> str:
    found = service or os.environ.get(names.ENV_SERVICE) or os.environ.get(names.ENV_OTEL_SERVICE)
    if not found or not isinstance(found, str) or not found.isprintable() or len(found) > MAX_SERVICE_LENGTH:
        raise ConfigurationError(
            f"service={found!a}: name the service in 1 to {MAX_SERVICE_LENGTH} printable characters, as "
            f"setup('auto_executor') or in {names.ENV_SERVICE}"
        )
    return found


def _resource(service: str, attributes: Mapping[str, str | int | float | bool]) -> Resource:
    # What OTEL_RESOURCE_ATTRIBUTES says of the instance counts; without any, two processes of one service would
    # overwrite each other's metrics.
    instance = Resource({_SERVICE_INSTANCE: str(uuid.uuid4())})
    own = {
        **attributes,
        _SERVICE_NAME: service,
        _DISTRIBUTION: _PACKAGE,
        _DISTRIBUTION_VERSION: package_metadata.version(_PACKAGE),
    }
    return instance.merge(Resource.create(own))


def _span_limits() -> SpanLimits:
    if os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT"):
        return SpanLimits()
    return SpanLimits(max_links=DEFAULT_SPAN_LINK_LIMIT)


def _is_ours(provider: TracerProvider | MeterProvider) -> bool:
    return _attributes(provider).get(_DISTRIBUTION) == _PACKAGE


def _refuse_another(provider: TracerProvider, service: str) -> None:
    former = _attributes(provider).get(_SERVICE_NAME)
    if _is_ours(provider) and former != service:
        raise ConfigurationError(
            f"telemetry is set up for service {former!r} in this process, and a process is one service; leave out "
            f"setup({service!r})"
        )


def _attributes(provider: TracerProvider | MeterProvider) -> Mapping[str, Any]:
    resource = getattr(provider, "resource", None) or getattr(getattr(provider, "_sdk_config", None), "resource", None)
    return {} if resource is None else resource.attributes


# --- exporters -----------------------------------------------------------------------------------


def _exporters(signal: str, make: Callable[[str], Callable[[], Any] | None]) -> list[Callable[[], Any]]:
    """What makes the exporters that the environment names, checked before any is made."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    wanted = os.environ.get(variable, "").strip() or "otlp"
    found = []
    for name in dict.fromkeys(part.strip().lower() for part in wanted.split(",")):
        if name in ("none", ""):
            continue
        maker = make(name)
        if maker is None:
            raise ConfigurationError(f"{variable}={wanted!r}: give otlp, console or none")
        found.append(maker)
    return found


def _span_processor(name: str) -> Callable[[], Any] | None:
    if name == "otlp":
        exporter = _otlp("traces", "trace_exporter", "OTLPSpanExporter")
        return lambda: BatchSpanProcessor(exporter())
    return (lambda: SimpleSpanProcessor(ConsoleSpanExporter())) if name == "console" else None


def _metric_reader(name: str) -> Callable[[], Any] | None:
    if name == "otlp":
        exporter = _otlp("metrics", "metric_exporter", "OTLPMetricExporter")
        return lambda: PeriodicExportingMetricReader(exporter())
    return (lambda: PeriodicExportingMetricReader(ConsoleMetricExporter())) if name == "console" else None


def _otlp(signal: str, module: str, exporter: str) -> Any:
    """The exporter class for the protocol that the environment names; gRPC's where its package is installed."""
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    protocol = os.environ.get(variable) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or HTTP_PROTOBUF
    family = {HTTP_PROTOBUF: "http", "grpc": "grpc"}.get(protocol.strip().lower())
    if family is None:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: give {HTTP_PROTOBUF}")
    try:
        found = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{family}.{module}")
    except ImportError as error:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} needs opentelemetry-exporter-otlp-proto-{family}; install it, "
            f"or give {HTTP_PROTOBUF}"
        ) from error
    return getattr(found, exporter)
