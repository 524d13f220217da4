"""Where lines go. A sink takes whole lines, never raises, never waits long, and counts what it had to drop.

Nothing is buffered: a line that :meth:`Sink.write` has taken is the kernel's, and survives a SIGKILL of the process.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable
from typing import IO, Any, Protocol

from .descriptor import DescriptorSink
from .notices import Write, no_notice, records_dropped


class Sink(Protocol):
    """Takes lines from any thread.

    Attributes:
        dropped: lines lost since the sink was made.
        notice: makes the lines the sink itself writes. One says how many were lost, before the first line that gets
            through again.
    """

    notice: Write

    @property
    def dropped(self) -> int: ...

    def write(self, line: bytes) -> None:
        """Write one line, its line end included. Never raises."""

    def flush(self) -> None:
        """Hand on what is still held. Never raises."""

    def release(self) -> None:
        """Let another sink of this process take over the file; this one may write on until it is closed."""

    def close(self) -> None:
        """Close what the sink itself has opened; lines written afterwards are dropped."""

    def after_fork(self) -> None:
        """Called in the child of a fork, before anything is written there."""


class StreamSink:
    """Writes to an object that has no descriptor: ``io.StringIO``, a test's capture, a wrapper."""

    __slots__ = ("_busy", "_dropped", "_lock", "_stream", "_text", "_unreported", "notice")

    def __init__(self, stream: IO[str] | IO[bytes]) -> None:
        self.notice: Write = no_notice
        self._lock = threading.RLock()
        self._stream: IO[Any] = stream
        self._text = not isinstance(stream, (io.RawIOBase, io.BufferedIOBase))
        self._busy = False
        self._dropped = 0
        self._unreported = 0

    @property
    def dropped(self) -> int:
        """Lines lost since the sink was made."""
        return self._dropped

    def write(self, line: bytes) -> None:
        """Write one line and flush the stream; drop and count it where that fails."""
        with self._lock:
            if self._busy:  # the stream itself logs: its line would come back here for ever
                self._drop()
                return
            self._busy = True
            try:
                if self._unreported:
                    self._put(self.notice(records_dropped(self._unreported)))
                    self._unreported = 0
                self._put(line)
            except Exception:  # noqa: BLE001 - a foreign stream may raise anything; a logger may not
                self._drop()
            finally:
                self._busy = False

    def flush(self) -> None:
        """Nothing is held: each line is flushed as it is written."""

    def release(self) -> None:
        """There is no file."""

    def close(self) -> None:
        """Nothing was opened here."""

    def after_fork(self) -> None:
        """A lock held by another thread of the parent would never be released in the child."""
        self._lock = threading.RLock()
        self._busy = False

    def _drop(self) -> None:
        self._dropped += 1
        self._unreported += 1

    def _put(self, line: bytes) -> None:
        if self._text:
            text = line.decode()
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(_ascii(text))
        else:
            self._stream.write(line)
        self._stream.flush()


class Tee:
    """Writes each line to several sinks."""

    __slots__ = ("_sinks",)

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    @property
    def notice(self) -> Write:
        """The sinks' common notice."""
        return self._sinks[0].notice

    @notice.setter
    def notice(self, notice: Write) -> None:
        for sink in self._sinks:
            sink.notice = notice

    @property
    def dropped(self) -> int:
        """Lines lost, counted for each sink that lost them."""
        return sum(sink.dropped for sink in self._sinks)

    def write(self, line: bytes) -> None:
        """Write one line to each sink; the failure of one does not concern the others."""
        for sink in self._sinks:
            sink.write(line)

    def flush(self) -> None:
        """Flush each sink."""
        for sink in self._sinks:
            sink.flush()

    def release(self) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink.release()

    def close(self) -> None:
        """Close each sink."""
        for sink in self._sinks:
            sink.close()

    def after_fork(self) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink.after_fork()


def sink_for(stream: IO[str] | IO[bytes]) -> DescriptorSink | StreamSink:
    """The fastest sink a stream allows."""
    try:
        return DescriptorSink.for_stream(stream)
    except (AttributeError, OSError, TypeError, ValueError):  # no descriptor, or none that works
        return StreamSink(stream)


def _ascii(text: str) -> str:
    """A line for a stream whose encoding lacks some of its characters."""
    try:
        return json.dumps(json.loads(text), separators=(",", ":")) + "\n"
    except ValueError:  # a plain line
        return text.encode("ascii", "backslashreplace").decode()
