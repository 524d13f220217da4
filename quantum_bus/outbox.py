"""Outcomes on their way to Redis: what is written next, what the replies mean, and when to try again. Pure state.

Acks of one stream go together; a retry or a dead letter is one command. What Redis did not do stays here and is due
again after a pause: a dead-letter stream of the wrong type holds up neither the acks nor other dead letters. The caller
guards an outbox that threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import msgspec
import orjson

from . import delivery, driver, names, streams
from .backoff import Backoff
from .config import BusConfig
from .delivery import Ack, Again, Bury, Outcome, Wait
from .envelope import Incoming, timestamp
from .inbox import Held
from .propagation import format_traceparent
from .streams import Command, Keys
from .telemetry import Telemetry

ACKS_TOGETHER: Final = 500

_MESSAGE_ID: Final = names.RECORD_MESSAGE_ID
_CORRELATION_ID: Final = names.RECORD_CORRELATION_ID
_OF_RUN: Final = (
    f',"{names.RECORD_STARTED}":%b,"{names.RECORD_DURATION}":%.6f,'
    f'"{names.RECORD_ATTEMPT}":%d,"{names.RECORD_OUTCOME}":"%b"}}'
).encode()

DONE: Final = "done"
LOST: Final = "lost"
GONE: Final = "gone"
UNWRITTEN: Final = "unwritten"
_RESULTS: Final = {b"ok": DONE, b"lost": LOST, b"gone": GONE}
_OUTCOMES: Final[dict[type, str]] = {
    Ack: names.OUTCOME_ACK,
    Again: names.OUTCOME_RETRY,
    Bury: names.OUTCOME_DEAD_LETTER,
}


class Letter(msgspec.Struct, eq=False, gc=False):
    """One outcome to be written.

    Attributes:
        settled: called with the result, for whoever settles by hand and waits.
        result: ``DONE``; ``LOST``: another consumer owns the message, nothing was changed; ``GONE``: the stream has
            it no more. Of one that is not written any more, ``settled`` alone is told: ``UNWRITTEN``.
    """

    held: Held
    outcome: Outcome
    settled: Callable[[str], None] | None = None
    result: str = ""
    due: float = 0.0
    backoff: Backoff | None = None

    @property
    def if_absent(self) -> str:
        """What it means that it is not pending: an earlier try, whose reply was lost, did it; or others did."""
        return DONE if self.backoff is not None else LOST

    def count(self, telemetry: Telemetry, group: str) -> None:
        """Count what has reached Redis."""
        stream = self.held.incoming.stream
        if self.result == LOST:
            if not self.held.gone:  # that was counted when it was found
                telemetry.lease_lost(stream, group)
        elif self.result == GONE:
            telemetry.lost(stream, group)
        elif isinstance(self.outcome, Bury):
            telemetry.dead_lettered(stream, group, self.outcome.reason)
        elif isinstance(self.outcome, Again):
            telemetry.retried(stream, group, self.outcome.failure.error_type)

    @property
    def again(self) -> float | None:
        """Where Redis has noted that it is to run again: seconds until then."""
        return self.outcome.delay if isinstance(self.outcome, (Again, Wait)) and self.result == DONE else None

    @property
    def bury(self) -> Bury | None:
        """The dead letter, if it is one."""
        return self.outcome if isinstance(self.outcome, Bury) else None


def check_settled(held: Held, result: str) -> None:
    """For who has settled it by hand, and waited for the result.

    Raises:
        LeaseLost: another consumer owns the message by now.
        ConnectionLost: the bus was stopped before.
    """
    if result == LOST:
        raise held.lease_lost()
    if result == UNWRITTEN:
        raise held.unsettled_by_stop()


@dataclass(slots=True)
class Answered:
    """What a write came to: outcomes that have reached Redis, and refusals: the first of each kind until one goes."""

    settled: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, object]] = field(default_factory=list)


class Outbox:
    """The outcomes of one consumer.

    Args:
        keys: of each stream, by its name.
        clock: monotonic seconds.
        idempotent: seconds for which a handled message's id is remembered; None for none.
        ordered: what is to run again stays with this consumer, instead of being moved to the schedule.
    """

    def __init__(
        self,
        *,
        group: str,
        consumer: str,
        keys: Mapping[str, Keys],
        config: BusConfig,
        clock: Callable[[], float],
        idempotent: float | None = None,
        ordered: bool = False,
    ) -> None:
        self._group = group
        self._consumer = consumer
        self._keys = keys
        self._config = config
        self._clock = clock
        self._idempotent = idempotent
        self._ordered = ordered
        self._letters: list[Letter] = []
        self._later: list[Letter] = []  # what was refused, and has a time to wait for
        self._written: list[list[Letter]] = []
        self._refused: set[tuple[str, type]] = set()  # what has been said to be refused, and has not gone since
        self._closed = False

    def __len__(self) -> int:
        return len(self._letters) + len(self._later) + sum(map(len, self._written))

    def post(self, held: Held, outcome: Outcome, settled: Callable[[str], None] | None = None) -> None:
        """Have an outcome written, if the message is still owned."""
        if self._closed and settled is not None:
            settled(UNWRITTEN)
            return
        if isinstance(outcome, (Again, Bury)):
            held.first_failed_at = held.first_failed_at or timestamp()
        self._letters.append(Letter(held, outcome, settled))

    def post_run(self, outcomes: Iterable[tuple[Held, Outcome | None]]) -> int:
        """Have a run's outcomes written, but for None: those that were settled by hand. How many there are."""
        before = len(self._letters)
        for held, outcome in outcomes:
            if outcome is delivery.ACK:
                self._letters.append(Letter(held, outcome))
            elif outcome is not None:
                self.post(held, outcome)
        return len(self._letters) - before

    def close(self) -> None:
        """Nothing is written any more: whoever waits for a settlement by hand is told so."""
        self._closed = True
        for letter in (*self._letters, *self._later, *(letter for letters in self._written for letter in letters)):
            if letter.settled is not None:
                letter.settled(UNWRITTEN)

    def pause(self) -> float | None:
        """Seconds until something is due; 0 for now, None while there is nothing."""
        if self._letters:
            return 0.0
        if not self._later:
            return None
        return max(0.0, min(letter.due for letter in self._later) - self._clock())

    def take(self) -> Sequence[Command]:
        """The commands that are due. Their replies, or their failure, must be told before the next."""
        due, self._letters = self._letters, []
        if self._later:
            now = self._clock()
            due = [letter for letter in self._later if letter.due <= now] + due
            self._later = [letter for letter in self._later if letter.due > now]
        due += (letter for letters in self._written for letter in letters)  # never told of: written again
        acks: dict[str, list[Letter]] = {}
        commands: list[Command] = []
        self._written = []
        for letter in due:
            if isinstance(letter.outcome, Ack):
                acks.setdefault(letter.held.source, []).append(letter)
            else:
                commands.append(self._move(letter, letter.outcome))
                self._written.append([letter])
        for letters in acks.values():
            for start in range(0, len(letters), ACKS_TOGETHER):
                together = letters[start : start + ACKS_TOGETHER]
                commands.append(self._acks(together))
                self._written.append(together)
        return commands

    def answered(self, replies: Sequence[Any]) -> Answered:
        """The replies to what was taken, in order; an error in its place is a refusal."""
        answered = Answered()
        for letters, reply in zip(self._written, replies, strict=True):
            if isinstance(reply, list):
                self._refused.discard(_kind(letters[0]))
            if isinstance(reply, list) and type(letters[0].outcome) is Ack:
                lost, absent = ({entry_id.decode() for entry_id in ids} for ids in reply)
                for letter in letters:
                    letter.result = DONE
                    if lost or absent:
                        entry_id = letter.held.source_id
                        letter.result = LOST if entry_id in lost else letter.if_absent if entry_id in absent else DONE
                answered.settled += letters
            elif isinstance(reply, list) and reply[0] == b"wide" and isinstance(letters[0].outcome, Again):
                letters[0].outcome = delivery.too_wide(letters[0].outcome)
                self._letters += letters
            elif isinstance(reply, list) and reply[0] == b"wide":
                letters[0].result = DONE  # it stays pending, comes again once its lease is over, and is looked at anew
                answered.settled += letters
            elif isinstance(reply, list):
                letters[0].result = _RESULTS.get(reply[0]) or letters[0].if_absent
                answered.settled += letters
            elif driver.is_no_group(reply):
                for letter in letters:  # with the group, its pending list is gone: nobody owns anything
                    letter.result = LOST
                answered.settled += letters
            else:
                self._again(letters, reply, answered)
        self._written = []
        return answered

    def failed(self, error: object) -> Answered:
        """Redis did not answer at all: everything taken is due again, later."""
        return self.answered([error] * len(self._written))

    def _again(self, letters: Sequence[Letter], reply: object, answered: Answered) -> None:
        backoff = letters[0].backoff or Backoff(self._config.backoff_initial, self._config.backoff_maximum)
        if (kind := _kind(letters[0])) not in self._refused:
            self._refused.add(kind)
            answered.refused.append((letters[0], reply))
        due = self._clock() + backoff.next()
        for letter in letters:
            letter.backoff = backoff
            letter.due = due
        self._later += letters

    def _acks(self, letters: Sequence[Letter]) -> Command:
        first = letters[0].held
        arguments: list[str | bytes] = []
        told: tuple[float, float, int] | None = None
        of_run = b""
        for letter in letters:
            held = letter.held
            incoming = held.incoming
            run = (held.started, held.duration, held.attempt)
            if run != told:  # a batch's messages share it
                told, of_run = run, _record_of_run(held, names.OUTCOME_ACK)
            arguments += (held.source_id, incoming.id, _record_of_message(incoming) + of_run)
        keys = self._keys[first.incoming.stream]
        return streams.ACK.call(
            [first.source, keys.completed, *self._marks(keys, letters)],
            self._group,
            self._consumer,
            self._config.service,
            self._config.completed,
            1 if first.is_retry else 0,
            int((self._idempotent or 0) * 1000),
            *arguments,
        )

    def _marks(self, keys: Keys, letters: Sequence[Letter]) -> list[str]:
        """Of messages that are to be handled once."""
        return [keys.seen + letter.held.incoming.message_id for letter in letters] if self._idempotent else []

    def _move(self, letter: Letter, outcome: Again | Wait | Bury) -> Command:
        held = letter.held
        incoming = held.incoming
        keys = self._keys[incoming.stream]
        waits = isinstance(outcome, Wait)
        marks = self._marks(keys, [letter])
        common = (
            self._group,
            self._consumer,
            held.source_id,
            held.cut,
            self._config.service,
            0 if waits else self._config.completed,
            incoming.id,
            b"" if waits else completion_record(held, _OUTCOMES[type(outcome)]),
        )
        if isinstance(outcome, (Again, Wait)) and self._ordered:
            return streams.PARK.call(
                [held.source, keys.completed], self._group, self._consumer, held.source_id, *common[4:]
            )
        span = format_traceparent(held.last_span) if held.last_span is not None else ""
        if isinstance(outcome, (Again, Wait)):
            fields = streams.retry_fields(incoming.id, held.attempt, held.first_failed_at, span)
            touched = [held.source, keys.due, keys.copies, keys.completed, *marks]
            return streams.RETRY.call(touched, *common, int(outcome.delay * 1000), *fields)
        fields = delivery.dead_letter_fields(
            outcome,
            stream=incoming.stream,
            entry_id=incoming.id,
            group=self._group,
            consumer=self._consumer,
            attempts=held.attempt,
            first_failed_at=held.first_failed_at,
            now=timestamp(),
            span=span,
        )
        return streams.DEAD_LETTER.call([held.source, keys.dead, keys.completed, *marks], *common, *fields)


def _kind(letter: Letter) -> tuple[str, type]:
    """What goes to the same keys, and is refused for the same reason."""
    return letter.held.incoming.stream, type(letter.outcome)


@lru_cache(maxsize=8)
def _started(seconds: float) -> bytes:
    """Runs that begin together have one time, which takes 2 µs to write."""
    return orjson.dumps(timestamp(seconds))


def completion_record(held: Held, outcome: str) -> bytes:
    """What ``quantum-bus trace`` knows of a handling; ``outcome`` is one of ``names.OUTCOME_*``."""
    return _record_of_message(held.incoming) + _record_of_run(held, outcome)


def _record_of_message(incoming: Incoming) -> bytes:
    """A record's beginning."""
    ids = {_MESSAGE_ID: incoming.message_id, _CORRELATION_ID: incoming.correlation_id}
    return orjson.dumps(ids)[:-1]


def _record_of_run(held: Held, outcome: str) -> bytes:
    """The rest of a record; in two thirds of the time that it takes as a dict."""
    started = _started(held.started) if held.started else b"null"
    return _OF_RUN % (started, held.duration, held.attempt, outcome.encode())
