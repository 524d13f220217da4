"""A sink on a file descriptor: one system call a line, and what to do when that fails."""

from __future__ import annotations

import math
import os
import select
import stat
import threading
import time
import weakref
from typing import IO, Final

from .files import RotatingFile
from .notices import Write, no_notice, records_dropped

# How long one write may wait for the reader of a full pipe, in seconds. Once that has passed, lines are dropped
# without waiting until the reader reads again.
WRITE_TIMEOUT: Final = 0.5
# What POSIX promises a pipe takes in one piece, and what a pipe that polls as writable takes without blocking.
_PIPE_CHUNK: Final = 4096
# Seconds between attempts to write to a non-blocking descriptor that cannot be polled.
_BETWEEN_ATTEMPTS: Final = 0.001

_write = os.write


class DescriptorSink:
    """Writes each line with one ``os.write`` to a file descriptor: a stream's, or that of a file of its own.

    The ordinary write takes no lock: the kernel keeps the lines of threads apart (each is one append). Everything else
    does: rotation, pipes (whose lines over 4,096 bytes take several writes), and whatever follows a failure. After a
    partial write, as on a full disk, the next line starts with a line end, so that only the torn one is lost.

    Since another thread may be about to write to it, the descriptor keeps its number for life: another file is put
    under it with ``dup2``, and it is closed when no thread can know it any more.
    """

    __slots__ = (
        "__weakref__", "_closed", "_dropped", "_fd", "_file", "_lock", "_may_block", "_owned", "_poll", "_room",
        "_stale", "_stalled", "_torn", "_unreported", "notice", "write_timeout",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        *,
        owned: bool,
        file: RotatingFile | None = None,
    ) -> None:
        self.notice: Write = no_notice
        self.write_timeout = WRITE_TIMEOUT
        self._lock = threading.RLock()  # a signal handler or finalizer may log while its thread is writing
        self._fd = fd
        self._owned = owned
        self._file = file
        self._closed = False
        self._dropped = 0
        self._unreported = 0
        self._torn = file is not None and file.torn
        self._stale = False
        self._stalled = False
        self._may_block = _may_block(fd)
        self._poll: select.poll | None = None
        # Bytes that may be written before _write_carefully must look again; below zero it looks each time.
        self._room: float = -1
        if owned:
            weakref.finalize(self, os.close, fd).atexit = False

    @classmethod
    def for_stream(cls, stream: IO[str] | IO[bytes]) -> DescriptorSink:
        """For a stream with a descriptor.

        The standard streams' own is used, so that redirecting them still works. Of any other a duplicate, which
        nobody else can close, and reopen as something else. So closing the stream as a Python object stops nothing.

        Raises:
            AttributeError, OSError, TypeError, ValueError: the stream has no descriptor, or is closed.
        """
        fd = stream.fileno()
        if stream.closed:
            raise ValueError("the stream is closed")
        stream.flush()
        standard = fd in (1, 2)
        return cls(fd if standard else os.dup(fd), owned=not standard)

    @classmethod
    def for_file(cls, file: RotatingFile) -> DescriptorSink:
        """For a file that is opened, rotated and closed by this sink.

        Raises:
            OSError: the file cannot be opened.
        """
        return cls(file.open(), owned=True, file=file)

    @property
    def dropped(self) -> int:
        """Lines lost since the sink was made."""
        return self._dropped

    def write(self, line: bytes) -> None:
        """Write one line; drop and count it where that fails."""
        room = self._room - len(line)
        if room < 0:
            with self._lock:
                self._write_carefully(line)
            return
        self._room = room
        try:
            written = _write(self._fd, line)
        except OSError:
            written = 0
        if written != len(line):
            with self._lock:
                self._settle(b"", line, written + self._push(line[written:]))

    def flush(self) -> None:
        """Tell of dropped lines, if they can be told of by now. There is no buffer to empty."""
        with self._lock:
            if self._unreported and not self._closed:
                self._write_carefully(b"")

    def release(self) -> None:
        """Let another sink of this process take over the file; this one may write on until it is closed."""
        if self._file is not None and not self._stale:
            self._file.unlock(self._fd)

    def close(self) -> None:
        """Let go of the file or the duplicate; a standard stream stays open."""
        self.flush()
        with self._lock:
            self._closed = True
            self._room = -1
            self.notice = no_notice  # made by the pipeline, which holds this sink: a cycle would keep the descriptor
            if self._owned:
                self._let_go()

    def after_fork(self) -> None:
        """A child writes a file of its own; a stream it shares with its parent, as any child does."""
        self._lock = threading.RLock()
        self._poll = None
        self._room = -1
        if self._file is not None and not self._closed:
            self._let_go()
            self._stale = True
            self._unreported = 0

    def _let_go(self) -> None:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
        except OSError:
            return
        os.dup2(nowhere, self._fd, inheritable=False)
        os.close(nowhere)

    def _write_carefully(self, line: bytes) -> None:
        """Everything the ordinary write leaves out: rotation, recovery, pipes, closed streams."""
        notice = self.notice(records_dropped(self._unreported)) if self._unreported else b""
        if self._closed or not self._ready(1 + len(notice) + len(line)):
            self._lost(line)
            return
        before = b"\n" + notice if self._torn else notice
        self._settle(before, line, self._push(before + line))

    def _settle(self, before: bytes, line: bytes, written: int) -> None:
        """Draw the consequences of a write: of ``before`` and ``line`` together, ``written`` bytes got through."""
        if written:
            self._torn = (before + line)[written - 1] != 0x0A
        if written >= len(before):
            self._unreported = 0
        if written < len(before) + len(line):
            self._lost(line)
        elif self._may_block:
            self._room = -1
        else:
            self._room = math.inf if self._file is None else self._file.took(written)

    def _lost(self, line: bytes) -> None:
        if line:  # not a mere flush
            self._dropped += 1
            self._unreported += 1
        self._room = -1

    def _ready(self, size: int) -> bool:
        """Make the file ready for ``size`` more bytes."""
        if self._file is None:
            return True
        try:
            fd = self._file.open() if self._stale else self._file.make_room(self._fd, size, self.notice)
        except OSError:
            return False
        if fd != self._fd:
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
            self._stale = False
            self._torn = self._file.torn
        return True

    def _push(self, data: bytes) -> int:
        """Write as much of ``data`` as the descriptor takes in time; how much that was."""
        view = memoryview(data)
        deadline = time.monotonic() + (0 if self._stalled else self.write_timeout)
        written = 0
        while written < len(view):
            chunk = view[written : written + _PIPE_CHUNK] if self._may_block else view[written:]
            try:
                if self._may_block and not self._writable(deadline):
                    break
                count = _write(self._fd, chunk)
            except BlockingIOError:  # a non-blocking descriptor of another kind than those that are polled
                if time.monotonic() >= deadline:
                    break
                time.sleep(_BETWEEN_ATTEMPTS)
                continue
            except OSError:
                break
            written += count
            if not count:
                break
        return written

    def _writable(self, deadline: float) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)
        events = self._poll.poll(0) or self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        self._stalled = not events
        return bool(events)


def _may_block(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))
