"""One run of a handler, and the way of an entry to it. Pure: the same for asyncio and for threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from . import delivery, names, propagation
from .config import SubscriberConfig
from .delivery import Again, Bury, Failure, Outcome
from .envelope import decode
from .handlers import Handler
from .handling import Handling, Handlings
from .inbox import Held
from .message import Message, Settlement
from .streams import NOT_A_RETRY, Delivery

Outcomes = Iterable[tuple[Held, Outcome | None]]
"""What becomes of a run's messages, to be gone through once; None for one that was acked or terminated by hand."""


def admit(
    delivered: Delivery, handler: Handler, config: SubscriberConfig, *, sampled: bool
) -> tuple[Held, Bury | None]:
    """Decode a delivery and fit it to the handler; or say why it can never reach it."""
    incoming = decode(delivered.entry, sampled=sampled)
    last_span = delivered.last_span or incoming.failed_span
    held = Held(
        incoming,
        delivered.source,
        delivered.source_id,
        attempt=delivered.attempts,
        noted=delivered.noted,
        first_failed_at=delivered.first_failed_at,
        last_span=propagation.parse_context(last_span) if last_span else None,
        unsettled=delivered.attempts > delivered.noted,
        cut=delivered.cut,
    )
    if delivered.cut == NOT_A_RETRY:
        return held, delivery.no_retry()
    bury = delivery.before_run(held.incoming, attempts=held.attempt, retry=config.retry)
    if bury is None:
        try:
            held.payload = handler.convert(held.incoming)
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            bury = delivery.misfit(error)
    return held, bury


class Run:
    """A handler run: of one message, or with ``batch`` of several.

    Attributes:
        held: what it handles; the attempt is counted already.
        arguments: what the handler is called with.
    """

    __slots__ = ("_config", "_handler", "_messages", "_outcomes", "_plain", "_settlement", "arguments", "held")

    def __init__(
        self, held: Sequence[Held], handler: Handler, config: SubscriberConfig, settlement: Settlement
    ) -> None:
        self._config = config
        self._handler = handler
        self._settlement = settlement
        self._plain = False
        self._outcomes: Sequence[tuple[Held, Outcome | None]] = ()
        self._messages: Sequence[Message] = ()  # made where somebody asks for them: most handlers want the payload
        self.held = held
        messages = self.messages if handler.message is not None else ()
        self.arguments = handler.arguments(messages, [item.payload for item in held])

    @property
    def messages(self) -> Sequence[Message]:
        """What it handles, as the handler sees it."""
        if not self._messages:
            group, settlement = self._config.group, self._settlement
            self._messages = [
                Message(item.incoming, group=group, attempt=item.attempt, settlement=settlement, held=item)
                for item in self.held
            ]
        return self._messages

    @property
    def subject(self) -> Any:
        """What middleware sees: the message, or the list of them."""
        return self.messages if self._handler.batch else self.messages[0]

    def handling(self, handlings: Handlings) -> Handling:
        """The run's telemetry scope. Its span is the messages' last one from now on, also for a ``term`` by hand."""
        held = self.held
        handling = handlings.of(
            [item.incoming for item in held],
            attempt=held[0].attempt,
            previous=[item.last_span for item in held if item.last_span is not None],
        )
        context = handling.span_context
        for item in held:
            item.last_span = context
        return handling

    def end(self, error: BaseException | None, *, spare: bool = False) -> Outcomes:
        """The run is over: what becomes of each message.

        Args:
            error: what the handler raised, if it did.
            spare: it was a circuit breaker's probe and failed: no attempt is used up.
        """
        duration = max(0.0, time.time() - self.held[0].started)
        for held in self.held:
            held.duration = duration
        if error is None and not self._messages:  # nobody had one to settle by hand
            self._plain = True
            return zip(self.held, repeat(delivery.ACK))  # makes one pair, not one for each
        outcomes: list[tuple[Held, Outcome | None]] = []
        retry = self._config.retry
        plain = error is None
        for held, message in zip(self.held, self.messages, strict=True):
            settled = message.close()
            if error is None and settled is None:
                outcomes.append((held, delivery.ACK))
                continue
            plain = False
            outcome: Outcome | None = None
            if settled == "nack":
                outcome = delivery.after_nack(message.retry_delay, attempt=held.attempt, retry=retry)
            elif settled is None and error is not None:
                outcome = delivery.after_error(error, attempt=held.attempt, retry=retry)
            if spare and outcome is not None:
                outcome = delivery.after_probe(outcome, attempt=held.attempt, retry=retry)
                held.attempt -= isinstance(outcome, Again)
            outcomes.append((held, outcome))
        self._plain = plain
        self._outcomes = outcomes
        return outcomes

    def close(self) -> None:
        """Nothing of it is settled by hand any more, however it has ended."""
        for message in self._messages:
            message.close()

    def summary(self) -> tuple[str, Failure | None]:
        """The worst outcome, once it has ended, for its span: one of ``names.OUTCOME_*``, and what was wrong."""
        if self._plain:
            return names.OUTCOME_ACK, None
        worst: Outcome = delivery.ACK
        for message, (_, decided) in zip(self.messages, self._outcomes, strict=True):
            outcome = delivery.after_term(message.term_reason) if message.settled == "term" else decided
            if isinstance(outcome, Bury) or (isinstance(outcome, Again) and not isinstance(worst, Bury)):
                worst = outcome
        match worst:
            case Bury(failure=failure):
                return names.OUTCOME_DEAD_LETTER, failure
            case Again(failure=failed):
                return names.OUTCOME_RETRY, failed
            case _:
                return names.OUTCOME_ACK, None
