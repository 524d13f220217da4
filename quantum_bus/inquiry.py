"""Questions to Redis as generators: what to ask is apart from who asks. Pure.

An inquiry yields commands, is sent their replies in order (what the server refused stands in its reply's place as an
error), and returns what they tell. A blocking link, an asyncio one and a test drive the same inquiry.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from .errors import QuantumBusError
from .streams import Command

T = TypeVar("T")

Inquiry = Generator[Sequence[Command], Sequence[Any], T]

# Commands of one round trip.
TOGETHER: Final = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """A question that Redis did not answer: an ACL, or a key that holds something else.

    Attributes:
        command: its words up to the key, as ``XINFO GROUPS``.
        key: what it asked about; empty where that is no key.
        text: the error.
    """

    command: str
    key: str
    text: str

    @property
    def wrong_type(self) -> bool:
        """Whether the key holds something else."""
        return self.text.startswith("WRONGTYPE") or "wrong kind of value" in self.text


@dataclass(slots=True)
class Refusals:
    """Gathers what was refused. That a key or a group is not there is an answer, an empty one, and no refusal."""

    found: list[Refusal] = field(default_factory=list)

    def checked(self, command: Command, reply: Any) -> Any:
        """The reply; None where it is a refusal."""
        if not isinstance(reply, Exception):
            return reply
        text = str(reply)
        if text.removeprefix("ERR ").startswith("no such key") or text.startswith("NOGROUP"):
            return []
        word = str(command[0])
        self.found.append(
            Refusal(
                command=f"{word} {command[1]!s}" if word in _TWO_WORDS else word,
                key="" if word in _NO_KEY else str(command[_KEY_AT.get(word, 1)]),
                text=text,
            )
        )
        return None


_TWO_WORDS: Final = ("CONFIG", "XINFO")
_NO_KEY: Final = ("CONFIG", "INFO", "SCAN", "TIME")
_KEY_AT: Final = {"EVALSHA": 3, "XINFO": 2}


def asked(commands: Sequence[Command | None], refusals: Refusals) -> Inquiry[list[Any]]:
    """The replies to all commands, in order and over as many round trips as it takes.

    A refusal becomes None; what is not there, and a command that is None itself, an empty list.
    """
    replies: list[Any] = [[]] * len(commands)
    asking = [(at, command) for at, command in enumerate(commands) if command is not None]
    for start in range(0, len(asking), TOGETHER):
        page = asking[start : start + TOGETHER]
        for (at, command), reply in zip(page, (yield [command for _, command in page]), strict=True):
            replies[at] = refusals.checked(command, reply)
    return replies


def asked_each(asking: Sequence[Sequence[Command | None]], refusals: Refusals) -> Inquiry[list[list[Any]]]:
    """As :func:`asked`, for several askers together: the replies to each one's commands."""
    replies = iter((yield from asked([command for commands in asking for command in commands], refusals)))
    return [[next(replies) for _ in commands] for commands in asking]


def answered(inquiry: Inquiry[T], execute: Callable[..., Sequence[Any]]) -> T:
    """Drive an inquiry over a blocking link.

    Args:
        execute: takes commands and returns their replies in order, as ``blocking_link.Link.execute`` does.

    Raises:
        QuantumBusError: the connection broke; nothing that was learnt so far is worth keeping.
    """
    try:
        commands = next(inquiry)
        while True:
            replies = execute(*commands)
            for reply in replies:
                if isinstance(reply, QuantumBusError):
                    raise reply
            commands = inquiry.send(replies)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def as_map(reply: Any) -> Mapping[bytes, Any]:
    """What XINFO tells of one thing: a list of names and values in turn (RESP2), or a map (RESP3)."""
    return reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))
