"""Commands until Redis has confirmed each: what to write next, and what is still missing. Pure state.

A reply lost with its connection leaves open whether the command was carried out; it is written again, under the same
message id. A refusal stands, but for those that pass by themselves: what they refused is written again, too. Behind a
lost reply a refusal tells of its own try only, and the first may be stored; where every try was refused, none is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from . import driver, streams
from .backoff import Backoff
from .config import BusConfig
from .envelope import Outgoing, encode
from .errors import ConnectionLost, NotDurable, PublishError, PublishTimeout
from .receipt import Receipt
from .sending import Sending
from .streams import Command

# Entries written by one request: what comes after waits its turn like any other request.
CHUNK: Final = 500
# Connections that may wait for replicas at the same time; further calls wait for one to be free.
LANES: Final = 16
# Replicas are waited for a little less long than the caller waits, so that the answer still comes in time: by this
# share of the time, and at most by so many seconds.
ANSWER_SHARE: Final = 0.2
ANSWER_MARGIN: Final = 0.5


class Confirmation:
    """The additions of one ``publish`` or ``publish_many``.

    Write :meth:`commands`, tell :meth:`answered` or :meth:`lost`, pause as they say, while it is :attr:`unfinished`;
    :meth:`results` may be asked at any time, and counts what is missing as timed out.

    Args:
        wait_replicas: how many replicas have to confirm; None for none. The commands then end with a WAIT, which
            belongs on the connection that wrote them, and blocks it.
        commands: the additions, where they are made already.
    """

    def __init__(
        self,
        outgoing: Sequence[Outgoing],
        sending: Sending,
        config: BusConfig,
        *,
        wait_replicas: int | None = None,
        commands: list[Command] | None = None,
    ) -> None:
        self._outgoing = outgoing
        self._sending = sending
        self._commands = commands or _additions(outgoing, sending, config)
        self._replies: list[Any] = [None] * len(outgoing)
        self._wanted = wait_replicas or 0
        self._confirmed: list[Any] = [None] * len(outgoing)  # what WAIT said behind each
        self._missing = list(range(len(outgoing)))
        self._written = 0  # so many of what is missing are on their way
        self._passing: list[RedisError | None] = [None] * len(outgoing)  # each one's last refusal that passes by itself
        self._doubtful: set[int] = set()  # what an earlier try may have stored
        self._backoff = Backoff(config.backoff_initial, config.backoff_maximum)
        self._last: object = "no reply came"

    @property
    def unfinished(self) -> bool:
        """Whether something is still to be answered."""
        return bool(self._missing)

    @property
    def waits(self) -> bool:
        """Whether the commands block their connection."""
        return self._wanted > 0

    def commands(self, left: float) -> Sequence[Command]:
        """What is to be written now.

        Args:
            left: seconds until the caller's deadline. What is more than one request's worth shares them.
        """
        self._sending.on_its_way(alone=False)
        commands = [self._commands[index] for index in self._missing[:CHUNK]]
        self._written = len(commands)
        if self._wanted:
            share = left / math.ceil(len(self._missing) / CHUNK)
            share -= min(share * ANSWER_SHARE, ANSWER_MARGIN)
            # all as text: what was sent again because its digest was not known would come behind the WAIT
            commands = [streams.as_text(command) or command for command in commands]
            commands.append(streams.wait(self._wanted, share))
        elif len(commands) > 1:
            # Where the server does not know the script, its additions would come behind the others: the first one is
            # sent with its text, which teaches it.
            for at, command in enumerate(commands):
                if (text := streams.as_text(command)) is not None:
                    commands[at] = text
                    break
        return commands

    def answered(self, replies: Sequence[Any]) -> float:
        """The replies to :meth:`commands`; returns the seconds to pause before the rest."""
        again = []
        self._written = 0
        confirmed: Any = None
        if self._wanted:
            *replies, confirmed = replies
        for index, reply in zip(self._missing[:CHUNK], replies, strict=True):
            if _is_open(reply):
                self._last = reply
                if isinstance(reply, RedisError):
                    self._passing[index] = reply
                else:
                    self._doubtful.add(index)
                again.append(index)
                continue
            if not isinstance(reply, bytes):
                if self._replies[index] is None:  # what was stored before, without a WAIT's answer, stays so
                    self._replies[index] = reply
                continue
            self._replies[index] = reply
            if _is_open(confirmed):
                # Its connection is gone, and another one's WAIT knows nothing of what was written on this one.
                self._last = confirmed
                again.append(index)
            else:
                self._confirmed[index] = confirmed
        self._missing[:CHUNK] = again
        return self._backoff.next() if again else 0.0

    def lost(self, error: ConnectionLost) -> float:
        """Redis did not answer; returns the seconds to pause."""
        self._last = error
        if error.written:
            self._doubtful.update(self._missing[: self._written])
        self._written = 0
        return self._backoff.next()

    def gives_up(self, left: float, timeout: float) -> bool:
        """Whether to end here: all that is missing is known not to be stored, and another try may have no answer.

        Args:
            left: seconds that the next try would have.
            timeout: seconds that the caller has given.
        """
        return left < min(timeout * ANSWER_SHARE, ANSWER_MARGIN) and all(
            self._passing[index] is not None and index not in self._doubtful for index in self._missing
        )

    def results(self) -> list[Receipt | PublishError]:
        """One for each item, in order."""
        results: list[Receipt | PublishError] = []
        doubtful = self._doubtful.union(self._missing[: self._written])
        answers = zip(self._outgoing, self._replies, self._confirmed, strict=True)
        for index, (outgoing, reply, confirmed) in enumerate(answers):
            if isinstance(reply, bytes):
                entry_id, first_id = streams.parse_added(reply)
                correlation_id = first_id or self._sending.correlation_id(outgoing)
                receipt = Receipt(entry_id, outgoing.message_id, correlation_id, outgoing.stream)
                results.append(self._durable(receipt, confirmed))
                continue
            error: PublishError
            passing = self._passing[index]
            cause = reply
            if reply is None and passing is not None and index not in doubtful:
                cause = passing
                error = driver.publish_error(passing, outgoing.stream)
            elif reply is None and index not in doubtful:
                cause = self._last
                error = PublishTimeout(
                    f"Redis could not be reached in time: message {outgoing.message_id} for {outgoing.stream!r} was "
                    f"never sent, and is not stored ({cause})"
                )
            elif reply is None:
                cause = self._last
                error = PublishTimeout(
                    f"Redis did not confirm message {outgoing.message_id} for {outgoing.stream!r} in time; it may be "
                    f"stored: publish it again under the same message_id ({cause})"
                )
            else:
                error = driver.publish_error(reply, outgoing.stream)
                if index in doubtful:
                    error = PublishTimeout(
                        f"Redis did not confirm message {outgoing.message_id} at first; it may be stored. It "
                        f"refused the next try: publish it again under the same message_id ({error})"
                    )
            error.__cause__ = cause if isinstance(cause, BaseException) else None
            results.append(error)
        self._sending.failed = sum(isinstance(result, PublishError) for result in results)
        return results

    def _durable(self, receipt: Receipt, confirmed: Any) -> Receipt | NotDurable:
        """The receipt of what is stored, if enough replicas have it; ``confirmed`` is what WAIT said, or None."""
        count = confirmed if isinstance(confirmed, int) else 0
        if count >= self._wanted:
            return receipt
        error = NotDurable(receipt, self._wanted, count)
        cause = self._last if confirmed is None else confirmed
        error.__cause__ = cause if isinstance(cause, BaseException) else None
        return error

    def result(self) -> Receipt:
        """The only item's receipt, or its error, raised."""
        (result,) = self.results()
        if isinstance(result, NotDurable) and result.receipt.id:
            self._sending.sent(result.receipt.id)
        if isinstance(result, PublishError):
            raise result
        if result.id:
            self._sending.sent(result.id)
        return result


def addition(outgoing: Outgoing, correlation_id: str, sending: Sending, service: str) -> Command:
    """The command that adds a message: XADD, or the script where it is to come later, or once."""
    fields = encode(outgoing, correlation_id=correlation_id, carried=sending.carried, service=service)
    if not outgoing.delay_ms and not outgoing.dedupe_ms:
        return streams.add(outgoing.stream, fields)
    return streams.add_with_care(
        outgoing.stream,
        fields,
        message_id=outgoing.message_id,
        correlation_id=correlation_id,
        delay_ms=outgoing.delay_ms,
        dedupe_ms=outgoing.dedupe_ms,
    )


def _additions(outgoing: Sequence[Outgoing], sending: Sending, config: BusConfig) -> list[Command]:
    if config.index is None:
        return [addition(item, sending.correlation_id(item), sending, config.service) for item in outgoing]
    return [_indexed_addition(item, sending, config.service, config.index) for item in outgoing]


def _indexed_addition(outgoing: Outgoing, sending: Sending, service: str, seconds: float) -> Command:
    """As :func:`addition`, and the flow's index knows it."""
    from . import flow_index  # a bus without an index starts without it

    correlation_id = sending.correlation_id(outgoing)
    return flow_index.indexed(
        addition(outgoing, correlation_id, sending, service),
        correlation_id=correlation_id,
        message_id=outgoing.message_id,
        seconds=seconds,
        now_ms=time.time_ns() // 1_000_000,
    )


def _is_open(reply: Any) -> bool:
    return isinstance(reply, Exception) and (isinstance(reply, ConnectionLost) or driver.is_transient(reply))
