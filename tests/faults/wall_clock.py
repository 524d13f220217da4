"""Another time of day for one server: libfaketime, preloaded, reads from a file by how much it is off."""

from __future__ import annotations

from pathlib import Path

import pytest


class WallClock:
    """Set with `set` while the server runs. Attributes: environment: to start the server with."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0.0)
        self.environment = {
            # with the C library's malloc before the server's own, which asks for the time before it can be told
            "LD_PRELOAD": f"{_library()} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set does not change how time passes
            "DONT_FAKE_MONOTONIC": "1",  # the same, as older versions have it
        }

    def set(self, seconds: float) -> None:
        """So much ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.0f}\n", encoding="ascii")
        new.replace(self._file)  # it is read at any moment


def _library() -> Path:
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
        for found in (
            *Path(folder).glob("*/faketime/libfaketime.so.1"),
            *Path(folder).glob("faketime/libfaketime.so.1"),
        ):
            return found
    pytest.fail(
        "libfaketime is not here: install it with `apt-get install libfaketime`, which `make system-packages` does"
    )
