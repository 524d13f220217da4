"""The machine and the versions a run was made with; nothing that names the machine or its folders."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "redis",
    "hiredis",
    "uvloop",
    "orjson",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-redis",
    "faststream",
    "taskiq-redis",
    "taskiq",
    "structlog",
    "python-json-logger",
    "loguru",
)


def described() -> str:
    """Processor, cores and system, in a line."""
    cores = f"{os.cpu_count()} cores"
    return f"{processor()}, {cores}, {platform.system()} {platform.release().split('-')[0]}"


def processor() -> str:
    """As the kernel calls it; the architecture where it does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def versions(redis_server: str) -> dict[str, str]:
    """Of everything that was measured, by name."""
    return {
        "CPython": platform.python_version(),
        "Redis": redis_server,
        **{name: metadata.version(name) for name in PACKAGES},
    }
