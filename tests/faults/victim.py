"""A consumer in a process of its own, to be stopped and killed: `python -m tests.faults.victim TWIN URL OPTIONS`.

OPTIONS is JSON: the streams, the subscriber's options, `retry` as an object. A message says what its handler does, run
by run, the last one for all further runs: `{"n": 1, "runs": [["wait", "raise"], ["return"]]}`. The steps:

    sleep, block    0.1 s as handlers wait; BLOCK_SECONDS in which the event loop stands still, too
    wait            until the key `go` exists
    die             SIGKILL
    raise, reject   end with an error, with `Reject`
    return          end

What it does is noted in the list `notes`, so that it survives the process. SIGTERM stops it gracefully.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import redis

import quantum_bus.sync
from quantum_bus import EventBus, Message, Reject, Retry, setup_json_logging
from tests.contract.twins import ASYNCIO

NOTES = "notes"
GO = "go"
POLL = 0.005


class Script:
    """What a handler does; the steps that wait are left to its twin."""

    def __init__(self, url: str, block_seconds: float) -> None:
        self._redis = redis.Redis.from_url(url)
        self._block_seconds = block_seconds

    def steps(self, message: Message) -> Iterator[float]:
        """Carry out what the message says; gives the seconds to wait."""
        runs = message.data["runs"]
        self._note(message, "begun")
        for step in runs[min(message.attempt, len(runs)) - 1]:
            match step:
                case "sleep":
                    yield 0.1
                case "block":
                    time.sleep(self._block_seconds)
                case "wait":
                    while not self._redis.exists(GO):
                        yield POLL
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "raise":
                    self._note(message, "ended")
                    raise ValueError("as told")
                case "reject":
                    self._note(message, "ended")
                    raise Reject("as told")
        self._note(message, "ended")

    def _note(self, message: Message, what: str) -> None:
        note = {"pid": os.getpid(), "what": what, "n": message.data["n"], "attempt": message.attempt, "id": message.id}
        self._redis.rpush(NOTES, json.dumps(note))


def main(twin: str, url: str, options: dict[str, Any]) -> None:
    setup_json_logging("svc", "INFO")
    script = Script(url, options.pop("block_seconds", 0.0))
    streams = options.pop("streams", ["s"])
    options["retry"] = Retry(**options.pop("retry", {}))
    if twin == ASYNCIO:
        bus = EventBus(url, service="svc")

        @bus.subscriber(*streams, **options)
        async def handle(message: Message) -> None:
            for seconds in script.steps(message):
                await asyncio.sleep(seconds)

        asyncio.run(bus.run())
    else:
        threads_bus = quantum_bus.sync.EventBus(url, service="svc")

        @threads_bus.subscriber(*streams, **options)
        def handle_in_thread(message: Message) -> None:
            for seconds in script.steps(message):
                time.sleep(seconds)

        threads_bus.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
