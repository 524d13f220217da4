"""One process's log file: claimed, rotated by rename, kept below a number of bytes.

``svc.jsonl`` is renamed to ``svc.jsonl.1`` and so on; a reader that follows the inode misses nothing. Each process
holds a lock (``flock``) on the file it writes. Who finds ``svc.jsonl`` locked takes ``svc.2.jsonl``, the next one
``svc.3.jsonl``; names of processes that ended are used again, so that restarts do not fill the disk.

A file that is full ends with a line that says how many it holds: see :mod:`quantum_bus.jsonlog.notices`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

from .notices import Chain, Write, count_lines

DEFAULT_MAX_BYTES: Final = 100 * 1024 * 1024
DEFAULT_BACKUPS: Final = 9

_SLOTS: Final = 1000
_LOCK_ATTEMPTS: Final = 20
# How many bytes may be written before it is checked whether the file still has its name.
_CHECK_EVERY: Final = 65_536
# What is kept free for the closing line, beside the names in it.
_CLOSING_BYTES: Final = 640


class RotatingFile:
    """The file behind a sink; the sink's lock guards it.

    Attributes:
        path: the file this process writes now.
        torn: whether the file, when it was opened, ended inside a line.
    """

    __slots__ = ("_backups", "_chain", "_file_bytes", "_max_bytes", "_regular", "_size", "_wanted", "path", "torn")

    def __init__(self, path: Path, *, max_bytes: int, backups: int) -> None:
        self._wanted = path
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file_bytes = max_bytes // (backups + 1)
        self._size = 0
        self._regular = True
        self._chain = Chain.new()
        self.torn = False

    def open(self) -> int:
        """Claim the first free name and open it for appending; the descriptor.

        Raises:
            OSError: no file can be opened there.
        """
        self.torn = False
        if self._wanted.exists() and not stat.S_ISREG(self._wanted.stat().st_mode):
            self._regular = False  # /dev/null, a named pipe: nothing to lock or to rotate
            self.path = self._wanted
            return os.open(self._wanted, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        fd = self._claim()
        self._size = os.fstat(fd).st_size
        self.torn = self._size > 0 and os.pread(fd, 1, self._size - 1) != b"\n"
        self._chain = Chain.after(self._backup(1))
        self._prune()
        return fd

    def make_room(self, fd: int, size: int, notice: Write) -> int:
        """A descriptor that ``size`` more bytes may go to: ``fd``, or one of another file to take its place."""
        if not self._regular:
            return fd
        try:
            if self._has_name(fd):
                if not self._size or self._size + size <= self._full_at:
                    return fd
                self._shift()
                self._end(fd, notice)
            return self.open()
        except OSError:
            return fd  # no descriptor free, or the folder refuses: an overlong file is better than no log

    def took(self, size: int) -> float:
        """Count what was written; how much more may be, before :meth:`make_room` is to be asked again."""
        if not self._regular:
            return float("inf")
        self._size += size
        return max(0, min(self._full_at - self._size, _CHECK_EVERY))

    def unlock(self, fd: int) -> None:
        """Give up the claim on the name."""
        if self._regular:
            _flock(fd, exclusive=False)

    @property
    def _full_at(self) -> int:
        return self._file_bytes - _CLOSING_BYTES

    def _end(self, fd: int, notice: Write) -> None:
        """Write the line that closes a file. Renamed before: where that fails, the file is written on."""
        try:
            lines = count_lines(fd)
            line = notice(self._chain.file_closed(self.path.name, lines))
            if os.pread(fd, 1, self._size - 1) != b"\n":
                line = b"\n" + line
            if self._size + len(line) <= self._file_bytes:  # else these lines are not stated, nor missed
                os.write(fd, line)
        except OSError:
            return  # a full disk: the next file says to belong to a new chain

    def _has_name(self, fd: int) -> bool:
        status = os.fstat(fd)
        self._size = status.st_size
        try:
            named = self.path.stat()
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)

    def _shift(self) -> None:
        if not self._backups:
            self.path.unlink()
            return
        for number in range(self._backups - 1, 0, -1):
            if self._backup(number).exists():
                self._backup(number).replace(self._backup(number + 1))
        self.path.replace(self._backup(1))

    def _prune(self) -> None:
        """Remove the oldest rotated files until all of them and a full current one are within the limit."""
        left = self._max_bytes - max(self._file_bytes, self._size)
        number = 0
        while (backup := self._backup(number := number + 1)).exists() or number <= self._backups:
            try:
                left -= backup.stat().st_size
                if number > self._backups or left < 0:
                    backup.unlink()
            except FileNotFoundError:
                continue
            except OSError:
                break

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _claim(self) -> int:
        for slot in range(1, _SLOTS):
            path = self._wanted if slot == 1 else self._named(str(slot))
            try:
                fd = _open_locked(path)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
                break  # a file system without locks: only a name nobody else has is safe
            self.path = path
            return fd
        self.path = self._named(str(os.getpid()))
        return _open(self.path)

    def _named(self, infix: str) -> Path:
        return self._wanted.with_name(f"{self._wanted.stem}.{infix}{self._wanted.suffix}")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _open_locked(path: Path) -> int:
    """Open and lock.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    for _ in range(_LOCK_ATTEMPTS):
        fd = _open(path)
        try:
            _flock(fd, exclusive=True)
            # Its former owner may have renamed it between our open and our lock.
            status, named = os.fstat(fd), path.stat()
            if (status.st_dev, status.st_ino) == (named.st_dev, named.st_ino):
                return fd
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
    raise BlockingIOError(errno.EWOULDBLOCK, "renamed again and again", str(path))


def _flock(fd: int, *, exclusive: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_UN)
