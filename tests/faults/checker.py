"""Whether what Redis holds in the end fits what processes did. Pure: a history and holdings in, a verdict out.

The rules, each by message id:

| rule | is broken by |
| --- | --- |
| `lost` | a message that was acknowledged, and was neither handled to the end, nor waits, nor is a dead letter |
| `phantom` | a handling or dead letter of what nobody published, or of what its publisher was told is not stored |
| `left` | a message that still waits after the drain |
| `context` | a handling or dead letter under another correlation id or trace id than it was published with |
| `attempts` | a handling, or a dead letter, that counts fewer attempts than one of the same entry before it |
| `twice` | an entry that was acked or dead-lettered twice, though a settled one is nobody's to settle |

A fault may say that it loses what was acknowledged before it (`FLUSHALL`), or that it forgets attempts (`XGROUP
DESTROY`): then the rules hold from its end on. Or that it stopped a process, maybe between the note that a handler
begins and its beginning: then that run may begin late, when others count further. Or that with it every lease expires,
as when a clock jumps: then so may any run of what another process has taken over. Faults to be borne say nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults.history import FAILED, OK, RETURN, UNKNOWN, Handling, History, Publish
from tests.faults.holdings import Holdings

LOST = "lost"
PHANTOM = "phantom"
LEFT = "left"
CONTEXT = "context"
ATTEMPTS = "attempts"
TWICE = "twice"

SHOWN = 20
LATE = 10.0
"""Seconds after a process goes on in which it may begin what it was about to begin when it was stopped."""


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    message_id: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule:8} {self.message_id}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        figures: how much was published, handled and so on: a run that did nothing finds nothing.
    """

    violations: tuple[Violation, ...]
    figures: Counter[str]

    def of(self, rule: str) -> list[Violation]:
        return [violation for violation in self.violations if violation.rule == rule]

    def __str__(self) -> str:
        figures = ", ".join(f"{count} {name}" for name, count in self.figures.items())
        by_rule = Counter(violation.rule for violation in self.violations)
        wrong = ", ".join(f"{count} {rule}" for rule, count in by_rule.items()) or "nothing wrong"
        shown = "\n".join(f"  {violation}" for violation in self.violations[:SHOWN])
        more = len(self.violations) - SHOWN
        return f"{figures}: {wrong}\n{shown}" + (f"\n  and {more} more" if more > 0 else "")


def check(history: History, holdings: Holdings, *, drained: bool = True) -> Verdict:
    """Args: drained: whether everything has had the time to be handled: then nothing may wait any more."""
    published = {publish.message_id: publish for publish in history.publishes}
    violations = [
        *_lost(history, holdings),
        *_phantoms(history, holdings, published),
        *(_left(holdings) if drained else ()),
        *_contexts(history, holdings, published),
        *_attempts(history, holdings),
        *_twice(history, holdings),
    ]
    return Verdict(tuple(violations), _figures(history, holdings))


def _lost(history: History, holdings: Holdings) -> Iterator[Violation]:
    handled = {handling.message_id for handling in history.handlings if handling.outcome == RETURN}
    kept = handled.union(holdings.waiting, (letter.message_id for letter in holdings.dead))
    begun = defaultdict(list)
    for handling in history.handlings:
        begun[handling.message_id].append(f"{handling.attempt} ({handling.outcome or 'not ended'})")
    excused_until = max((fault.ended for fault in history.faults if fault.loses), default=float("-inf"))
    for publish in history.outcomes(OK):
        if publish.message_id not in kept and publish.began > excused_until:
            attempts = ", ".join(begun[publish.message_id]) or "none"
            yield Violation(LOST, publish.message_id, f"acknowledged as {publish.entry_id}; attempts: {attempts}")


def _phantoms(history: History, holdings: Holdings, published: dict[str, Publish]) -> Iterator[Violation]:
    seen = {handling.message_id: f"handled as {handling.entry_id}" for handling in history.handlings}
    seen |= {letter.message_id: f"dead-lettered as {letter.entry_id}" for letter in holdings.dead}
    for message_id, where in seen.items():
        if message_id not in published:
            yield Violation(PHANTOM, message_id, f"{where}, and nobody published it")
        elif published[message_id].outcome == FAILED:
            yield Violation(PHANTOM, message_id, f"{where}, and its publisher was told that it is not stored")


def _left(holdings: Holdings) -> Iterator[Violation]:
    places = ("undelivered", "pending", "scheduled", "retrying")
    for place in places:
        for message_id in getattr(holdings, place):
            yield Violation(LEFT, message_id, f"is still {place}")


def _contexts(history: History, holdings: Holdings, published: dict[str, Publish]) -> Iterator[Violation]:
    for handling in history.handlings:
        publish = published.get(handling.message_id)
        if publish is not None:
            where = f"attempt {handling.attempt} in process {handling.pid}"
            yield from _differs(publish, where, "correlation id", handling.correlation_id, publish.correlation_id)
            yield from _differs(publish, where, "get_correlation_id()", handling.context_id, publish.correlation_id)
            yield from _differs(publish, where, "trace id", handling.trace_id, publish.trace_id)
    for letter in holdings.dead:
        publish = published.get(letter.message_id)
        if publish is not None:
            yield from _differs(publish, "dead letter", "correlation id", letter.correlation_id, publish.correlation_id)
            yield from _differs(publish, "dead letter", "trace id", letter.trace_id, publish.trace_id)


def _differs(publish: Publish, where: str, what: str, found: str, sent: str) -> Iterator[Violation]:
    if found != sent:
        yield Violation(CONTEXT, publish.message_id, f"{where}: {what} is {found}, and was {sent}")


def _attempts(history: History, holdings: Holdings) -> Iterator[Violation]:
    forgotten = [fault for fault in history.faults if fault.forgets]
    highest: dict[tuple[str, str, str], Handling] = {}
    begun: set[tuple[str, str, str, int]] = set()
    for handling in history.handlings:
        entry = (handling.stream, handling.group, handling.entry_id)
        before = highest.get(entry)
        if before is not None and any(before.began <= fault.ended for fault in forgotten):
            before = None
        attempt = (*entry, handling.attempt)
        if before is not None and handling.attempt < before.attempt:
            taken_over = attempt not in begun and _was_taken_over(handling, before, history)
            if not (taken_over or _is_late(handling, history)):
                detail = f"attempt {handling.attempt} in process {handling.pid} came after attempt {before.attempt}"
                yield Violation(ATTEMPTS, handling.message_id, detail)
        begun.add(attempt)
        if before is None or handling.attempt >= before.attempt:
            highest[entry] = handling
    by_entry = {(group, entry_id): handling for (_, group, entry_id), handling in highest.items()}
    for letter in holdings.dead:
        last = by_entry.get((letter.group, letter.entry_id))
        if last is not None and letter.attempts < last.attempt and not forgotten:
            detail = f"the dead letter counts {letter.attempts} attempts, and there was attempt {last.attempt}"
            yield Violation(ATTEMPTS, letter.message_id, detail)


def _is_late(handling: Handling, history: History) -> bool:
    stops = (fault for fault in history.faults if fault.stops == handling.pid)
    return any(fault.began <= handling.began <= fault.ended + LATE for fault in stops)


def _was_taken_over(handling: Handling, by: Handling, history: History) -> bool:
    expiries = (fault for fault in history.faults if fault.expires)
    return handling.pid != by.pid and any(
        fault.began <= by.began <= handling.began <= fault.ended + LATE for fault in expiries
    )


def _twice(history: History, holdings: Holdings) -> Iterator[Violation]:
    if not any(fault.forgets for fault in history.faults):
        for which, count in holdings.settled.items():
            if count > 1:
                message_id, _, entry_id = which.rpartition(" ")
                yield Violation(TWICE, message_id, f"entry {entry_id} was settled {count} times")
    letters = Counter((letter.group, letter.entry_id, letter.message_id) for letter in holdings.dead)
    for (group, entry_id, message_id), count in letters.items():
        if count > 1:
            yield Violation(TWICE, message_id, f"entry {entry_id} has {count} dead letters of group {group}")


def _figures(history: History, holdings: Holdings) -> Counter[str]:
    ended = Counter(handling.entry_id for handling in history.handlings if handling.outcome == RETURN)
    return Counter(
        {
            "acknowledged": len(history.outcomes(OK)),
            "refused": len(history.outcomes(FAILED)),
            "in doubt": len(history.outcomes(UNKNOWN)),
            "handlings": len(history.handlings),
            "cut off": sum(handling.outcome is None for handling in history.handlings),
            "repeated": sum(count - 1 for count in ended.values()),
            "dead letters": len(holdings.dead),
            "faults": len(history.faults),
        }
    )
