"""Code that runs as a handler does: in the flow of a message."""

from collections.abc import Iterator
from contextlib import contextmanager

from quantum_bus.propagation import enter_message, leave_message


@contextmanager
def in_message(correlation_id: str, causation_id: str | None) -> Iterator[None]:
    """The scope that :class:`quantum_bus.handling.Handling` enters and leaves, without its span."""
    scope = enter_message(correlation_id, causation_id)
    try:
        yield
    finally:
        leave_message(scope)
