"""`quantum_bus.otel.setup`: each test is a process of its own, since OpenTelemetry configures a process once."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.otlp import Collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def run(program: str, **env: str) -> str:
    """What the program prints, in an environment without any variable of OpenTelemetry's but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ONE_SPAN_AND_ONE_VALUE = """
    from opentelemetry import metrics, trace
    from quantum_bus.otel import setup
    done = setup("auto_executor")
    with trace.get_tracer("t").start_as_current_span("work"):
        metrics.get_meter("t").create_counter("things").add(1)
"""


def test_spans_and_metrics_reach_the_collector_under_the_services_name(collector: Collector) -> None:
    run(f"{ONE_SPAN_AND_ONE_VALUE}\n    assert done.shutdown()", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert [span.name for span in collector.spans] == ["work"]
    assert [metric.name for metric in collector.metrics if metric.name == "things"] == ["things"]
    assert {resource["service.name"] for resource in collector.resources} == {"auto_executor"}
    assert len({resource["service.instance.id"] for resource in collector.resources}) == 1


def test_what_is_waiting_is_sent_at_exit_without_being_asked(collector: Collector) -> None:
    run(ONE_SPAN_AND_ONE_VALUE, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert [span.name for span in collector.spans] == ["work"]
    assert "things" in [metric.name for metric in collector.metrics]


def test_resource_attributes_come_from_the_environment_and_the_call(collector: Collector) -> None:
    run(
        """
        from opentelemetry import trace
        from quantum_bus.otel import setup
        done = setup(resource_attributes={"team": "trading"})
        trace.get_tracer("t").start_span("work").end()
        done.shutdown()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_SERVICE_NAME="portfolio",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=staging,service.instance.id=one",
    )
    resource = collector.resources[0]
    wanted = {"service.name": "portfolio", "deployment.environment.name": "staging", "team": "trading"}
    assert wanted.items() <= resource.items()
    assert resource["service.instance.id"] == "one"


def test_a_disabled_sdk_leaves_everything_as_it_was(collector: Collector) -> None:
    shown = run(
        """
        from opentelemetry import trace
        from quantum_bus.otel import setup
        before = trace.get_tracer_provider()
        done = setup("auto_executor")
        print(done.tracer_provider, trace.get_tracer_provider() is before, done.shutdown())
        """,
        OTEL_SDK_DISABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    assert shown == "None True True"
    assert collector.resources == []


def test_exporters_of_none_send_nothing(collector: Collector) -> None:
    run(
        ONE_SPAN_AND_ONE_VALUE,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    assert collector.resources == []


def test_the_console_exporter_prints(collector: Collector) -> None:
    shown = run(ONE_SPAN_AND_ONE_VALUE, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert '"name": "work"' in shown


def test_the_sampler_is_the_environments(collector: Collector) -> None:
    run(ONE_SPAN_AND_ONE_VALUE, OTEL_TRACES_SAMPLER="always_off", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert collector.spans == []


@pytest.mark.parametrize(("variable", "kept"), [({}, 500), ({"OTEL_SPAN_LINK_COUNT_LIMIT": "3"}, 3)])
def test_a_span_keeps_the_links_of_a_large_batch_unless_the_environment_says_otherwise(
    collector: Collector, variable: dict[str, str], kept: int
) -> None:
    run(
        """
        from opentelemetry import trace
        from quantum_bus.otel import setup
        from quantum_bus.propagation import mint
        setup("auto_executor")
        links = [trace.Link(mint()) for _ in range(500)]
        trace.get_tracer("t").start_span("work", links=links).end()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        **variable,
    )
    assert len(collector.spans[0].links) == kept


def test_a_second_call_changes_nothing(collector: Collector) -> None:
    run(
        f"""
        {ONE_SPAN_AND_ONE_VALUE.strip().replace(chr(10), chr(10) + "    ")}
        again = setup("auto_executor")
        assert again.tracer_provider is done.tracer_provider
        assert again.meter_provider is done.meter_provider
        assert again.shutdown()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    assert [span.name for span in collector.spans] == ["work"]


def test_a_process_is_one_service() -> None:
    shown = run(
        """
        from quantum_bus import ConfigurationError
        from quantum_bus.otel import setup
        setup("auto_executor")
        try:
            setup("portfolio")
        except ConfigurationError as error:
            print(error)
        """,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
    )
    assert "'auto_executor'" in shown
    assert "'portfolio'" in shown


def test_a_provider_of_the_programs_own_is_kept_and_not_shut_down() -> None:
    run(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from quantum_bus.otel import setup
        exporter, own = InMemorySpanExporter(), TracerProvider()
        own.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(own)
        done = setup("auto_executor")
        assert done.tracer_provider is own
        done.shutdown()
        trace.get_tracer("t").start_span("after").end()
        assert [span.name for span in exporter.get_finished_spans()] == ["after"]
        """,
        OTEL_METRICS_EXPORTER="none",
    )


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp, console or none"),
        ("OTEL_METRICS_EXPORTER", "statsd", "otlp, console or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_a_variable_that_cannot_work_says_what_would(variable: str, value: str, right: str) -> None:
    shown = run(
        """
        from opentelemetry import trace
        from quantum_bus import ConfigurationError
        from quantum_bus.otel import setup
        before = trace.get_tracer_provider()
        try:
            setup("auto_executor")
        except ConfigurationError as error:
            print(error)
        assert trace.get_tracer_provider() is before, "nothing half-done"
        """,
        **{variable: value},
    )
    assert value in shown
    assert right in shown


def test_a_service_without_a_name_is_refused() -> None:
    shown = run(
        """
        import os
        os.environ.pop("QUANTUM_BUS_SERVICE", None)
        from quantum_bus import ConfigurationError
        from quantum_bus.otel import setup
        try:
            setup()
        except ConfigurationError as error:
            print(error)
        """
    )
    assert "QUANTUM_BUS_SERVICE" in shown


def test_shutting_down_does_not_wait_for_a_collector_that_is_away() -> None:
    shown = run(
        f"{ONE_SPAN_AND_ONE_VALUE}\n    print(done.shutdown(timeout=0.2))",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="600",
    )
    assert shown == "False"


def test_redis_commands_of_the_program_are_traced_and_the_buss_are_not(collector: Collector) -> None:
    run(
        """
        import asyncio
        import fakeredis
        from quantum_bus import EventBus
        from quantum_bus.otel import setup
        setup("auto_executor")

        async def main():
            server = fakeredis.FakeServer(version=(7, 0))
            client = fakeredis.FakeAsyncRedis(server=server)
            bus = EventBus(client=fakeredis.FakeAsyncRedis(server=server), service="auto_executor", block=0.05)
            handled = asyncio.Event()

            @bus.subscriber("orders")
            async def handle(order: dict) -> None:
                await client.set("last", "1")
                handled.set()

            async with bus:
                await bus.publish("orders", {})
                await handled.wait()
            await client.aclose()
            await bus._client.aclose()

        asyncio.run(main())
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    spans = {span.name: span for span in collector.spans}
    assert sorted(span.name for span in collector.spans) == ["SET", "process orders", "send orders"]
    assert spans["SET"].parent_span_id == spans["process orders"].span_id
    assert spans["process orders"].parent_span_id == spans["send orders"].span_id


def test_without_its_extra_it_says_what_to_install() -> None:
    shown = run(
        """
        import sys
        sys.modules["opentelemetry.sdk"] = None
        try:
            import quantum_bus.otel
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install 'quantum-bus[otel]'" in shown
