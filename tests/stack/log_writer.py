"""Services that log, as far as the pipeline can see: JSON lines into a file that is rotated by renaming."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROTATE_BYTES = 4_000_000
TICK_SECONDS = 0.01


@dataclass
class LogWriter:
    """Writes `count` numbered lines as `service`, at `per_second` or, without one, as fast as it can.

    Their times are those of writing; with `seconds_told` as if all had been written in so many seconds up to now.
    """

    folder: Path
    service: str
    count: int
    per_second: float | None = None
    seconds_told: float | None = None
    written: int = 0
    _last_us: int = 0
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> LogWriter:
        self._thread = threading.Thread(target=self.write_all, name=self.service, daemon=True)
        self._thread.start()
        return self

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def write_all(self) -> None:
        path = self.folder / f"{self.service}.jsonl"
        started = time.monotonic()
        file = path.open("ab", buffering=0)
        size = 0
        while self.written < self.count:
            due = self.count
            if self.per_second is not None:
                due = min(due, int((time.monotonic() - started) * self.per_second) + 1)
            lines = b"".join(self._line(sequence) for sequence in range(self.written, min(due, self.written + 1000)))
            file.write(lines)
            self.written = min(due, self.written + 1000)
            size += len(lines)
            if size > ROTATE_BYTES:
                file.close()
                self._rotate(path)
                file = path.open("ab", buffering=0)
                size = 0
            if self.per_second is not None:
                time.sleep(TICK_SECONDS)
        file.close()

    def _line(self, sequence: int) -> bytes:
        # Every line has a time of its own: a page of Loki's answer then never ends between two of one time.
        now = time.time_ns() // 1000
        if self.seconds_told is not None:
            now -= int(self.seconds_told * 1_000_000 * (1 - sequence / self.count))
        self._last_us = max(self._last_us + 1, now)
        fields = {
            "ts": datetime.fromtimestamp(self._last_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": "INFO",
            "service": self.service,
            "event": "ORDER_SUBMIT" if sequence % 2 else "LOG",
            "correlation_id": f"{sequence // 5:032x}",
            "msg": "Order submitted to the exchange by the writer",
            "symbol": "BTCUSDT",
            "order_id": f"order_{sequence}",
            "producer": self.service,
            "seq": sequence,
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    def _rotate(self, path: Path) -> None:
        rotated = sorted(self.folder.glob(f"{path.name}.*"), key=lambda old: -int(old.suffix[1:]))
        for old in rotated:
            old.rename(old.with_suffix(f".{int(old.suffix[1:]) + 1}"))
        path.rename(path.with_name(f"{path.name}.1"))
