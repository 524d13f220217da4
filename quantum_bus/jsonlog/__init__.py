"""JSON logging: one object a line, with the flow it belongs to, fast enough to leave on.

:func:`setup_json_logging` once in a service, :func:`get_logger` anywhere; see docs/logging.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantum_bus.lazily import exports

if TYPE_CHECKING:
    from .capture import CaptureSink
    from .logger import Logger, get_logger
    from .masking import MASK, MaskedException, is_secret_name, mask_exception, mask_text
    from .orders import log_event, log_intent_received, log_order_error, log_order_response, log_order_submit
    from .setup import capture_logs, close_logging, flush_logging, setup_json_logging
else:  # hidden from type checkers, which would take any name for one of the package
    # Masking and escaping are wanted where nobody logs, too.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "capture": ("CaptureSink",),
            "logger": ("Logger", "get_logger"),
            "masking": ("MASK", "MaskedException", "is_secret_name", "mask_exception", "mask_text"),
            "orders": ("log_event", "log_intent_received", "log_order_error", "log_order_response", "log_order_submit"),
            "setup": ("capture_logs", "close_logging", "flush_logging", "setup_json_logging"),
        },
    )  # fmt: skip

__all__ = [
    "MASK",
    "CaptureSink",
    "Logger",
    "MaskedException",
    "capture_logs",
    "close_logging",
    "flush_logging",
    "get_logger",
    "is_secret_name",
    "log_event",
    "log_intent_received",
    "log_order_error",
    "log_order_response",
    "log_order_submit",
    "mask_exception",
    "mask_text",
    "setup_json_logging",
]
