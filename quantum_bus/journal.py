"""The bus's own log lines: constant events and fields, the same from both twins.

They go to the standard library's logger ``quantum_bus``; :func:`quantum_bus.setup_json_logging` makes JSON of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from . import names, streams
from .breaker import CircuitState
from .config import SubscriberConfig
from .envelope import Incoming
from .message import Message
from .outbox import GONE, LOST, Letter
from .upkeep import Alarm

log: Final = logging.getLogger(names.INSTRUMENTATION_NAME)


def started(service: str, subscribers: int) -> None:
    log.info("Bus of %s is started, %d subscribers", service, subscribers, extra={"event": names.EVENT_BUS_STARTED})


def probed_at(address: str) -> None:
    log.info("Probes are answered at %s%s and %s", address, names.PATH_LIVE, names.PATH_READY)


def draining(service: str) -> None:
    log.info("Bus of %s is draining", service, extra={"event": names.EVENT_BUS_DRAINING})


def stopped(service: str) -> None:
    log.info("Bus of %s is stopped", service, extra={"event": names.EVENT_BUS_STOPPED})


def abandoned(count: int, timeout: float) -> None:
    log.warning(
        "%d messages were not done within %g s; they stay pending",
        count,
        timeout,
        extra={"event": names.EVENT_BUS_ABANDONED, "messages": count},
    )


def group_made(stream: str, group: str, start: str, *, again: bool) -> None:
    event = names.EVENT_BUS_GROUP_RECREATED if again else names.EVENT_BUS_GROUP_CREATED
    log.info("Consumer group %s on %s is made", group, stream, extra={"event": event, "start": start})


def connection_lost(error: object) -> None:
    log.warning("Redis is away; trying to reach it again: %s", error, extra={"event": names.EVENT_BUS_CONNECTION_LOST})


def reading_again(config: SubscriberConfig) -> None:
    log.info("Reading %s again", ", ".join(config.streams), extra={"event": names.EVENT_BUS_RECONNECTED})


def read_refused(config: SubscriberConfig, error: object) -> None:
    log.warning(
        "Reading %s was refused: %s",
        ", ".join(config.streams),
        error,
        extra={"event": names.EVENT_BUS_READ_FAILED},
    )


def schedule_refused(config: SubscriberConfig, error: object) -> None:
    log.warning(
        "Retries and delayed messages of %s wait though they may be due, Redis refused to move them: %s",
        ", ".join(config.streams),
        error,
        extra={"event": names.EVENT_BUS_SCHEDULE_FAILED, "group": config.group},
    )


def deleted(stream: str, entry_id: str, group: str) -> None:
    log.error(
        "Message %s of %s was deleted from the stream before it was handled",
        entry_id,
        stream,
        extra={"event": names.EVENT_BUS_MESSAGE_LOST, "stream": stream, "entry_id": entry_id, "group": group},
    )


def recovered(config: SubscriberConfig, count: int) -> None:
    if count:
        log.warning(
            "%d messages of %s were taken over from a consumer that is gone, or that gave them up",
            count,
            ", ".join(config.streams),
            extra={"event": names.EVENT_BUS_RECOVERED, "messages": count, "group": config.group},
        )


def leading(stream: str, group: str, *, leads: bool, holder: str) -> None:
    """Who handles an ordered subscriber's stream now."""
    event = names.EVENT_BUS_LEADING if leads else names.EVENT_BUS_STANDING_BY
    fields = {"event": event, "stream": stream, "group": group, "holder": holder}
    if leads:
        log.info("Leading %s for group %s", stream, group, extra=fields)
    else:
        log.info("Standing by for %s of group %s; %s leads", stream, group, holder or "perhaps another", extra=fields)


def handler_failed(handler: str, messages: Sequence[Message], error: BaseException) -> None:
    """Called inside the run's scope, so that the line carries its correlation id and span."""
    first = messages[0]
    log.warning(
        "Handler %s failed on message %s of %s, attempt %d",
        handler,
        first.id,
        first.stream,
        first.attempt,
        exc_info=error,
        extra={"event": names.EVENT_BUS_HANDLER_FAILED, "attempt": first.attempt, "messages": len(messages)},
    )


def outcomes_refused(refused: Iterable[tuple[Letter, object]]) -> None:
    """Redis did not take some outcomes; they are tried again."""
    for letter, reply in refused:
        incoming = letter.held.incoming
        if letter.bury is None:
            log.warning(
                "Outcomes of %s could not be written, trying again: %s",
                incoming.stream,
                reply,
                extra={"event": names.EVENT_BUS_SETTLE_FAILED, "stream": incoming.stream},
            )
        else:
            log.error(
                "Message %s of %s could not be moved to %s; it stays pending and is tried again: %s",
                incoming.id,
                incoming.stream,
                streams.side_key(incoming.stream, names.SUFFIX_DLQ),
                reply,
                extra={"event": names.EVENT_BUS_DEAD_LETTER_FAILED, **_about(incoming)},
            )


def skipped(incoming: Incoming, group: str) -> None:
    """At DEBUG: a window of duplicates may be long, and they are counted."""
    log.debug(
        "Message %s of %s is skipped: its id was handled before",
        incoming.id,
        incoming.stream,
        extra={"event": names.EVENT_BUS_SKIPPED, "group": group, **_about(incoming)},
    )


def breaker(config: SubscriberConfig, state: CircuitState, pause: float) -> None:
    streams_named = ", ".join(config.streams)
    extra = {"group": config.group, "streams": streams_named}
    if state is CircuitState.OPEN:
        log.error(
            "Too many runs failed: handling %s pauses for %g s, and then tries one message",
            streams_named,
            pause,
            extra={"event": names.EVENT_BUS_BREAKER_OPENED, "pause": pause, **extra},
        )
    else:
        log.info("Handling %s goes on", streams_named, extra={"event": names.EVENT_BUS_BREAKER_CLOSED, **extra})


def internal_error(what: str, error: BaseException) -> None:
    """Something that was not foreseen; whoever meets it goes on."""
    log.error("%s failed, and goes on", what, exc_info=error, extra={"event": names.EVENT_BUS_INTERNAL_ERROR})


def begin_refused(config: SubscriberConfig, error: object) -> None:
    log.warning(
        "Handling %s waits: that handlers begin could not be noted, trying again: %s",
        ", ".join(config.streams),
        error,
        extra={"event": names.EVENT_BUS_SETTLE_FAILED, "group": config.group},
    )


def paused(config: SubscriberConfig) -> None:
    log.warning(
        "Handling %s is paused",
        ", ".join(config.streams),
        extra={"event": names.EVENT_BUS_PAUSED, "group": config.group},
    )


def resumed(config: SubscriberConfig) -> None:
    log.info(
        "Handling %s is resumed",
        ", ".join(config.streams),
        extra={"event": names.EVENT_BUS_RESUMED, "group": config.group},
    )


def stream_long(alarm: Alarm, cap: int) -> None:
    log.error(
        "Stream %s has %d entries, over the cap of %d; %s",
        alarm.stream,
        alarm.length,
        cap,
        f"group {alarm.group} has come least far: is anybody reading for it?" if alarm.group else "it has no group",
        extra={
            "event": names.EVENT_BUS_STREAM_LONG,
            "stream": alarm.stream,
            "length": alarm.length,
            "group": alarm.group or None,
        },
    )


def settled(letter: Letter, group: str) -> None:
    """An outcome reached Redis; said where it is not the usual one. Whoever waits for it is told, not the log."""
    incoming = letter.held.incoming
    fields = {"group": group, **_about(incoming)}
    if letter.result == LOST:
        if letter.settled is None and not letter.held.gone:
            log.warning(
                "Message %s of %s was taken over by another consumer before it was settled here",
                incoming.id,
                incoming.stream,
                extra={"event": names.EVENT_BUS_LEASE_LOST, **fields},
            )
    elif letter.result == GONE:
        log.error(
            "Message %s of %s was deleted from the stream before it could be dead-lettered",
            incoming.id,
            incoming.stream,
            extra={"event": names.EVENT_BUS_MESSAGE_LOST, **fields},
        )
    elif letter.bury is not None:
        log.error(
            "Message %s of %s is dead-lettered after %d attempts: %s: %s",
            incoming.id,
            incoming.stream,
            letter.held.attempt,
            letter.bury.failure.error_type,
            letter.bury.failure.message,
            extra={
                "event": names.EVENT_BUS_DEAD_LETTERED,
                "reason": letter.bury.reason,
                "attempts": letter.held.attempt,
                **fields,
            },
        )


def _about(incoming: Incoming) -> dict[str, Any]:
    return {
        "correlation_id": incoming.correlation_id,
        "message_id": incoming.message_id,
        "stream": incoming.stream,
        "entry_id": incoming.id,
    }
