"""Set-up of logging for a process: options checked once, pipeline chosen, standard library taken over."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Final, Literal

from quantum_bus import names
from quantum_bus.errors import ConfigurationError

from .active import active
from .capture import CaptureSink
from .descriptor import DescriptorSink
from .encode import SHORTEST_LIMIT, encode_record
from .fastpath import JsonPipeline
from .files import DEFAULT_BACKUPS, DEFAULT_MAX_BYTES, RotatingFile
from .forward import ForwardingPipeline
from .logger import Logger, service_logger
from .pipeline import Pipeline, RecordPipeline
from .sinks import Sink, Tee, sink_for
from .stdlib import Takeover, take_over
from .text import render_record

LogFormat = Literal["json", "text"]

# Loki takes lines up to 256 KiB; what is longer it refuses or cuts.
DEFAULT_MAX_RECORD_BYTES: Final = 256_000
_LONGEST_SERVICE: Final = 128


class _Installed:
    """What the last set-up has installed in the standard library; None before the first."""

    takeover: Takeover | None = None
    at_exit: bool = False


def setup_json_logging(
    service: str,
    level: str | int = "INFO",
    *,
    stream: IO[str] | IO[bytes] | None = None,
    path: str | os.PathLike[str] | None = None,
    format: LogFormat | None = None,  # noqa: A002 - what a user would call it
    max_bytes: int = DEFAULT_MAX_BYTES,
    backups: int = DEFAULT_BACKUPS,
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
    capture_warnings: bool = True,
    announce: bool = True,
) -> Logger:
    """Write the logs of this process as JSON lines, those of every standard library's logger included.

    Calling it again replaces the former set-up. Lines are written unbuffered: what a call has logged is out of the
    process when the call returns.

    Args:
        service: the service's name, on every line.
        level: records below it are not written: a name such as ``"INFO"``, or a number.
        stream: where lines go; standard output where neither a stream nor a path is given.
        path: a file lines go to (as well). Its folder is made. A second process that writes to the same path gets
            a file of its own beside it: ``svc.jsonl``, ``svc.2.jsonl``, …
        format: ``"json"``, or ``"text"`` for plain lines; the environment's ``QUANTUM_BUS_LOG_FORMAT`` where not given.
        max_bytes: how much one process keeps in its file and the rotated ones together, in bytes.
        backups: how many rotated files are kept (``svc.jsonl.1`` is the youngest); each file has an equal share.
        max_record_bytes: longest line; longer texts and larger objects are shortened, and marked.
        capture_warnings: log what the ``warnings`` module shows.
        announce: log ``SERVICE_STARTED``.

    Raises:
        ConfigurationError: an option cannot work, or the file cannot be opened.
    """
    threshold = _checked_level(level)
    _check(service, max_bytes, backups, max_record_bytes)
    text = _checked_format(format) == "text"
    limit = min(max_record_bytes, max_bytes // (backups + 1)) if path is not None else max_record_bytes

    former = active.pipeline
    former.release()
    sink = _sink(stream, path, max_bytes, backups)
    slow = RecordPipeline(service, threshold, sink, render_record if text else encode_record, limit)
    pipeline: Pipeline = slow if text else JsonPipeline(slow, service, sink, limit)

    active.install(pipeline)
    former.close()
    if _Installed.takeover is not None:
        _Installed.takeover.undo()
    _Installed.takeover = take_over(threshold, capture_warnings=capture_warnings)
    if not _Installed.at_exit:
        _Installed.at_exit = True
        atexit.register(flush_logging)

    logger = service_logger(service)
    if announce:
        _announce(logger)
    return logger


def flush_logging() -> None:
    """Tell of dropped lines that could not be told of yet. There is no buffer; this runs at exit by itself."""
    active.pipeline.flush()


def close_logging() -> None:
    """Undo :func:`setup_json_logging`: close what it opened and give the standard library its handlers back."""
    former = active.pipeline
    active.install(ForwardingPipeline())
    former.close()
    if _Installed.takeover is not None:
        _Installed.takeover.undo()
        _Installed.takeover = None


@contextmanager
def capture_logs(service: str = "test", level: str | int = "DEBUG") -> Iterator[CaptureSink]:
    """Keep what is logged in a block, by our loggers and the standard library's, in memory; for tests.

    ::

        with capture_logs() as logs:
            get_logger().info("Order accepted", event="ORDER_SUBMIT")
        assert logs.of("ORDER_SUBMIT")[0]["msg"] == "Order accepted"

    Behind the block the former set-up is in force again.
    """
    threshold = _checked_level(level)
    sink = CaptureSink()
    slow = RecordPipeline(service, threshold, sink, encode_record, DEFAULT_MAX_RECORD_BYTES)
    former = active.pipeline
    active.install(JsonPipeline(slow, service, sink, DEFAULT_MAX_RECORD_BYTES))
    takeover = take_over(threshold, capture_warnings=False)
    if _Installed.takeover is not None:
        logging.getLogger().removeHandler(_Installed.takeover.handler)
    try:
        yield sink
    finally:
        takeover.undo()
        if _Installed.takeover is not None:
            logging.getLogger().addHandler(_Installed.takeover.handler)
        active.install(former)


def _sink(
    stream: IO[str] | IO[bytes] | None, path: str | os.PathLike[str] | None, max_bytes: int, backups: int
) -> Sink:
    if stream is None and path is None:
        stream = sys.stdout
        if stream is None:
            raise ConfigurationError("this process has no standard output: give a stream or a path")
    if stream is not None and not callable(getattr(stream, "write", None)):
        raise ConfigurationError(
            f"stream={stream!r}: give something to write to, as sys.stderr; a file's name is path="
        )
    file = None
    if path is not None:
        try:
            file = DescriptorSink.for_file(RotatingFile(Path(path), max_bytes=max_bytes, backups=backups))
        except (OSError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"path={path!r} cannot be opened for writing ({error}); give a file in a folder this user may write to"
            ) from error
    if stream is None:
        assert file is not None
        return file
    return sink_for(stream) if file is None else Tee((sink_for(stream), file))


def _announce(logger: Logger) -> None:
    try:
        version = metadata.version("quantum-bus")
    except metadata.PackageNotFoundError:
        version = "unknown"
    logger.info(
        "Service started",
        event=names.EVENT_SERVICE_STARTED,
        pid=os.getpid(),
        python=platform.python_version(),
        quantum_bus=version,
    )


def _check(service: str, max_bytes: int, backups: int, max_record_bytes: int) -> None:
    if not isinstance(service, str) or not service.strip() or len(service) > _LONGEST_SERVICE:
        raise ConfigurationError(
            f"service={service!r}: name the service in 1 to {_LONGEST_SERVICE} characters, as 'auto_executor'"
        )
    _whole("backups", backups, 0)
    _whole("max_bytes", max_bytes, SHORTEST_LIMIT * (backups + 1))
    _whole("max_record_bytes", max_record_bytes, SHORTEST_LIMIT)


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name}={value!r}: give a whole number of {least:,} or more")


def _checked_level(level: str | int) -> int:
    known = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.strip().upper() in known:
        return known[level.strip().upper()]
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    raise ConfigurationError(f"level={level!r}: give one of {', '.join(known)}, or a number")


def _checked_format(given: str | None) -> str:
    wanted = os.environ.get(names.ENV_LOG_FORMAT) or "json" if given is None else given
    if not isinstance(wanted, str) or wanted.strip().lower() not in ("json", "text"):
        source = names.ENV_LOG_FORMAT if given is None else "format"
        raise ConfigurationError(f"{source}={wanted!r}: give 'json' or 'text'")
    return wanted.strip().lower()
