#!/usr/bin/env python
"""Receives what Alertmanager sends, in place of people: webhooks over HTTP, mails over SMTP."""

from __future__ import annotations

import argparse
import base64
import email
import email.policy
import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail, and the name and password that its sender showed."""

    message: EmailMessage
    login: tuple[str, str] | None

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        return "" if part is None else str(part.get_content())


@dataclass
class Notified:
    """Both servers; use it with `with`. `posted` holds the webhooks' bodies by path, `mails` the mails.

    `told` is called with a line for each.
    """

    http_port: int = 0
    smtp_port: int = 0
    told: Callable[[str], None] = lambda _: None
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    mails: list[Mail] = field(default_factory=list)

    def __enter__(self) -> Self:
        notified = self

        class Webhook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                notified.posted.append((self.path, body))
                names = sorted({alert["labels"]["alertname"] for alert in body["alerts"]})
                notified.told(f"webhook {self.path}: {body['status']} {', '.join(names)}")
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                """Say nothing: `told` does."""

        class Smtp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _converse(self, notified)

        self._servers: tuple[socketserver.BaseServer, ...] = (
            ThreadingHTTPServer((HOST, self.http_port), Webhook),
            socketserver.ThreadingTCPServer((HOST, self.smtp_port), Smtp),
        )
        self.http_port, self.smtp_port = (int(cast("Any", server).server_address[1]) for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _converse(smtp: socketserver.StreamRequestHandler, notified: Notified) -> None:
    """One SMTP session: what RFC 5321 asks of every receiver, and AUTH PLAIN of RFC 4954."""

    def say(text: str) -> None:
        smtp.wfile.write(text.encode() + b"\r\n")

    login = None
    say("220 notified")
    while line := smtp.rfile.readline().decode(errors="replace").strip():
        verb, _, rest = line.partition(" ")
        match verb.upper():
            case "EHLO":
                say("250-notified\r\n250 AUTH PLAIN")
            case "AUTH":
                _, name, password = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")
                login = (name, password)
                say("235 welcome")
            case "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP":
                say("250 well")
            case "DATA":
                say("354 go on, end with a dot")
                lines = []
                while (data := smtp.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(data[1:] if data.startswith(b".") else data)
                message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                mail = Mail(cast("EmailMessage", message), login)
                notified.mails.append(mail)
                notified.told(f"mail to {message['To']}: {message['Subject']}")
                say("250 taken")
            case "QUIT":
                say("221 bye")
                return
            case _:
                say("502 not known here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, required=True, metavar="PORT")
    parser.add_argument("--smtp", type=int, required=True, metavar="PORT")
    chosen = parser.parse_args()
    with Notified(chosen.http, chosen.smtp, told=lambda line: print(line, flush=True)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
