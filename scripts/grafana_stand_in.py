#!/usr/bin/env python
"""Stands in for Grafana where it is not installed: its health and its list of data sources, and nothing else.

`make stack` and the tests ask `scripts/log_status.sh` with it. As Grafana does, it tells its data sources only to who
shows a token.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-file", type=Path, required=True, help="the token that is to be shown")
    parser.add_argument("--loki", metavar="URL", help="of its data source; none: it has no Loki")
    parser.add_argument("--prometheus", metavar="URL", required=True, help="of its other one")
    chosen = parser.parse_args()
    token = chosen.token_file.read_text().strip()
    sources = [{"id": 1, "uid": "prometheus", "name": "Prometheus", "type": "prometheus", "url": chosen.prometheus}]
    if chosen.loki:
        sources.append({"id": 2, "uid": "loki", "name": "Loki", "type": "loki", "url": chosen.loki})

    class StandIn(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/health":
                self.answer(200, {"database": "ok", "version": "stand-in", "commit": ""})
            elif self.path != "/api/datasources":
                self.answer(404, {"message": "Not found"})
            elif self.headers["Authorization"] != f"Bearer {token}":
                self.answer(401, {"message": "Unauthorized"})
            else:
                self.answer(200, sources)

        def answer(self, status: int, told: object) -> None:
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            """Say nothing."""

    ThreadingHTTPServer((HOST, chosen.port), StandIn).serve_forever()


if __name__ == "__main__":
    main()
