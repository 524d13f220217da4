"""A flow as ``quantum-bus trace`` shows it: a tree for people, an object for programs, and what was not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.text import Text
from rich.tree import Tree

from quantum_bus import names, propagation
from quantum_bus.cli.figures import duration
from quantum_bus.cli.flow_tree import Branch, Step, draw, logged, sent, shown
from quantum_bus.envelope import timestamp
from quantum_bus.flow import Flow, Hop, LogLine, Message, Outcome, walk
from quantum_bus.found import Found, Looked
from quantum_bus.jsonlog.escape import visible
from quantum_bus.sightings import Run

_STYLES: Final = {
    Outcome.HANDLED: "green",
    Outcome.SKIPPED: "dim",
    Outcome.UNKNOWN: "dim",
    Outcome.PENDING: "yellow",
    Outcome.DELAYED: "yellow",
    Outcome.WAITING: "yellow",
    Outcome.RETRYING: "yellow",
    Outcome.DEAD: "bold red",
}
_OF_FLOW: Final = {
    None: "no group reads it",
    Outcome.HANDLED: "handled",
    Outcome.SKIPPED: "handled",
    Outcome.UNKNOWN: "given to every group; not every outcome is on record",
    Outcome.PENDING: "being handled",
    Outcome.DELAYED: "a message of it waits for its time",
    Outcome.WAITING: "waits for a group",
    Outcome.RETRYING: "waits for another attempt",
    Outcome.DEAD: "a message of it is dead",
}
_ENDED: Final = {
    names.OUTCOME_ACK: "handled in",
    names.OUTCOME_RETRY: "failed after",
    names.OUTCOME_DEAD_LETTER: "failed for good after",
    names.OUTCOME_SKIP: "skipped",
}
# A wait above this is a gap worth seeing, seconds.
GAP: Final = 1.0


def summary(flow: Flow) -> Text:
    """The flow in one line."""
    messages, services = len(flow.messages), len(flow.services)
    text = Text(f"{messages:,} {'message' if messages == 1 else 'messages'}, ")
    text.append(f"{services:,} {'service' if services == 1 else 'services'}")
    if flow.began is not None and flow.ended is not None:
        text.append(f", {duration(flow.ended - flow.began)} from {_time(flow.began)}")
    text.append(": ")
    return text.append(_OF_FLOW[flow.outcome], _STYLES.get(flow.outcome, "") if flow.outcome else "")


def tree(flow: Flow, now: float) -> Tree:
    """One branch a service and group; times are since the flow began.

    Args:
        now: Redis's time, seconds since 1970.
    """
    title = Text("correlation_id ")
    for number, correlation_id in enumerate(flow.correlation_ids or ["none"]):
        title.append(", " if number else "").append(shown(correlation_id), "bold cyan")
    return draw(title, _branches(flow, now))


def _branches(flow: Flow, now: float) -> list[Branch]:
    began = flow.began
    made: dict[int, Branch] = {}
    for _, hop in reversed(list(walk(flow.roots))):  # what follows from a hop is made before it
        made[id(hop)] = Branch(hop.service, _note(hop, now), list(_steps(hop, made, began, now)))
    return [made[id(hop)] for hop in flow.roots]


def _steps(hop: Hop, made: dict[int, Branch], began: float | None, now: float) -> Iterator[Step]:
    lines: list[tuple[float, Step]] = []
    if len(hop.runs) > 1 or any(run.outcome != names.OUTCOME_ACK for run in hop.runs):
        previous: Run | None = None
        for run in hop.runs:
            at = run.ended if run.started is None else run.started
            lines.append((at, Step(_since(at, began), _attempt(run, previous))))
            previous = run
    for step in hop.steps:
        at = float("inf") if step.at is None else step.at
        if isinstance(step, LogLine):
            lines.append((at, Step(_since(at, began), logged(step.event, step.text, step.level))))
        else:
            below = [made[id(following)] for following in step.hops]
            lines.append((at, Step(_since(step.at, began), _sent(step, now), below)))
    lines.sort(key=lambda line: line[0])
    for _, line in lines:
        yield line


def _since(at: float | None, began: float | None) -> float | None:
    return None if at is None or began is None else at - began


def _attempt(run: Run, previous: Run | None) -> Text:
    words = _ENDED[run.outcome]
    text = words if run.started is None else f"{words} {duration(run.duration)}"
    line = logged(f"attempt {run.attempt}", text, "" if run.outcome == names.OUTCOME_ACK else "WARNING")
    if previous is not None and run.started is not None and (gap := run.started - previous.ended) > 0:
        line.append(f", {duration(gap)} later", "yellow" if gap > GAP else "dim")
    return line


def _sent(message: Message, now: float) -> Text:
    text = sent(message.stream, message.entry_id, message.event or "")
    if message.delayed:
        when = "" if message.due is None else f", due in {duration(max(0.0, message.due - now))}"
        text.append(f"  delayed{when}", "yellow")
    if message.replayed:
        text.append("  given back from the dead letters", "yellow")
    if message.incoming is None:
        text.append("  the entry itself is gone", "dim")
    if message.cause_missing:
        text.append(f"  its cause {shown(message.caused_by or '')} was not seen", "dim")
    if message.matched:
        text.append("  ◀", "bold cyan")
    return text


def _note(hop: Hop, now: float) -> Text:
    text = Text()
    if hop.group is not None and hop.group != hop.service:
        text.append(f"  group {shown(hop.group)}", "dim")
    if hop.outcome is None:
        return text
    text.append("  ").append(_words(hop, now), _STYLES[hop.outcome])
    if hop.waited is not None:
        waited = max(0.0, hop.waited)
        text.append(f", {duration(waited)} after it was sent", "yellow" if waited > GAP else "dim")
    return text


def _words(hop: Hop, now: float) -> str:
    count = max((run.attempt for run in hop.runs), default=0)
    runs = f"{count} {'run' if count == 1 else 'runs'}"
    match hop.outcome:
        case Outcome.HANDLED:
            took = hop.runs[-1].duration if hop.runs else 0.0
            return f"handled in {duration(took)}" + (f" at attempt {count}" if count > 1 else "")
        case Outcome.SKIPPED:
            return "skipped: its id was handled before"
        case Outcome.UNKNOWN:
            return "was given it, and no record is left"
        case Outcome.PENDING:
            since = "" if hop.idle is None else f", seen {duration(hop.idle)} ago"
            return f"has it: {shown(hop.consumer or '')}{since}"
        case Outcome.WAITING:
            return "was not given it yet"
        case Outcome.RETRYING:
            if hop.due is not None and hop.due > now:
                return f"failed {runs}, the next in {duration(hop.due - now)}"
            return f"failed {runs}, and is to run again"
        case Outcome.DEAD:
            why = ": ".join(shown(text) for text in (hop.reason, hop.error) if text)
            return f"dead after {runs}" + (f": {why}" if why else ", and no dead letter any more")
    return ""


# --- what was not looked at ------------------------------------------------------------------------


def left_out(found: Found, *, everything: bool) -> Iterator[str]:
    """What the answer does not rest on, one sentence each."""
    if found.flows_left_out:
        yield f"more flows than these {len(found.correlation_ids)} are named by this id: ask for one of their own ids"
    if found.messages_left_out:
        yield f"{found.messages_left_out:,} further messages of the flow are not shown"
    if found.indexed and not everything:
        yield "the index told of the flow; what was published without one is only looked for around it"
    if found.comes_later and not everything:
        yield "a message with a delay may have come into its stream since, under an id that the index does not know"
    for looked in found.looked:
        if (unread := looked.length - looked.entries) > 0:
            yield f"{visible(looked.key)}: {unread:,} of {looked.length:,} entries were not read ({_unread(looked)})"
    for refusal in found.refused:
        yield f"Redis refused {refusal.command} {visible(refusal.key)}: {visible(refusal.text)}"


def _unread(looked: Looked) -> str:
    if not looked.read:
        return "none of it was in the time that was looked at"
    parts = []
    first, last = looked.read[0][0], looked.read[-1][1]
    if first is not None:
        parts.append(f"before {_time(first / 1000)}")
    if len(looked.read) > 1:
        parts.append("between the flow's times")
    if last is not None:
        parts.append(f"after {_time(last / 1000)}")
    return ", ".join(parts) or "they came meanwhile"


def _time(seconds: float) -> str:
    try:
        return timestamp(seconds)[:23] + "Z"
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


# --- for programs ----------------------------------------------------------------------------------


def as_object(asked: str, flow: Flow, found: Found, *, everything: bool) -> dict[str, Any]:
    """What ``--json`` prints. Messages are a list, by time, and name their causes: a tree may be too deep to nest."""
    hops = [hop for _, hop in walk(flow.roots)]
    return {
        "id": asked,
        "found": bool(found.correlation_ids),
        "correlation_ids": list(found.correlation_ids),
        "outcome": None if flow.outcome is None else flow.outcome.value,
        "began": None if flow.began is None else _time_exact(flow.began),
        "ended": None if flow.ended is None else _time_exact(flow.ended),
        "duration_ms": None if flow.began is None or flow.ended is None else _ms(flow.ended - flow.began),
        "services": list(flow.services),
        "messages": [_message_object(message) for message in flow.messages],
        "log_lines": [
            line_object(step)
            for step in sorted((s for hop in hops for s in hop.steps if isinstance(s, LogLine)), key=lambda s: s.at)
        ],
        "indexed": found.indexed,
        "looked_at": [
            {"stream": looked.key, "entries": looked.length, "read": looked.entries} for looked in found.looked
        ],
        "not_looked_at": list(left_out(found, everything=everything)),
    }


def line_object(line: LogLine) -> dict[str, Any]:
    """A log line."""
    return {
        "at": _time_exact(line.at),
        "service": line.service,
        "level": line.level,
        "event": line.event,
        "msg": line.text,
    }


def _message_object(message: Message) -> dict[str, Any]:
    incoming = message.incoming
    return {
        "stream": message.stream,
        "entry_id": message.entry_id or None,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "causation_id": message.caused_by,
        "event": message.event,
        "key": incoming.key if incoming is not None else None,
        "service": incoming.service if incoming is not None else None,
        "traceparent": propagation.format_traceparent(incoming.context) if incoming is not None else None,
        "published": None if message.at is None else _time_exact(message.at),
        "due": None if message.due is None else _time_exact(message.due),
        "replayed": message.replayed,
        "asked_for": message.matched,
        "handled": [_hop_object(hop) for hop in message.hops if hop.group is not None],
    }


def _hop_object(hop: Hop) -> dict[str, Any]:
    return {
        "group": hop.group,
        "service": hop.service,
        "outcome": None if hop.outcome is None else hop.outcome.value,
        "waited_ms": None if hop.waited is None else _ms(hop.waited),
        "took_ms": None if hop.took is None else _ms(hop.took),
        "next_run": None if hop.due is None else _time_exact(hop.due),
        "consumer": hop.consumer,
        "reason": hop.reason,
        "error": hop.error,
        "runs": [
            {
                "attempt": run.attempt,
                "outcome": run.outcome,
                "started": None if run.started is None else _time_exact(run.started),
                "duration_ms": _ms(run.duration),
                "consumer": run.consumer,
            }
            for run in hop.runs
        ],
    }


def _time_exact(seconds: float) -> str | None:
    try:
        return timestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def facts(flow: Flow) -> list[dict[str, Any]]:
    """What happened, each an object with its line of ``text``, by time: for following a flow in a pipe."""
    told: list[tuple[float, dict[str, Any]]] = []
    for _, hop in walk(flow.roots):
        for run in hop.runs:
            words = _ENDED[run.outcome] if run.started is None else f"{_ENDED[run.outcome]} {duration(run.duration)}"
            more = {"attempt": run.attempt, "outcome": run.outcome, "duration_ms": _ms(run.duration)}
            text = f"attempt {run.attempt} {words}"
            told.append(_fact("run", run.ended, hop, text, stream=run.stream, entry_id=run.entry_id, **more))
        if hop.outcome is Outcome.DEAD and hop.reason:
            more = {"reason": hop.reason, "error": hop.error}
            told.append(_fact("dead", hop.runs[-1].ended if hop.runs else None, hop, _words(hop, 0.0), **more))
        for step in hop.steps:
            if isinstance(step, LogLine):
                told.append(_fact("log", step.at, hop, f"{shown(step.event)} {shown(step.text)}", event=step.event))
            else:
                text = sent(step.stream, step.entry_id, step.event or "").plain
                where = {"stream": step.stream, "entry_id": step.entry_id or None, "event": step.event}
                told.append(_fact("message", step.at, hop, text, message_id=step.message_id, **where))
    return [fact for _, fact in sorted(told, key=lambda pair: pair[0])]


def _fact(kind: str, at: float | None, hop: Hop, text: str, **more: Any) -> tuple[float, dict[str, Any]]:
    when = None if at is None else _time_exact(at)
    line = f"{when or '':<27} {shown(hop.service)} {text}"
    fact = {"kind": kind, "at": when, "service": hop.service, "group": hop.group, **more, "text": line}
    return float("inf") if at is None else at, fact
