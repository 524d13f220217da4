"""Trace ids that are the flow's correlation id; to be imported where OpenTelemetry's SDK is installed."""

from __future__ import annotations

from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from . import propagation


class FlowIdGenerator(RandomIdGenerator):
    """As the SDK's own; but a trace that begins in a flow of ``correlation_scope()`` has the flow's id.

    Such a flow was given an id before there was a trace, and nobody named it. :func:`quantum_bus.otel.setup` has its
    tracer provider use this one. The bus's own spans need it of no other: they begin so wherever the provider has the
    SDK's own generator. For all of a program's spans::

        TracerProvider(id_generator=FlowIdGenerator())
    """

    def generate_trace_id(self) -> int:
        """128 bits: the flow's, else random."""
        return propagation.begun_trace_id() or super().generate_trace_id()


def ids_of_flows(generator: IdGenerator) -> IdGenerator:
    """Instead of the SDK's own generator a :class:`FlowIdGenerator`; any other one has its reasons, and stays."""
    return FlowIdGenerator() if type(generator) is RandomIdGenerator else generator
