"""Log lines of a flow: from JSON files, or from Loki."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import orjson

from quantum_bus import names
from quantum_bus.config import masked_url
from quantum_bus.errors import ConfigurationError, QuantumBusError
from quantum_bus.flow import LogLine, log_line
from quantum_bus.propagation import valid_correlation_id

MOST_LINES: Final = 5_000
LOKI_SECONDS: Final = 30.0
# Loki refuses queries over more than its own limit, which is 30 days and an hour by default.
LOKI_BACK: Final = 30 * 86_400.0


def from_files(paths: Sequence[Path], correlation_ids: Iterable[str]) -> list[LogLine]:
    """The lines of these flows, the first ``MOST_LINES`` of them; what is no JSON line is passed over.

    Args:
        paths: ``-`` is standard input; of a folder its ``.jsonl`` files.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    wanted = {correlation_id: correlation_id.encode() for correlation_id in correlation_ids}
    found: list[LogLine] = []
    for path in _files(paths):
        try:
            if str(path) == "-":
                _add(found, sys.stdin.buffer, wanted)
            else:
                with path.open("rb") as file:
                    _add(found, file, wanted)
        except OSError as error:
            raise ConfigurationError(f"--logs {path}: {error.strerror or error}; name a file of JSON lines") from error
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.glob("*.jsonl"))
        else:
            yield path


def _add(found: list[LogLine], file: IO[bytes], wanted: dict[str, bytes]) -> None:
    for raw in file:
        if len(found) >= MOST_LINES:
            return
        if any(needle in raw for needle in wanted.values()):
            line = _parsed(raw)
            if line is not None and line.get(names.LOG_CORRELATION_ID) in wanted and (step := log_line(line)):
                found.append(step)


def _parsed(raw: bytes | str) -> dict[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def from_loki(url: str, correlation_ids: Iterable[str], began: float, ended: float) -> list[LogLine]:
    """The lines of these flows that Loki holds, the first ``MOST_LINES`` of them.

    Args:
        began, ended: seconds since 1970.

    Raises:
        ConfigurationError: that is no address.
        QuantumBusError: Loki does not answer, or refuses.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(f"--loki {masked_url(url)}: give an address, as http://localhost:3100")
    found: list[LogLine] = []
    for correlation_id in correlation_ids:
        if valid_correlation_id(correlation_id):  # so nothing of it can end the text in the query
            found += _ask(url, correlation_id, began, ended)
    return found[:MOST_LINES]


def _ask(url: str, correlation_id: str, began: float, ended: float) -> Iterator[LogLine]:
    parameters = {
        "query": f'{{service_name=~".+"}} | {names.LOG_CORRELATION_ID}="{correlation_id}"',
        "start": str(int(began * 1e9)),
        "end": str(int(ended * 1e9)),
        "limit": str(MOST_LINES),
        "direction": "forward",
    }
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/loki/api/v1/query_range?{urlencode(parameters)}"
    request = Request(address)  # noqa: S310 - http or https, see from_loki
    if credentials:
        import base64

        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    try:
        with urlopen(request, timeout=LOKI_SECONDS) as answer:  # noqa: S310 - as above
            told = json.load(answer)
        streams = told["data"]["result"]
    except HTTPError as error:
        with error:
            detail = error.read(300).decode(errors="replace")
        raise QuantumBusError(f"Loki at {masked_url(url)} refused: {error.code} {detail}") from error
    except (URLError, OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", error)
        raise QuantumBusError(f"Loki at {masked_url(url)} cannot be asked: {reason}") from error
    for stream in streams:
        labels = stream["stream"]
        for time_ns, text in stream["values"]:
            yield _of_loki(labels, int(time_ns), text)


def _of_loki(labels: dict[str, str], time_ns: int, text: str) -> LogLine:
    """A line as JSON, as the SDK wrote it; else what its labels and metadata say."""
    line = _parsed(text)
    step = log_line(line) if line is not None else None
    if step is not None:
        return step
    original = labels.get("event_original") or labels.get(names.LOG_EVENT) or names.DEFAULT_EVENT
    service = labels.get(names.LOG_SERVICE) or labels.get("service_name") or ""
    return LogLine(time_ns / 1e9, service, labels.get(names.LOG_LEVEL, ""), original, text)


__all__ = ["MOST_LINES", "from_files", "from_loki"]
