"""Entries as Redis gives them, for the rooms behind the envelope."""

from quantum_bus.envelope import Entry, Incoming, decode
from quantum_bus.inbox import Held


def entry(number: int = 1, stream: str = "s", data: bytes = b"{}", **fields: str) -> Entry:
    values = [b"v", b"1", b"data", data, b"message_id", b"m-%d" % number, b"correlation_id", b"flow-%d" % number]
    for name, value in fields.items():
        values += [name.encode(), value.encode()]
    return Entry(stream, f"{number}-0", values)


def incoming(number: int = 1, stream: str = "s", data: bytes = b"{}", **fields: str) -> Incoming:
    return decode(entry(number, stream, data, **fields))


def held(number: int = 1, stream: str = "s") -> Held:
    return Held(incoming(number, stream))
