"""An event bus on Redis Streams whose every message and log line says which flow it belongs to."""

from typing import TYPE_CHECKING

from .lazily import exports

if TYPE_CHECKING:
    from .bus import EventBus
    from .config import Breaker, Retry
    from .envelope import Event
    from .errors import (
        BackPressure,
        BusClosed,
        ConfigurationError,
        ConnectionLost,
        LeaseLost,
        MessageAlreadySettled,
        NotDurable,
        PayloadTooLarge,
        PublishError,
        PublishTimeout,
        QuantumBusError,
        Reject,
        SerializationError,
    )
    from .jsonlog import (
        get_logger,
        log_event,
        log_intent_received,
        log_order_error,
        log_order_response,
        log_order_submit,
        setup_json_logging,
    )
    from .message import Message
    from .propagation import (
        carry_context,
        clear_correlation_id,
        correlation_scope,
        get_correlation_id,
        set_correlation_id,
    )
    from .readiness import Health, SubscriberHealth
    from .receipt import Receipt
else:  # hidden from type checkers, which would take any name for one of the package
    # A command, or a program that only logs, starts 35 ms sooner without the rest.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "bus": ("EventBus",),
            "config": ("Breaker", "Retry"),
            "envelope": ("Event",),
            "errors": (
                "BackPressure", "BusClosed", "ConfigurationError", "ConnectionLost", "LeaseLost",
                "MessageAlreadySettled", "NotDurable", "PayloadTooLarge", "PublishError", "PublishTimeout",
                "QuantumBusError", "Reject", "SerializationError",
            ),
            "jsonlog": (
                "get_logger", "log_event", "log_intent_received", "log_order_error", "log_order_response",
                "log_order_submit", "setup_json_logging",
            ),
            "message": ("Message",),
            "propagation": (
                "carry_context", "clear_correlation_id", "correlation_scope", "get_correlation_id",
                "set_correlation_id",
            ),
            "readiness": ("Health", "SubscriberHealth"),
            "receipt": ("Receipt",),
        },
    )  # fmt: skip

__all__ = [
    "BackPressure",
    "Breaker",
    "BusClosed",
    "ConfigurationError",
    "ConnectionLost",
    "Event",
    "EventBus",
    "Health",
    "LeaseLost",
    "Message",
    "MessageAlreadySettled",
    "NotDurable",
    "PayloadTooLarge",
    "PublishError",
    "PublishTimeout",
    "QuantumBusError",
    "Receipt",
    "Reject",
    "Retry",
    "SerializationError",
    "SubscriberHealth",
    "carry_context",
    "clear_correlation_id",
    "correlation_scope",
    "get_correlation_id",
    "get_logger",
    "log_event",
    "log_intent_received",
    "log_order_error",
    "log_order_response",
    "log_order_submit",
    "set_correlation_id",
    "setup_json_logging",
]
