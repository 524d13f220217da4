"""quantum-bus with much of something: messages in a stream, subscribers, messages in all, consumer processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import redis

from .bus import consume, publishing, set_up
from .filling import entries_of_the_bus, fill, stored
from .trial import CONCURRENCY, GROUP, IN_FLIGHT, STREAM, Outcome, Tally, Trial, in_flight, main, one_at_a_time

POLL: Final = 0.02


async def publish_into(trial: Trial) -> Outcome:
    """Into a stream that holds ``spread`` messages."""
    fill(trial.url, STREAM, entries_of_the_bus(trial.url), trial.spread)
    async with set_up(trial) as on:
        rate = await one_at_a_time(trial.count, publishing(on))
    return Outcome({"micros": 1e6 / rate}, on.facts | stored(trial.url, STREAM))


async def consume_behind(trial: Trial) -> Outcome:
    """From a stream that holds ``spread`` messages which the group has handled."""
    entries = entries_of_the_bus(trial.url)
    fill(trial.url, STREAM, entries, trial.spread)
    with redis.Redis.from_url(trial.url) as client:
        client.xgroup_create(STREAM, GROUP, id="$")
    fill(trial.url, STREAM, entries, trial.count)
    tally = Tally(trial.count)
    async with set_up(trial) as on:

        @on.bus.subscriber(STREAM, group=GROUP, concurrency=CONCURRENCY)
        async def handle(intent: dict) -> None:
            tally.add()
            if on.log is not None:
                on.log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"])

        await on.bus.start()
        await tally.all_seen.wait()
    return Outcome({"micros": 1e6 / tally.per_second}, on.facts | {"handled": tally.seen})


async def subscribers(trial: Trial) -> Outcome:
    """From ``spread`` streams, a subscriber each, in one bus."""
    outcome = await consume(trial)
    return Outcome({"micros": 1e6 / outcome.figures["rate"]}, outcome.facts)


class Growth:
    """How far this process grows while it is looked at: a thread reads its resident size."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._start = self._highest = _resident()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Highest size above that at the start, in megabytes."""
        self._ended.set()
        self._thread.join()
        return (self._highest - self._start) / 1e6

    def _look(self) -> None:
        while not self._ended.wait(POLL):
            self._highest = max(self._highest, _resident())


def _resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def memory_publishing(trial: Trial) -> Outcome:
    async with set_up(trial) as on:
        growth = Growth()
        await in_flight(trial.count, publishing(on), IN_FLIGHT)
        megabytes = growth.end()
    return Outcome({"megabytes": megabytes}, on.facts | stored(trial.url, STREAM))


async def memory_consuming(trial: Trial) -> Outcome:
    fill(trial.url, STREAM, entries_of_the_bus(trial.url), trial.count)
    tally = Tally(trial.count)
    async with set_up(trial) as on:

        @on.bus.subscriber(STREAM, group=GROUP, concurrency=CONCURRENCY)
        async def handle(intent: dict) -> None:
            tally.add()
            if on.log is not None:
                on.log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"])

        growth = Growth()
        await on.bus.start()
        await tally.all_seen.wait()
        megabytes = growth.end()
    return Outcome({"megabytes": megabytes}, on.facts | {"handled": tally.seen})


def processes(trial: Trial) -> Outcome:
    """``spread`` consumer processes of one group, on whichever cores there are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    fill(trial.url, STREAM, entries_of_the_bus(trial.url), trial.count)
    command = [sys.executable, "-m", __spec__.name, "one-of-them", "--url", trial.url, "--count", str(trial.count)]
    command += ["--level", trial.level]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(trial.spread)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()  # ready
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    with redis.Redis.from_url(trial.url) as client:
        while not _drained(client):
            time.sleep(POLL)
    told = [json.loads(child.communicate("stop\n")[0])["facts"] for child in children]
    handled = sum(each["handled"] for each in told)
    worked = [each for each in told if each["handled"]]
    elapsed = max(each["last"] for each in worked) - min(each["first"] for each in worked)
    return Outcome({"rate": handled / elapsed}, {"handled": handled, "each": [each["handled"] for each in told]})


def _drained(client: redis.Redis) -> bool:
    groups: Any = client.xinfo_groups(STREAM)
    last = client.xinfo_stream(STREAM)["last-generated-id"]
    return any(group["last-delivered-id"] == last and not group["pending"] for group in groups)


async def one_of_them(trial: Trial) -> Outcome:
    """A consumer process of :func:`processes`: says ``ready``, starts at ``go``, ends at ``stop``."""
    times = [0.0, 0.0]
    handled = 0
    async with set_up(trial) as on:

        @on.bus.subscriber(STREAM, group=GROUP, concurrency=CONCURRENCY)
        async def handle(intent: dict) -> None:
            nonlocal handled
            handled += 1
            times[1] = time.time()
            times[0] = times[0] or times[1]
            if on.log is not None:
                on.log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"])

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await on.bus.start()
        await asyncio.to_thread(sys.stdin.readline)
    return Outcome({}, {"handled": handled, "first": times[0], "last": times[1]})


if __name__ == "__main__":
    main(
        {
            "publish-into": publish_into,
            "consume-behind": consume_behind,
            "subscribers": subscribers,
            "memory-publish": memory_publishing,
            "memory-consume": memory_consuming,
            "processes": processes,
            "one-of-them": one_of_them,
        }
    )
