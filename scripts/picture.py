"""Pictures of what `quantum-bus demo` and `quantum-bus trace` print, for the README: `make picture`.

Both are run for real, in a pseudo-terminal and on a Redis of their own; what they print becomes SVG.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from quantum_bus.demo.redis_server import find_redis_server, start_redis

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 116


def printed(*arguments: str) -> str:
    """What a command prints to a terminal, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "quantum_bus", *arguments], stdout=theirs, stderr=subprocess.PIPE, env=env
    )
    os.close(theirs)
    read = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # its other end is closed
            break
        if not part:
            break
        read += part
    os.close(ours)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{arguments}: {process.returncode}: {errors.decode()}")
    return read.decode().replace("\r", "")


def picture(name: str, command: str, text: str) -> None:
    """Write ``docs/images/NAME.svg``."""
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(Text.from_ansi(text))
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.svg"
    path.write_text(console.export_svg(title=command, unique_id=name), encoding="utf-8")
    print(path.relative_to(ROOT))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, start_redis(find_redis_server()) as server:
        shown = printed("demo", "--dir", f"{folder}/demo")
        # Up to where it tells which files there are: they are in a folder that is gone soon.
        picture("demo", "quantum-bus demo", shown.partition("log files")[0].rstrip())
        told = json.loads(
            subprocess.run(
                [sys.executable, "-m", "quantum_bus", "demo", "--json", "--dir", f"{folder}/more", "--url", server.url],
                check=True, capture_output=True,
            ).stdout
        )  # fmt: skip
        logs = ["--logs", *told["files"].values()]
        found = told["correlation_id"]
        shown = printed("trace", found, "--url", server.url, *logs)
        picture("trace", f"quantum-bus trace {found} --logs logs/*.jsonl", shown.partition("not looked at")[0].rstrip())


if __name__ == "__main__":
    main()
