"""Log lines of a flow, from a Loki: what is asked, and what is made of its answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from quantum_bus.cli.log_lines import from_loki
from quantum_bus.errors import ConfigurationError, QuantumBusError

LINE = {
    "ts": "2026-01-03T10:15:23.456789Z", "level": "INFO", "service": "shop", "event": "ORDER_SUBMIT",
    "correlation_id": "flow", "msg": "Order submitted",
}  # fmt: skip
# As Loki 3.7 answers: index labels and structured metadata together, a line as it was written or as OTLP brought it.
STREAMS = [
    {"stream": {"service_name": "shop", "level": "INFO"}, "values": [["1767435323456789000", json.dumps(LINE)]]},
    {
        "stream": {
            "service_name": "pay",
            "service": "pay",
            "level": "ERROR",
            "event": "OTHER",
            "event_original": "MY_OWN",
        },
        "values": [["1767435324000000000", "no \x1b[31m JSON"]],
    },
]


class Loki:
    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], str | None]] = []
        self.code, self.answer = 200, json.dumps({"status": "success", "data": {"result": STREAMS}})
        loki = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                loki.asked.append((parts.path, parse_qs(parts.query), self.headers["Authorization"]))
                self.send_response(loki.code)
                self.end_headers()
                self.wfile.write(loki.answer.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def loki() -> Iterator[Loki]:
    made = Loki()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_lokis_lines_are_the_flows_own_and_the_password_goes_in_a_header_only(loki: Loki) -> None:
    lines = from_loki(f"http://u:secret@{loki.url}/base/", ["flow", 'no"} id'], 1.0, 2.0)
    assert [(line.service, line.level, line.event, line.text) for line in lines] == [
        ("shop", "INFO", "ORDER_SUBMIT", "Order submitted"),
        ("pay", "ERROR", "MY_OWN", "no \x1b[31m JSON"),
    ]
    assert lines[1].at == 1767435324
    [(path, query, credentials)] = loki.asked
    assert path == "/base/loki/api/v1/query_range"
    assert query["query"] == ['{service_name=~".+"} | correlation_id="flow"']
    assert (query["start"], query["end"]) == (["1000000000"], ["2000000000"])
    assert credentials == "Basic dTpzZWNyZXQ="


@pytest.mark.parametrize(
    ("code", "answer", "says"),
    [(500, "query too long", "refused: 500 query too long"), (200, "<html>", "cannot be asked"), (200, "{}", "'data'")],
)
def test_what_loki_refuses_is_one_line_without_a_password(loki: Loki, code: int, answer: str, says: str) -> None:
    loki.code, loki.answer = code, answer
    with pytest.raises(QuantumBusError, match="Loki at http://u:") as failed:
        from_loki(f"http://u:secret@{loki.url}", ["flow"], 1.0, 2.0)
    assert says in str(failed.value)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["localhost:3100", "file:///etc/passwd", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="give an address, as http://localhost:3100"):
        from_loki(url, ["flow"], 1.0, 2.0)
