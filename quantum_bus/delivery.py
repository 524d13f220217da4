"""What becomes of a message: the one place where an outcome is decided.

Pure functions from what happened to what is to be done; the consumers, asyncio's and the threads', do it.
"""

from __future__ import annotations

import random
import traceback
from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import names
from .config import Retry
from .envelope import Incoming
from .errors import Reject
from .jsonlog.masking import mask_text

MAX_MESSAGE_LENGTH: Final = 2_000
MAX_STACK_LENGTH: Final = 16_000


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it may be kept and shown: masked and bounded. ``stack`` ends with the frames nearest to the error."""

    error_type: str
    message: str
    stack: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        kind = type(error)
        name = (
            kind.__qualname__
            if kind.__module__ in ("builtins", "__main__")
            else f"{kind.__module__}.{kind.__qualname__}"
        )
        try:
            message = str(error)
            stack = "".join(traceback.format_exception(error))
        except Exception as broken:  # noqa: BLE001 - an error whose __str__ raises is still an outcome
            message = stack = f"<{name} cannot be shown: {type(broken).__name__}>"
        return cls(name, mask_text(message)[:MAX_MESSAGE_LENGTH], mask_text(stack)[-MAX_STACK_LENGTH:])


@dataclass(frozen=True, slots=True)
class Ack:
    """Handled."""


@dataclass(frozen=True, slots=True)
class Again:
    """Run the handler again, ``delay`` seconds from now."""

    delay: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Wait:
    """Not begun: give it to a handler ``delay`` seconds from now; no attempt is counted."""

    delay: float


@dataclass(frozen=True, slots=True)
class Bury:
    """Move to the dead-letter stream; ``reason`` is one of ``names.REASON_*``."""

    reason: str
    failure: Failure


Outcome = Ack | Again | Wait | Bury

ACK: Final = Ack()

# For a message that is being handled under another entry: a copy is in no hurry.
WAIT_FOR_THE_OTHER: Final = Wait(1.0)


def before_run(incoming: Incoming, *, attempts: int, retry: Retry) -> Bury | None:
    """Whether the message can reach a handler at all.

    Args:
        attempts: handler runs begun before. Where these used up all, the last one's process died, or lost its lease.
    """
    if incoming.reason is not None:
        return Bury(incoming.reason, Failure(incoming.reason, incoming.detail or incoming.reason))
    if attempts >= retry.max_attempts:
        detail = f"its handler was begun {attempts} times; the last run's process died or lost its lease"
        return Bury(names.REASON_MAX_ATTEMPTS, Failure("ProcessDied", detail))
    return None


def no_retry() -> Bury:
    """An entry that others put into a retry stream: what a retry appends is missing."""
    return Bury(names.REASON_UNDECODABLE, Failure("undecodable", "it stands in a retry stream and is no retry"))


def misfit(error: Exception) -> Bury:
    """The payload is JSON, but not what the handler's annotation says; another try would not change it."""
    return Bury(names.REASON_INVALID_PAYLOAD, Failure.of(error))


def after_error(
    error: BaseException, *, attempt: int, retry: Retry, uniform: Callable[[float, float], float] = random.uniform
) -> Again | Bury:
    """The handler raised in run number ``attempt``.

    Args:
        attempt: handler runs so far, this one included.
        uniform: a source of randomness for the jitter.
    """
    if isinstance(error, Reject):
        return Bury(names.REASON_REJECTED, Failure.of(error))
    failure = Failure.of(error)
    retried = isinstance(error, (retry.retry_on, CancelledError))  # cancelled from within, not by the bus
    if isinstance(error, retry.give_up_on) or not retried:
        return Bury(names.REASON_GAVE_UP, failure)
    if attempt >= retry.max_attempts:
        return Bury(names.REASON_MAX_ATTEMPTS, failure)
    return Again(backoff(attempt, retry, uniform), failure)


def after_probe(outcome: Outcome, *, attempt: int, retry: Retry) -> Outcome:
    """A circuit breaker's probe failed: the message is not to blame, and does not run out of attempts for it."""
    if isinstance(outcome, Bury) and outcome.reason == names.REASON_MAX_ATTEMPTS:
        return Again(backoff(attempt, retry), outcome.failure)
    return outcome


def after_nack(delay: float | None, *, attempt: int, retry: Retry) -> Again | Bury:
    """The handler called ``nack``: as an error, but with the delay it asked for."""
    failure = Failure("nack", "the handler called nack()")
    if attempt >= retry.max_attempts:
        return Bury(names.REASON_MAX_ATTEMPTS, failure)
    return Again(backoff(attempt, retry, random.uniform) if delay is None else delay, failure)


def too_wide(again: Again) -> Bury:
    """An entry of too many fields to be scheduled: it is dead-lettered, with the error of its only attempt."""
    return Bury(names.REASON_GAVE_UP, again.failure)


def after_term(reason: str) -> Bury:
    """The handler called ``term``."""
    return Bury(names.REASON_REJECTED, Failure("term", mask_text(reason)[:MAX_MESSAGE_LENGTH]))


def backoff(attempt: int, retry: Retry, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds until the run after number ``attempt``; see :class:`quantum_bus.Retry` for the formula."""
    try:
        longest = min(retry.maximum, retry.initial * retry.multiplier ** (attempt - 1))
    except OverflowError:
        longest = retry.maximum
    return uniform(0.0, longest) if retry.jitter == "full" else longest


def dead_letter_fields(
    bury: Bury,
    *,
    stream: str,
    entry_id: str,
    group: str,
    consumer: str,
    attempts: int,
    first_failed_at: str,
    now: str,
    span: str,
) -> list[str]:
    """What is written behind the original fields, names and values in turn.

    Args:
        span: ``traceparent`` of the failing run; empty where no handler ran.
    """
    return [
        names.DLQ_STREAM,
        stream,
        names.DLQ_ID,
        entry_id,
        names.DLQ_GROUP,
        group,
        names.DLQ_CONSUMER,
        consumer,
        names.DLQ_ATTEMPTS,
        str(attempts),
        names.DLQ_REASON,
        bury.reason,
        names.DLQ_ERROR_TYPE,
        bury.failure.error_type,
        names.DLQ_ERROR_MESSAGE,
        bury.failure.message,
        names.DLQ_STACK,
        bury.failure.stack,
        names.DLQ_FIRST_FAILED_AT,
        first_failed_at,
        names.DLQ_LAST_FAILED_AT,
        now,
        names.DLQ_SPAN,
        span,
    ]
