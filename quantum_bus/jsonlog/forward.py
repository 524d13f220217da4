"""Before set-up: records go to the standard library's loggers, and by the application's own rules."""

from __future__ import annotations

import logging
from typing import Final

from quantum_bus import names
from quantum_bus.propagation import get_correlation_id

from .logrecord import as_extra
from .plain import Limits, plain_object
from .record import Context, read_call

_FORWARDED: Final = Limits(text=4096, nodes=200)


class ForwardingPipeline:
    """Before ``setup_json_logging``: records go to the standard library's logger, and by the application's own rules.

    Its fields stand behind the message, and on the record as ``extra=`` would put them there.
    """

    threshold = 0
    dropped = 0

    def emit(
        self,
        level: int,
        context: Context,
        msg: object,
        args: tuple[object, ...],
        fields: dict[str, object],
        micros: int = 0,  # noqa: ARG002 - the standard library takes its own time
    ) -> None:
        """Hand one record to the standard library."""
        try:
            logger = logging.getLogger(context.logger)
            if not logger.isEnabledFor(level):
                return
            call = read_call(context, msg, args, fields)
            shown = plain_object(call.fields, _FORWARDED)
            text = " ".join((call.msg, *(f"{name}={value!r}" for name, value in shown.items())))
            added = {
                names.LOG_EVENT: call.event,
                names.LOG_CORRELATION_ID: call.correlation_id or get_correlation_id(),
                **shown,
            }
            exc_info: object = fields.get("exc_info")
            logger.log(
                level,
                "%s",
                text,
                exc_info=exc_info if isinstance(exc_info, (BaseException, tuple)) else bool(exc_info),
                extra=as_extra(added),
                stacklevel=3,
            )
        except Exception:  # noqa: BLE001, S110 - a log call never raises, and the standard library has no counter
            pass

    def emit_stdlib(self, record: logging.LogRecord) -> None:
        """Not reached: no handler of ours is installed yet."""

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing was opened."""

    def release(self) -> None:
        """There is no file."""

    def after_fork(self) -> None:
        """There is no state."""
