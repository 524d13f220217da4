"""The tiny HTTP server that orchestrators ask whether a service is alive and ready.

It runs in a thread of its own, so that it answers while an event loop is blocked: that is what it is to tell. Whoever
can reach it can ask it, and whatever comes, it goes on: each connection has a few seconds, and there are a few at a
time, the oldest giving way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from socketserver import TCPServer
from typing import Any, Final, Self
from urllib.parse import urlsplit

from . import journal, names, readiness
from .config import check_address
from .errors import ConfigurationError
from .readiness import Answer, Health

# Seconds that a connection has in all, and how often that is looked at.
CONNECTION_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.25
MOST_CONNECTIONS: Final = 16
ACCEPT_AGAIN: Final = 0.05


class ProbeServer:
    """Answers at ``/livez`` and ``/readyz``; use it with ``with``.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        ask: tells the bus's health, having asked Redis where its argument is true. Called in the server's threads.

    Attributes:
        port: that it listens at.

    Raises:
        ConfigurationError: it is no address, or cannot be listened at.
    """

    def __init__(self, address: str, ask: Callable[[bool], Health]) -> None:
        host, port = check_address("probes", address)
        try:
            self._server = _Server(host, port, ask)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(
                f"probes={address!r}: cannot listen there: {reason}; give an address of this machine's and a free port"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_SECONDS,), name="quantum_bus probes", daemon=True
        )
        self._shown = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        journal.probed_at(self._shown)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, ask: Callable[[bool], Health]) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.ask = ask
        self._lock = threading.Lock()
        self._open: dict[socket, float] = {}  # the oldest first
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)

    def get_request(self) -> tuple[socket, Any]:
        """Accept; where that fails, as with too many open files, not again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_AGAIN)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread; where there are too many, the oldest has to go."""
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                self._cut(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut what has been there for too long: a timeout on each read would let a slow client stay for ever."""
        with self._lock:
            too_old = time.monotonic() - CONNECTION_SECONDS
            for request in [request for request, since in self._open.items() if since < too_old]:
                self._cut(request)

    def shutdown_request(self, request: Any) -> None:
        """The connection is done with."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """A client that went away, mostly."""
        journal.log.debug("A probe was not answered", exc_info=True)

    def _cut(self, request: socket) -> None:
        del self._open[request]
        with suppress(OSError):  # it is gone already
            request.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CONNECTION_SECONDS
    default_request_version = "HTTP/1.0"  # so that what cannot be read is answered with a status, too
    server_version = "quantum-bus"
    sys_version = ""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path not in (names.PATH_LIVE, names.PATH_READY):
            self._reply(readiness.no_such_path())
            return
        self._reply(readiness.answer(path, self.server.ask(path == names.PATH_READY)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What could not be read, or has a method that there is no ``do_`` for; without the base class's page."""
        refusal = readiness.no_such_method() if code == HTTPStatus.NOT_IMPLEMENTED else readiness.refused(code)
        self._reply(refusal)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: probes come every few seconds."""

    def _reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
