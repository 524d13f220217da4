"""Asks a service's probe, where there is no curl: for health checks of containers and units.

::

    python -m quantum_bus.probe http://127.0.0.1:8080/readyz
    python -m quantum_bus.probe --wait 30 http://127.0.0.1:8080/readyz     # until it is, 30 seconds at the most

Prints the answer. The exit code is 0 where it is well, 1 where it is not or does not answer, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

DEFAULT_TIMEOUT: Final = 3.0
AGAIN_SECONDS: Final = 0.2
_MOST_BYTES: Final = 65_536
_FIRST_NOT_WELL: Final = 300
_LEAST_SECONDS: Final = 0.001


def ask(url: str, *, timeout: float) -> tuple[bool, str]:
    """Whether it answers that all is well, and what it answers.

    Args:
        timeout: seconds that each step of it may take.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return answer.status < _FIRST_NOT_WELL, answer.read(_MOST_BYTES).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{url} does not answer: {str(error) or type(error).__name__}"
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m quantum_bus.probe", description="Ask a service's probe.")
    parser.add_argument("url", type=_url, help="as http://127.0.0.1:8080/readyz")
    parser.add_argument("--timeout", type=_seconds, default=DEFAULT_TIMEOUT, help="seconds to answer (%(default)s)")
    parser.add_argument(
        "--wait", type=_seconds, default=0.0, help="seconds to ask again until all is well (%(default)s)"
    )
    chosen = parser.parse_args(arguments)
    until = time.monotonic() + chosen.wait
    while True:
        well, told = ask(chosen.url, timeout=max(chosen.timeout, _LEAST_SECONDS))
        if well or time.monotonic() >= until:
            break
        time.sleep(AGAIN_SECONDS)
    (sys.stdout if well else sys.stderr).write(f"{told}\n")
    return 0 if well else 1


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        right = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text!r} is none; give one as http://127.0.0.1:8080/readyz")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds, as 3")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
