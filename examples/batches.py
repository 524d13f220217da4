"""A consumer that takes messages by the hundred: one transaction for all of them.

Publishes a thousand prices, stores them in SQLite, and ends.
"""

import sqlite3
import sys

from quantum_bus import Event, Message, setup_json_logging
from quantum_bus.sync import EventBus

PRICES = 1_000

log = setup_json_logging("archive")
bus = EventBus(service="archive")  # the URL comes from QUANTUM_BUS_URL
database = sys.argv[1] if len(sys.argv) > 1 else "prices.sqlite"
left = PRICES


def write(rows: list[tuple[str, str, float, str]]) -> None:
    """All of the rows or none, and each once: a batch that comes again after a crash changes nothing."""
    connection = sqlite3.connect(database)
    try:
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS prices (message_id TEXT PRIMARY KEY, symbol TEXT, price REAL, flow TEXT)"
            )
            connection.executemany("INSERT OR IGNORE INTO prices VALUES (?, ?, ?, ?)", rows)
    finally:
        connection.close()


@bus.subscriber("prices", batch=100, concurrency=1)
def store(prices: list[dict], messages: list[Message]) -> None:
    """At most a hundred at once, fewer where fewer wait. Raising here tries all of them again.

    A batch is of as many flows as it has messages, so each row keeps its own.
    """
    global left  # noqa: PLW0603  # concurrency=1: one run at a time
    rows = [
        (message.message_id, price["symbol"], price["price"], message.correlation_id)
        for price, message in zip(prices, messages, strict=True)
    ]
    write(rows)
    left -= len(rows)
    log.info("Stored %d prices", len(rows), event="BATCH_STORED", size=len(rows), left=left)
    if left <= 0:
        bus.request_stop()


if __name__ == "__main__":
    bus.publish_many(
        "prices",
        [
            Event({"symbol": "BTCUSDT", "price": 64_000 + number / 10}, event="PRICE", correlation_id=f"tick-{number}")
            for number in range(PRICES)
        ],
    )
    bus.run()  # until all are stored, or Ctrl-C
