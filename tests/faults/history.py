"""What processes did, written down so that it survives them: one file of JSON lines for each process.

A line is written before an act and another one after it, each with a single `write` to a file opened with O_APPEND. So
whoever is killed in between leaves an act that began and did not end, and nothing that it had done before is lost.
`at` is CLOCK_MONOTONIC, which all processes of a machine share.

| what | says |
| --- | --- |
| `publish` | a message is about to be published, under this message id, correlation id and trace id |
| `published` | how that ended: `ok` with the entry's id, `failed`: it is not stored, or `unknown`: nobody knows |
| `begun` | a handler has begun: with everything that the message says of itself |
| `ended` | the handler's outcome: `return`, `raise` or `reject` |
| `over` | the process has ended as it should |
| `fault` | the scenario did something; until `fault over` |

A fault may say that it `loses` what was acknowledged before, that it `forgets` how often what was tried, which process
it `stops`, and that with it every lease `expires`.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

OK = "ok"
FAILED = "failed"
UNKNOWN = "unknown"

RETURN = "return"
RAISE = "raise"
REJECT = "reject"

Line = dict[str, Any]


class Effects(TypedDict, total=False):
    """What a fault may say of itself."""

    loses: bool
    forgets: bool
    stops: int
    expires: bool


class Recorder:
    """Appends to this process's own file. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._numbers = itertools.count(1)

    def write(self, what: str, **said: Any) -> None:
        line = {"what": what, "at": time.monotonic(), "pid": os.getpid(), **said}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def publish(self, message_id: str, correlation_id: str, trace_id: str) -> None:
        self.write("publish", message_id=message_id, correlation_id=correlation_id, trace_id=trace_id)

    def published(self, message_id: str, outcome: str, entry_id: str | None = None, error: str | None = None) -> None:
        self.write("published", message_id=message_id, outcome=outcome, entry_id=entry_id, error=error)

    def begun(self, **said: Any) -> int:
        """The number under which its end is to be told."""
        run = next(self._numbers)
        self.write("begun", run=run, **said)
        return run

    def ended(self, run: int, outcome: str) -> None:
        self.write("ended", run=run, outcome=outcome)

    @contextmanager
    def fault(self, name: str, **effects: Unpack[Effects]) -> Iterator[None]:
        """A fault while the block lasts; one that never ends is as bad as it can be."""
        number = next(self._numbers)
        self.write("fault", run=number, name=name, effects=effects)
        yield
        self.write("fault over", run=number)

    def close(self) -> None:
        os.close(self._file)


# --- read again --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publish:
    """One publish. `outcome` is `unknown` as well where its process died over it."""

    message_id: str
    correlation_id: str
    trace_id: str
    began: float
    ended: float | None = None
    outcome: str = UNKNOWN
    entry_id: str | None = None


@dataclass(frozen=True, slots=True)
class Handling:
    """One handler run. `outcome` is None where its process died, or was stopped, in it."""

    message_id: str
    entry_id: str
    stream: str
    group: str
    correlation_id: str
    trace_id: str
    context_id: str
    """What `get_correlation_id()` said in the handler."""
    attempt: int
    pid: int
    began: float
    ended: float | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    began: float
    ended: float
    loses: bool = False
    forgets: bool = False
    stops: int | None = None
    expires: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """Everything that was done, each kind in the order in which it began."""

    publishes: tuple[Publish, ...] = ()
    handlings: tuple[Handling, ...] = ()
    faults: tuple[Fault, ...] = field(default=())

    def outcomes(self, outcome: str) -> list[Publish]:
        return [publish for publish in self.publishes if publish.outcome == outcome]


def lines_of(folder: Path) -> list[Line]:
    """Every whole line of every process. The last one may have been cut off with its process."""
    lines: list[Line] = []
    for path in sorted(folder.glob("*.jsonl")):
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        lines += [json.loads(line) for line in whole.splitlines()]
    return sorted(lines, key=lambda line: line["at"])


def read_history(folder: Path) -> History:
    return history_of(lines_of(folder))


def history_of(lines: Iterable[Line]) -> History:
    """From lines in order of time."""
    publishes: dict[str, Line] = {}
    ends: dict[str, Line] = {}
    runs: dict[tuple[int, int], Line] = {}
    ended: dict[tuple[int, int], Line] = {}
    for line in lines:
        match line["what"]:
            case "publish":
                publishes[line["message_id"]] = line
            case "published":
                ends[line["message_id"]] = line
            case "begun" | "fault":
                runs[line["pid"], line["run"]] = line
            case "ended" | "fault over":
                ended[line["pid"], line["run"]] = line
    return History(
        publishes=tuple(_publish(line, ends.get(message_id)) for message_id, line in publishes.items()),
        handlings=tuple(_handling(line, ended.get(key)) for key, line in runs.items() if line["what"] == "begun"),
        faults=tuple(_fault(line, ended.get(key)) for key, line in runs.items() if line["what"] == "fault"),
    )


def _publish(line: Line, end: Line | None) -> Publish:
    return Publish(
        message_id=line["message_id"],
        correlation_id=line["correlation_id"],
        trace_id=line["trace_id"],
        began=line["at"],
        ended=end and end["at"],
        outcome=end["outcome"] if end else UNKNOWN,
        entry_id=end and end["entry_id"],
    )


def _handling(line: Line, end: Line | None) -> Handling:
    said = {key: line[key] for key in line.keys() - {"what", "at", "run"}}
    return Handling(**said, began=line["at"], ended=end and end["at"], outcome=end and end["outcome"])


def _fault(line: Line, end: Line | None) -> Fault:
    return Fault(line["name"], line["at"], end["at"] if end else float("inf"), **line["effects"])
