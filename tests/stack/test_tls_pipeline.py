"""From a service to Loki over TLS alone, with the overlays of deploy/collector; see docs/deploy-credentials.md."""

import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trustme

from scripts.stack import HOST, ROOT, Program, Stack, collector, loki
from tests.certificates import Certificates
from tests.stack.asking import get, get_good, wait_until
from tests.stack.loki_reader import HOUR_NS
from tests.stack.running import Running

OVERLAYS = [ROOT / f"deploy/collector/tls-{name}.yaml" for name in ("receivers", "loki")]
# A service with OpenTelemetry's SDK: a value and a log record, both sent when it ends. It says what could not be sent.
SERVICE = """
import logging, sys
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from quantum_bus import otel

logging.basicConfig()
telemetry = otel.setup(sys.argv[1])
metrics.get_meter("orders").create_counter("orders_sent").add(1)
logs = LoggerProvider(Resource.create({"service.name": sys.argv[1]}))
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
logs.get_logger("orders").emit(body="an order over TLS", severity_text="INFO")
logs.shutdown()
telemetry.shutdown()
"""


def tls_loki(stack: Stack, files: Certificates) -> Program:
    program = loki(stack)
    given = {"cert-path": files.server_certificate, "key-path": files.server_key}
    options = (f"-server.http-tls-{name}={file}" for name, file in given.items())
    return replace(program, argv=(*program.argv, *options), ready=None)


def tls_collector(stack: Stack, files: Certificates, *, authority: Path) -> Program:
    """Takes what comes with a certificate of `files`; trusts a Loki of `authority`."""
    program = collector(stack, *OVERLAYS)
    return replace(
        program,
        env=program.env
        | {
            "QUANTUM_OTLP_CERT": str(files.server_certificate),
            "QUANTUM_OTLP_KEY": str(files.server_key),
            "QUANTUM_OTLP_CLIENT_CA": str(files.authority),
            "QUANTUM_LOKI_URL": stack.loki_url.replace("http:", "https:"),
            "QUANTUM_LOKI_CA": str(authority),
        },
    )


def send(stack: Stack, service: str, *, authority: Path, client: Certificates | None, timeout: int) -> str:
    """Runs a service, which tries for `timeout` seconds, to its end; what it said."""
    # The last two count before OpenTelemetry's own variable, for requests; the guide says so.
    without = ("QUANTUM_", "OTEL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_url.replace("http:", "https:"),
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority),
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(timeout),
    }
    if client is not None:
        env["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"] = str(client.client_certificate)
        env["OTEL_EXPORTER_OTLP_CLIENT_KEY"] = str(client.client_key)
    command = [sys.executable, "-c", SERVICE, service]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stderr


def lines(stack: Stack, files: Certificates, service: str) -> list[str]:
    """What Loki has of a service; it is asked over TLS."""
    now = time.time_ns()
    answer = get_good(
        f"{stack.loki_url.replace('http:', 'https:')}/loki/api/v1/query_range",
        verify=ssl.create_default_context(cafile=files.authority),
        query=f'{{service_name="{service}"}}',
        start=now - HOUR_NS,
        end=now + HOUR_NS,
    )
    return [line for stream in answer.json()["data"]["result"] for _, line in stream["values"]]


def accepted(stack: Stack) -> int:
    """Log records and values that the collector has taken over OTLP."""
    text = get_good(f"http://{HOST}:{stack.ports.self_metrics}/metrics").text
    found = re.findall(r"^otelcol_receiver_accepted_\w+\{.*receiver=\"otlp\".*\} (\d+)$", text, re.MULTILINE)
    return sum(map(int, found))


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates.make(tmp_path)


@pytest.fixture
def another_authority(tmp_path: Path) -> Path:
    file = tmp_path / "another.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return file


def test_a_line_gets_from_a_service_to_loki_over_tls_and_past_nobody_who_is_not_trusted(
    stack: Stack, start: Callable[[Program], Running], files: Certificates, another_authority: Path
) -> None:
    context = ssl.create_default_context(cafile=files.authority)

    def loki_is_ready() -> bool:
        try:
            return get(f"https://{HOST}:{stack.ports.loki}/ready", verify=context).is_success
        except httpx.TransportError:
            return False

    start(tls_loki(stack, files))
    running = start(tls_collector(stack, files, authority=another_authority))
    wait_until(loki_is_ready, timeout=60, what="Loki ready")
    assert "HTTP request to an HTTPS server" in get(f"{stack.loki_url}/ready").text

    with ThreadPoolExecutor() as both:  # each tries again for a while
        distrusting = both.submit(send, stack, "distrusting", authority=another_authority, client=files, timeout=20)
        unknown = both.submit(send, stack, "unknown", authority=files.authority, client=None, timeout=20)
    assert "CERTIFICATE_VERIFY_FAILED" in distrusting.result()
    assert "Failed to export" in unknown.result()
    wait_until(
        lambda: "client didn't provide a certificate" in running.log.read_text(),
        timeout=30,
        what="the collector's word on a service that shows no certificate",
    )
    assert accepted(stack) == 0

    said = send(stack, "trusted", authority=files.authority, client=files, timeout=20)
    assert said == ""
    assert accepted(stack) >= 2
    wait_until(
        lambda: "certificate signed by unknown authority" in running.log.read_text(),
        timeout=30,
        what="the collector's word on a Loki that it does not trust",
    )
    assert lines(stack, files, "trusted") == []

    # What it could not send is in its queue on disk, for when it has the right authority.
    running.stop()
    start(tls_collector(stack, files, authority=files.authority))
    wait_until(lambda: bool(lines(stack, files, "trusted")), timeout=60, what="the line in Loki", interval=0.5)
    assert lines(stack, files, "trusted") == ["an order over TLS"]
    assert lines(stack, files, "distrusting") == lines(stack, files, "unknown") == []
    assert grpc_speaks_tls(stack, files)


def grpc_speaks_tls(stack: Stack, files: Certificates) -> bool:
    context = ssl.create_default_context(cafile=files.authority)
    context.load_cert_chain(files.client_certificate, files.client_key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, stack.ports.otlp_grpc), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as encrypted,
    ):
        return encrypted.selected_alpn_protocol() == "h2"
