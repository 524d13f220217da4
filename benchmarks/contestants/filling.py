"""Streams filled ahead of a trial, quicker than anyone publishes: packed once, written in one go."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import redis
from hiredis import Reader, ReplyError, pack_command
from opentelemetry.metrics import NoOpMeterProvider

from quantum_bus.sync import EventBus

from .trial import EVENT, PAYLOAD, SCRATCH, SERVICE

DIFFERENT: Final = 100  # entries; they are repeated in turn
AT_ONCE: Final = 10_000

Fields = dict[bytes, bytes]


def entries_of_the_bus(url: str, number: int = DIFFERENT) -> list[Fields]:
    """What the bus itself writes: read back, so that it is the bus's own bytes whatever its envelope looks like.

    It has a provider of its own: a bus that is used before the global SDK is set up has that told of each message
    singly, by later buses, too, and a service sets it up first.
    """
    with EventBus(url, service=SERVICE, meter_provider=NoOpMeterProvider()) as bus:
        for _ in range(number):
            bus.publish(SCRATCH, PAYLOAD, event=EVENT)
    return taken_from(url, SCRATCH)


def taken_from(url: str, stream: str) -> list[Fields]:
    """The entries of a stream, which is deleted."""
    with redis.Redis.from_url(url) as client:
        entries = [fields for _, fields in client.xrange(stream)]
        client.delete(stream)
    return entries


def fill(url: str, stream: str, entries: Sequence[Fields], count: int) -> None:
    """Add so many entries, in turn those that are given."""
    packed = [
        pack_command(("XADD", stream, "*", *(part for pair in fields.items() for part in pair))) for fields in entries
    ]
    rounds = [packed[number % len(packed)] for number in range(min(count, AT_ONCE))]
    together = b"".join(rounds)
    address = urlsplit(url)
    reader = Reader()
    with socket.create_connection((address.hostname or "", address.port or 6379)) as connection:
        left = count
        while left > 0:
            number = min(left, AT_ONCE)
            connection.sendall(together if number == len(rounds) else b"".join(rounds[:number]))
            left -= number
            while number:
                reader.feed(connection.recv(1 << 20))
                while (reply := reader.gets()) is not False:
                    if isinstance(reply, ReplyError):
                        raise reply
                    number -= 1


def stored(url: str, stream: str) -> dict[str, object]:
    """What stands in a stream: how many entries, and the lengths of the last one's fields."""
    with redis.Redis.from_url(url) as client:
        last = client.xrevrange(stream, count=1)
        fields = {name.decode(): len(value) for name, value in last[0][1].items()} if last else {}
        return {"stored": client.xlen(stream), "entry": fields}


def pending(url: str, stream: str, group: str) -> int:
    """Entries of a group that are read and not acknowledged."""
    with redis.Redis.from_url(url) as client:
        return int(client.xpending(stream, group)["pending"])
