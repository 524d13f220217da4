"""A disk that can be filled: a small tmpfs; where none may be mounted, a limit on how long a process's files may be."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

SIZE = 16 * 1024 * 1024
_BLOCK = b"\0" * 65536


class SmallDisk:
    """Attributes: folder: what is written here may find the disk full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
        self._mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
        self._ballast = folder / "ballast"

    def fill(self, pid: int) -> None:
        """Let process `pid` write nothing more."""
        if not self._mounted:
            # Redis is started through Python, which ignores the signal that would end it here
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            return
        with self._ballast.open("wb", buffering=0) as ballast:
            for block in (_BLOCK, b"\0"):
                try:
                    while ballast.write(block):
                        pass
                except OSError:
                    continue

    def empty(self, pid: int) -> None:
        """Let it write again."""
        if not self._mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return
        self._ballast.unlink()

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
