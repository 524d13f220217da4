"""Dead letters as ``quantum-bus dlq`` shows them.

What stands in them is others': it is shown with control characters as escapes, so that none reaches a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
from rich.table import Table
from rich.text import Text

from quantum_bus import propagation
from quantum_bus.cli import message_view
from quantum_bus.deadletters import DeadLetter
from quantum_bus.envelope import Incoming, timestamp
from quantum_bus.jsonlog.escape import escaped, visible

# Characters of an error's text in the table, and of any other text there.
SHOWN_ERROR: Final = 80
SHOWN_TEXT: Final = 64

__all__ = ["as_line", "lines", "question", "summary", "table", "visible"]


def table(letters: Sequence[DeadLetter]) -> Table:
    """One row a dead letter."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("id", no_wrap=True)
    shown.add_column("when", no_wrap=True)
    for name in ("event", "correlation id", "group"):
        shown.add_column(name, overflow="fold")
    shown.add_column("runs", justify="right")
    shown.add_column("reason", overflow="fold")
    shown.add_column("error", overflow="fold")
    for letter in letters:
        shown.add_row(
            letter.id,
            _when(letter)[:19] + "Z",
            *(_cell(text) for text in (letter.message.event, letter.message.correlation_id, letter.group)),
            "" if letter.attempts is None else str(letter.attempts),
            _cell(letter.reason),
            Text(_cut(_error(letter), SHOWN_ERROR)),
        )
    return shown


def _cell(text: str | None) -> Text:
    return Text(_cut(visible(text or ""), SHOWN_TEXT))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _error(letter: DeadLetter) -> str:
    return visible(": ".join(text for text in (letter.error_type, letter.error_message) if text))


def _when(letter: DeadLetter) -> str:
    """When it was dead-lettered; an id that was written by hand may name no time that a calendar has."""
    try:
        return timestamp(letter.time_ms / 1000)
    except (ValueError, OverflowError, OSError):
        return letter.id


def as_line(letter: DeadLetter, *, full: bool = False) -> str:
    """One JSON object on one line; ``full`` with the stack and the message's own fields as they are."""
    message = letter.message
    shown: dict[str, Any] = {
        "id": letter.id,
        "time": _when(letter),
        "stream": letter.stream,
        "entry_id": letter.entry_id,
        "group": letter.group,
        "consumer": letter.consumer,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error_message": letter.error_message,
        "first_failed_at": letter.first_failed_at,
        "last_failed_at": letter.last_failed_at,
        **message_view.fields(message),
        "span": letter.span,
        "data": _data(message),
    }
    if full:
        shown["stack"] = letter.stack
        shown["packed"] = letter.packed
        shown["fields"] = [list(pair) for pair in _pairs(letter)]
    return escaped(orjson.dumps(shown)).decode()


def _data(message: Incoming) -> Any:
    """The payload for orjson, which reads deeper nesting than it writes."""
    try:
        orjson.dumps(message.data)
    except orjson.JSONEncodeError:
        return orjson.Fragment(message_view.on_one_line(message))
    return message.data


def lines(letter: DeadLetter) -> Iterator[str]:
    """Everything, for people."""
    message = letter.message
    rows = (
        ("dead letter", letter.id),
        ("dead since", _when(letter)),
        ("message", f"{message.message_id}, entry {letter.entry_id or 'unknown'} of {letter.stream or 'unknown'}"),
        ("event", message.event),
        ("key", message.key),
        ("correlation id", message.correlation_id),
        ("causation id", message.causation_id),
        ("published", f"{message.ts or 'at an unknown time'}, by {message.service or 'an unknown service'}"),
        ("traceparent", propagation.format_traceparent(message.context)),
        ("failing span", letter.span),
        ("group", letter.group),
        ("consumer", letter.consumer),
        ("handler runs", None if letter.attempts is None else str(letter.attempts)),
        ("reason", letter.reason),
        ("first failed", letter.first_failed_at),
        ("last failed", letter.last_failed_at),
        ("error", _error(letter)),
    )
    for name, value in rows:
        if value:
            yield f"{name:<16}{visible(value)}"
    for name, value in message.headers.items():
        yield f"{'header':<16}{visible(name)}: {visible(value)}"
    yield ""
    if message.reason is None:
        yield "payload"
        # visible() would escape the quotes as well; in what orjson has written nothing else is left to escape
        pretty = escaped(orjson.dumps(_data(message), option=orjson.OPT_INDENT_2)).decode()
        yield from (f"  {line}" for line in pretty.split("\n"))
    else:
        yield f"payload: {visible(message.detail or message.reason)}"
        yield f"  {visible(message.raw.decode(errors='backslashreplace'))}"
    if letter.stack:
        yield ""
        yield "stack"
        yield from (f"  {visible(line)}" for line in letter.stack.rstrip("\n").split("\n"))
    yield ""
    yield f"fields, as they stood in the stream{' (packed, being so many)' if letter.packed else ''}"
    for name, value in _pairs(letter):
        yield f"  {visible(name)}: {visible(value)}"


def _pairs(letter: DeadLetter) -> Iterator[tuple[str, str]]:
    texts = [value.decode(errors="backslashreplace") for value in letter.fields]
    return zip(texts[::2], texts[1::2], strict=True)


def question(what: str, planned: Counter[str]) -> str:
    """What is asked before anything is changed; the key '' stands for those that cannot be given back."""
    places = [f"{count:,} → {visible(key)}" for key, count in sorted(planned.items()) if key]
    refused = f" ({planned['']:,} that cannot be are left)" if planned[""] else ""
    return f"{what}: {', '.join(places) or 'none'}{refused}?"


def summary(did: str, done: Counter[str], gone: int, failed: int) -> str:
    """What was done, in one line."""
    places = ", ".join(f"{count:,} → {visible(key)}" for key, count in sorted(done.items()))
    text = f"{did} {done.total():,} {'dead letter' if done.total() == 1 else 'dead letters'}"
    if len(done) > 1 or (done and did.endswith(("replay", "replayed"))):
        text += f": {places}"
    if gone:
        text += f"; {gone:,} had gone meanwhile"
    if failed:
        text += f"; {failed:,} left, see above"
    return text
