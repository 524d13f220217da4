"""Entries as Redis gives them, for the rooms behind the envelope."""

from quantum_bus.envelope import Entry, Incoming, decode
from quantum_bus.inbox import Held
from quantum_bus.streams import RETRY_VALUES, Keys


def entry(number: int = 1, stream: str = "s", data: bytes = b"{}", **fields: str) -> Entry:
    values = [b"v", b"1", b"data", data, b"message_id", b"m-%d" % number, b"correlation_id", b"flow-%d" % number]
    for name, value in fields.items():
        values += [name.encode(), value.encode()]
    return Entry(stream, f"{number}-0", values)


def incoming(number: int = 1, stream: str = "s", data: bytes = b"{}", **fields: str) -> Incoming:
    return decode(entry(number, stream, data, **fields))


def held(number: int = 1, stream: str = "s", *, retried: int = 0, begun: int = 0, unsettled: bool = False) -> Held:
    """A message as it was taken in.

    Args:
        retried: how many attempts its entry in the retry stream tells of; 0 for one of the stream itself.
        begun: runs that only the delivery count tells of.
        unsettled: it comes from a consumer that is gone.
    """
    source, source_id = (Keys.of(stream, "g").retry, f"{1000 + number}-0") if retried else (stream, f"{number}-0")
    return Held(
        incoming(number, stream),
        source,
        source_id,
        attempt=retried + begun,
        noted=retried,
        unsettled=unsettled or begun > 0,
        cut=RETRY_VALUES if retried else 0,
    )
