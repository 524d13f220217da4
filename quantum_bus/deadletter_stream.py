"""A stream's dead letters in Redis: read page by page, given back, deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from . import driver, streams
from .deadletters import DeadLetter, Filter
from .streams import Command, Keys

# Dead letters in memory at a time.
PAGE: Final = 50


class DeadLetterStream:
    """The dead letters of one stream.

    Args:
        client: a blocking one, for this alone: its XRANGE will give entries as they are, fields of one name included.
        stream: the stream's full name.

    Attributes:
        key: the dead-letter stream's.
    """

    def __init__(self, client: redis.Redis, stream: str) -> None:
        self._client = client
        self.stream = stream
        self.key = Keys.of(stream, "").dead
        client.set_response_callback("XRANGE", lambda reply, **_: reply)

    def now_ms(self) -> int:
        """Redis's clock, which the ids are made by."""
        whole, micros = self._client.time()
        return int(whole) * 1000 + int(micros) // 1000

    def groups(self) -> frozenset[str]:
        """The groups that the stream has."""
        try:
            found: Any = self._client.xinfo_groups(self.stream)
        except ResponseError as error:
            if driver.is_wrong_type(error) or "no such key" in str(error):
                return frozenset()
            raise
        return frozenset(item["name"].decode(errors="backslashreplace") for item in found)

    def last_id(self) -> str | None:
        """The newest one's id."""
        found: Any = self._client.execute_command("XREVRANGE", self.key, "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else None

    def find(self, wanted: Filter, last: str) -> Iterator[DeadLetter]:
        """Those that match, oldest first, none behind the id ``last``.

        That is the newest one's when the search began: what fails again after its replay comes behind it, and would be
        met again and again.
        """
        first, bound = wanted.bounds
        end = last if bound == "+" or int(bound) > int(last.partition("-")[0]) else bound
        while page := self._page(first, end):
            for letter in page:
                if wanted.matches(letter):
                    yield letter
            first = f"({page[-1].id}"

    def get(self, ids: Iterable[str]) -> Iterator[tuple[str, DeadLetter | None]]:
        """Each id with its dead letter, or None where there is none."""
        for letter_id in ids:
            found = self._page(letter_id, letter_id)
            yield letter_id, found[0] if found else None

    def give_back(self, command: Command) -> str:
        """Run a :func:`quantum_bus.deadletters.replay`; ``ok``, ``gone`` or ``no group``.

        Raises:
            redis.exceptions.RedisError: Redis refused it, and nothing was changed; or the connection broke.
        """
        try:
            reply = self._client.execute_command(*command)
        except ResponseError as error:
            text = streams.as_text(command) if driver.is_no_script(error) else None
            if text is None:
                raise
            reply = self._client.execute_command(*text)
        answer: str = reply[0].decode()
        return answer

    def delete(self, ids: Sequence[str]) -> int:
        """Delete them; how many there were."""
        return int(self._client.execute_command("XDEL", self.key, *ids))

    def _page(self, first: str, last: str) -> list[DeadLetter]:
        found: Any = self._client.execute_command("XRANGE", self.key, first, last, "COUNT", PAGE)
        return [DeadLetter.of(self.key, entry_id.decode(), values) for entry_id, values in found]
