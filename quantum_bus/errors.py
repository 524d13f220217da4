"""What can go wrong, as one tree.

::

    QuantumBusError
    ├── ConfigurationError        wrong option, URL, handler signature, stream key: says what would be right
    ├── BusClosed                 the bus was stopped
    ├── SerializationError        the payload is not JSON
    ├── PayloadTooLarge           the payload is JSON, and too much of it
    ├── PublishError              Redis did not store the message, or did not say so
    │   ├── PublishTimeout        no answer within the timeout: the message may or may not be stored
    │   ├── BackPressure          Redis is out of memory: not stored, try later
    │   └── NotDurable            stored, and not confirmed by as many replicas as were asked for
    ├── ConnectionLost            Redis cannot be reached
    ├── Reject                    raised by a handler: dead-letter this message now
    ├── MessageAlreadySettled     ack, nack or term on a message that has had one of them
    └── LeaseLost                 another consumer has taken the message over; nothing was changed

Errors of the Redis driver are translated where they arise and kept as ``__cause__``.
"""

from __future__ import annotations

from .receipt import Receipt


class QuantumBusError(Exception):
    """Everything this library raises on purpose."""


class ConfigurationError(QuantumBusError, ValueError):
    """An option, URL, name or handler signature is wrong; the text says what would be right."""


class BusClosed(QuantumBusError):
    """The bus was stopped; make a new one."""


class SerializationError(QuantumBusError, TypeError):
    """The payload cannot be written as JSON."""


class PayloadTooLarge(QuantumBusError, ValueError):
    """The encoded payload is longer than the bus's ``max_payload_bytes``.

    Attributes:
        size: bytes of the encoded payload.
        limit: bytes allowed.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the payload is {size:,} bytes of JSON, over the limit of {limit:,}; store it elsewhere and publish "
            "a reference, or raise max_payload_bytes on the bus"
        )

    def __reduce__(self) -> tuple[type[PayloadTooLarge], tuple[int, int]]:
        # An exception is unpickled from its text by default: this one has come back from a worker process.
        return type(self), (self.size, self.limit)


class PublishError(QuantumBusError):
    """Redis did not confirm the message; it is not stored, but where a subclass says otherwise."""


class PublishTimeout(PublishError, TimeoutError):
    """Redis did not confirm the message in time, or refused it after a reply was lost.

    It may be stored, unless the text says that it was never sent: publish again with the same ``message_id``.
    """


class BackPressure(PublishError):
    """Redis is at ``maxmemory`` and took nothing; slow down and publish again."""


class NotDurable(PublishError):
    """The message is stored, but too few replicas confirmed it in time: should the master be lost now, it may be, too.

    Publishing it again stores it again, but with ``dedupe`` and the same ``message_id``: that confirms the first one.

    Attributes:
        receipt: of the message, as it is stored.
        wanted: how many replicas were to confirm it.
        confirmed: how many did.
    """

    def __init__(self, receipt: Receipt, wanted: int, confirmed: int) -> None:
        self.receipt = receipt
        self.wanted = wanted
        self.confirmed = confirmed
        super().__init__(
            f"message {receipt.message_id} is stored for {receipt.stream!r}, and confirmed by {confirmed} of the "
            f"{wanted} replicas that were asked for; look at them (INFO replication), or allow a longer timeout"
        )

    def __reduce__(self) -> tuple[type[NotDurable], tuple[Receipt, int, int]]:
        return type(self), (self.receipt, self.wanted, self.confirmed)


class ConnectionLost(QuantumBusError, ConnectionError):
    """Redis cannot be reached, or the connection broke before the answer came.

    Attributes:
        written: whether what was asked may have reached Redis, and be done.
    """

    written = True

    def unwritten(self) -> ConnectionLost:
        """The same, for who asked what was not yet written."""
        lost = ConnectionLost(*self.args)
        lost.__cause__ = self.__cause__
        lost.written = False
        return lost


class Reject(QuantumBusError):
    """Raise in a handler to dead-letter the message at once, without a retry.

    Attributes:
        reason: kept with the dead letter.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        self.reason = reason
        super().__init__(reason)


class MessageAlreadySettled(QuantumBusError):
    """The message has been acked, nacked or terminated before."""


class LeaseLost(QuantumBusError):
    """The message belongs to another consumer by now; the call changed nothing."""
