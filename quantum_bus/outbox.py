"""Outcomes on their way to Redis: what is written next, what the replies mean, and when to try again. Pure state.

Acks of one stream go together; a dead letter is one command. What Redis did not do stays here and is due again after a
pause: a dead-letter stream of the wrong type holds up neither the acks nor other dead letters. The caller guards an
outbox that threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import delivery, driver, names, streams
from .backoff import Backoff
from .config import BusConfig
from .delivery import Bury
from .envelope import timestamp
from .inbox import Held
from .streams import Command

ACKS_TOGETHER: Final = 500

DONE: Final = "done"
LOST: Final = "lost"
GONE: Final = "gone"


@dataclass(slots=True, eq=False)
class Letter:
    """One outcome to be written.

    Attributes:
        bury: None for an ack.
        settled: called with the result, for whoever settles by hand and waits.
        result: ``DONE``; ``LOST``: another consumer owns the message, nothing was changed; ``GONE``: the stream has
            it no more.
    """

    held: Held
    bury: Bury | None = None
    settled: Callable[[str], None] | None = None
    result: str = ""
    due: float = 0.0
    backoff: Backoff | None = None

    @property
    def buried(self) -> str | None:
        """Why the message is dead, once it has reached the dead-letter stream."""
        return self.bury.reason if self.bury is not None and self.result == DONE else None


@dataclass(slots=True)
class Answered:
    """What a write came to: outcomes that have reached Redis, and the first refusals of those that have not."""

    settled: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, object]] = field(default_factory=list)


class Outbox:
    """The outcomes of one consumer.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, group: str, consumer: str, config: BusConfig, clock: Callable[[], float]) -> None:
        self._group = group
        self._consumer = consumer
        self._config = config
        self._clock = clock
        self._letters: list[Letter] = []
        self._written: list[list[Letter]] = []

    def __len__(self) -> int:
        return len(self._letters) + sum(map(len, self._written))

    def ack(self, held: Held, settled: Callable[[str], None] | None = None) -> None:
        """Acknowledge, if still owned."""
        self._letters.append(Letter(held, settled=settled))

    def bury(self, held: Held, bury: Bury, settled: Callable[[str], None] | None = None) -> None:
        """Move to the dead-letter stream, if still owned."""
        held.first_failed_at = held.first_failed_at or timestamp()
        self._letters.append(Letter(held, bury, settled))

    def pause(self) -> float | None:
        """Seconds until something is due; 0 for now, None while there is nothing."""
        if not self._letters:
            return None
        return max(0.0, min(letter.due for letter in self._letters) - self._clock())

    def take(self) -> Sequence[Command]:
        """The commands that are due. Their replies, or their failure, must be told before the next."""
        now = self._clock()
        due = [letter for letter in self._letters if letter.due <= now]
        self._letters = [letter for letter in self._letters if letter.due > now]
        acks: dict[str, list[Letter]] = {}
        commands: list[Command] = []
        self._written = []
        for letter in due:
            if letter.bury is not None:
                commands.append(self._dead_letter(letter.held, letter.bury))
                self._written.append([letter])
            else:
                acks.setdefault(letter.held.incoming.stream, []).append(letter)
        for stream, letters in acks.items():
            for start in range(0, len(letters), ACKS_TOGETHER):
                together = letters[start : start + ACKS_TOGETHER]
                ids = [letter.held.incoming.id for letter in together]
                commands.append(streams.ACK.call([stream], self._group, self._consumer, *ids))
                self._written.append(together)
        return commands

    def answered(self, replies: Sequence[Any]) -> Answered:
        """The replies to what was taken, in order; an error in its place is a refusal."""
        answered = Answered()
        for letters, reply in zip(self._written, replies, strict=True):
            if isinstance(reply, list) and letters[0].bury is None:
                lost = {entry_id.decode() for entry_id in reply}
                for letter in letters:
                    letter.result = LOST if letter.held.incoming.id in lost else DONE
                answered.settled += letters
            elif isinstance(reply, list):
                letters[0].result = {b"ok": DONE, b"lost": LOST, b"gone": GONE}[reply[0]]
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
        if not backoff.failures:
            answered.refused.append((letters[0], reply))
        due = self._clock() + backoff.next()
        for letter in letters:
            letter.backoff = backoff
            letter.due = due
        self._letters += letters

    def _dead_letter(self, held: Held, bury: Bury) -> Command:
        incoming = held.incoming
        fields = delivery.dead_letter_fields(
            bury,
            stream=incoming.stream,
            entry_id=incoming.id,
            group=self._group,
            consumer=self._consumer,
            attempts=held.attempt,
            first_failed_at=held.first_failed_at,
            now=timestamp(),
        )
        keys = [incoming.stream, streams.side_key(incoming.stream, names.SUFFIX_DLQ)]
        return streams.DEAD_LETTER.call(keys, self._group, self._consumer, incoming.id, *fields)
