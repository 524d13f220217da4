"""``quantum-bus exporter``: the state of streams and groups as metrics, whoever is alive."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from typing import Annotated, Final

import typer

from quantum_bus import names
from quantum_bus.cli import USUAL
from quantum_bus.cli.connection import Debug, Prefix, Url, full_name, make_client, make_link
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE, fail
from quantum_bus.config import STOP_SIGNALS, masked_url
from quantum_bus.errors import ConfigurationError
from quantum_bus.exporter import DEFAULT_INTERVAL, DEFAULT_MAX_GROUPS, DEFAULT_MAX_STREAMS, Exporter
from quantum_bus.gauges import Gauge
from quantum_bus.jsonlog import setup_json_logging
from quantum_bus.stopping import StopRequest

SERVICE: Final = "quantum-bus-exporter"
# Seconds that a send to the collector may take to end after a signal.
LAST_SEND: Final = 2.0
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_METRICS_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"


def exporter(
    url: Url = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="NAME", help="A stream to look at; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
    prefix: Prefix = "",
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often Redis is asked.")
    ] = DEFAULT_INTERVAL,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where Prometheus may scrape; none: nowhere.")
    ] = "127.0.0.1:9464",
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A collector to send to, as http://localhost:4318.  [default: OTEL_EXPORTER_OTLP_ENDPOINT]",
            show_default=False,
        ),
    ] = None,
    max_streams: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many streams have figures.")
    ] = DEFAULT_MAX_STREAMS,
    max_groups: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many groups have figures, over all streams.")
    ] = DEFAULT_MAX_GROUPS,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL.")] = "INFO",
    debug: Debug = False,
) -> None:
    """Offer lag, pending, scheduled and dead letters as metrics until SIGTERM or SIGINT.

    It needs no consumer, and no Redis to start with. While Redis is away, quantum_bus.exporter.up is 0 and every other
    figure absent.
    """
    gc.set_threshold(*USUAL)
    try:
        address = _address(listen)
        wanted = [full_name(stream, prefix) for stream in streams or ()]
        client = make_client(url)
        sending = _sending(otlp)
        if address is None and sending is None:
            raise ConfigurationError("--listen none leaves nobody to tell: give --otlp http://localhost:4318")
        log = setup_json_logging(SERVICE, log_level, announce=False)
    except ConfigurationError as error:
        fail(f"exporter: {error}", EXIT_USAGE, error=error if debug else None)

    link = make_link(client, url)
    source = Exporter(
        link, streams=wanted, prefix=prefix, interval=interval, max_streams=max_streams, max_groups=max_groups
    )
    stop = StopRequest()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    server = None
    if address is not None:
        try:
            from quantum_bus.scraping import serve

            server = serve(*address, source.gauges)
        except ImportError as error:
            missing = f"--listen needs prometheus-client ({error}); install it: pip install 'quantum-bus[cli]'"
            fail(f"exporter: {missing}", EXIT_FAILED, error=error if debug else None)
        except OSError as error:
            fail(f"exporter: cannot listen on {listen}: {error}", EXIT_FAILED, error=error if debug else None)
    log.info(
        "Exporter is started",
        event=names.EVENT_SERVICE_STARTED,
        redis=masked_url(url or ""),
        listen=None if server is None else f"{address[0] if address else ''}:{server.server_port}",
        interval=interval,
    )
    if sending is not None:
        sending.start()
    try:
        source.run(stop, seen=sending.post if sending is not None else lambda _: None)
    finally:
        if sending is not None:
            sending.close()
        if server is not None:
            server.shutdown()
            server.server_close()
        link.close()
        client.close()
    log.info("Exporter stopped", event=names.EVENT_SERVICE_STOPPED)


def _address(listen: str) -> tuple[str, int] | None:
    if listen.strip().lower() == "none":
        return None
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"--listen {listen!r}: give an address and a port, as 127.0.0.1:9464, or none")
    return host, int(port)


class _Sending(threading.Thread):
    """Sends what was seen last from a thread of its own: a collector that is away holds up no look at Redis."""

    def __init__(self, endpoint: str | None) -> None:
        from quantum_bus.otlp import OtlpSender

        super().__init__(name="quantum_bus otlp", daemon=True)
        self._sender = OtlpSender(endpoint, service=SERVICE)
        self._latest: list[Gauge] | None = None
        self._changed = threading.Condition()
        self._ending = False
        self._log = logging.getLogger(names.INSTRUMENTATION_NAME)

    def post(self, seen: list[Gauge]) -> None:
        """Have this sent; what has not been sent by then never is."""
        with self._changed:
            self._latest = seen
            self._changed.notify()

    def run(self) -> None:
        failing = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._latest is not None)
                if self._latest is None:
                    return
                seen, self._latest = self._latest, None
            failed = not self._sender.send(seen)
            if failed and not failing and not self._ending:
                self._log.warning("The collector does not take the metrics; trying again with the next ones")
            elif failing and not failed:
                self._log.info("The collector takes the metrics again")
            failing = failed

    def close(self) -> None:
        """Send what is left, within bounds."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self.join(LAST_SEND)
        self._sender.close()


def _sending(otlp: str | None) -> _Sending | None:
    """None where no collector is named."""
    if not otlp and not _collector_in_environment():
        return None
    # The SDK would tell of every try; one line is written when it begins to fail, one when that is over.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    try:
        return _Sending(otlp)
    except ImportError as error:
        raise ConfigurationError(f"{'--otlp' if otlp else _ENDPOINT}: {error}") from error


def _collector_in_environment() -> bool:
    """Whether OpenTelemetry's variables name a collector for metrics."""
    given = {name: os.environ.get(name, "").strip() for name in (_ENDPOINT, _METRICS_ENDPOINT)}
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return any(given.values()) and not off and os.environ.get("OTEL_METRICS_EXPORTER", "otlp").strip() != "none"
