"""Probes: what a bus says of itself, and what `quantum-bus run --probes` answers over HTTP."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from quantum_bus import ConfigurationError, Health
from quantum_bus.demo.redis_server import RedisProcess, start_redis
from tests.contract.backends import Backend
from tests.contract.conditions import Gate, eventually
from tests.contract.twins import ASYNCIO, THREADS, Buses, blocking, settled
from tests.servers import series_to_test, server_of


async def health(bus: Any, **options: Any) -> Health:
    """What a bus of either twin says of itself."""
    if asyncio.iscoroutinefunction(bus.raw.health):
        return await bus.raw.health(**options)  # type: ignore[no-any-return]
    return await blocking(bus.raw.health, **options)  # type: ignore[no-any-return]


async def ready(bus: Any) -> bool:
    return (await health(bus)).ready


async def doing(bus: Any) -> list[str]:
    return [each.doing for each in (await health(bus)).subscribers]


async def test_a_bus_is_ready_from_its_start_to_its_stop_and_live_throughout(buses: Buses, stream: str) -> None:
    bus = buses()
    gate = Gate()
    handling: list[Any] = []

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None:
        handling.append(payload)
        await gate.passed()

    before = await health(bus)
    assert (before.state, before.live, before.ready) == ("starting", True, False)
    await bus.start()
    await eventually(lambda: ready(bus))
    assert await doing(bus) == ["reading"]
    await bus.publish(stream, 1)
    await eventually(lambda: handling)
    stopping = asyncio.ensure_future(bus.stop())
    await eventually(lambda: bus.raw._state.value == "stopping")

    async def is_draining() -> bool:
        told = await health(bus)
        looks = (told.state, told.live, told.ready, told.faults)
        return looks == ("draining", True, False, ("the bus is draining",))

    await eventually(is_draining)
    gate.open()
    await stopping
    after = await health(bus)
    assert (after.state, after.live, after.ready) == ("stopped", True, False)


async def test_without_redis_it_is_live_and_not_ready_and_ready_again_with_it(
    buses: Buses, real_backend: Backend, own_redis: RedisProcess, stream: str
) -> None:
    bus = buses(backoff_maximum=0.2)

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    await bus.start()
    await eventually(lambda: ready(bus))
    own_redis.stop()
    await eventually(lambda: _lives_unready(bus, f"Redis at {own_redis.url}"))
    await eventually(lambda: _fault(bus, "its reads fail"))
    assert (await health(bus, ask_redis=False)).redis_fault is None
    own_redis.start(timeout=60.0)
    await eventually(lambda: ready(bus))

    own_redis.suspend()
    try:
        await eventually(lambda: _lives_unready(bus, "did not answer"))
    finally:
        own_redis.resume()
    await eventually(lambda: ready(bus))


async def _lives_unready(bus: Any, first_fault: str) -> bool:
    told = await health(bus)
    return told.live and not told.ready and first_fault in told.faults[0]


async def _fault(bus: Any, part: str) -> bool:
    return any(part in (each.fault or "") for each in (await health(bus)).subscribers)


async def test_a_subscriber_whose_reads_are_refused_is_not_ready_though_redis_answers(
    buses: Buses, real_backend: Backend, own_redis: RedisProcess, stream: str
) -> None:
    bus = buses(block=0.1, backoff_maximum=0.2)

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    await bus.start()
    await eventually(lambda: ready(bus))
    with redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser("default", commands=["-xreadgroup"], enabled=True, nopass=True)

        async def only_reads_fail() -> bool:
            told = await health(bus)
            only = told.live and not told.ready and told.redis_fault is None
            return only and [f"{stream} / svc: its reads fail" in fault for fault in told.faults] == [True]

        await eventually(only_reads_fail)
        client.acl_setuser("default", commands=["+xreadgroup"], enabled=True, nopass=True)
    await eventually(lambda: ready(bus))


async def test_who_does_not_read_by_intent_is_ready_and_says_why(buses: Buses, stream: str) -> None:
    bus = buses()
    gate = Gate()
    handling: list[Any] = []

    @bus.subscriber(stream, concurrency=1)
    async def handle(payload: Any) -> None:
        handling.append(payload)
        await gate.passed()

    await bus.start()
    await bus.publish_many(stream, range(5))
    await eventually(lambda: handling)

    async def is_doing(what: str) -> bool:
        return await doing(bus) == [what] and await ready(bus)

    await eventually(lambda: is_doing("full"))
    bus.raw.pause()
    await eventually(lambda: is_doing("paused"))
    gate.open()
    bus.raw.resume()
    await eventually(lambda: is_doing("reading"))


async def test_of_ordered_consumers_the_one_that_stands_by_is_ready_and_says_so(
    buses: Buses, real_backend: Backend, stream: str
) -> None:
    made = [buses(), buses()]
    handled: list[int] = []
    for number, bus in enumerate(made):

        @bus.subscriber(stream, ordered=True)
        async def handle(payload: Any, number: int = number) -> None:
            handled.append(number)

        await bus.start()

    async def one_leads() -> bool:
        return sorted([(await doing(bus))[0] for bus in made]) == ["reading", "standing by"]

    await eventually(one_leads)
    await made[0].publish(stream, 1)
    await eventually(lambda: handled)
    assert await doing(made[handled[0]]) == ["reading"]
    for bus in made:
        await eventually(lambda bus=bus: ready(bus))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_reader_that_has_ended_is_neither_live_nor_ready(
    buses: Buses, twin: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    await bus.start()
    await eventually(lambda: ready(bus))
    [consumer] = bus.raw._consumers
    if twin == ASYNCIO:
        consumer._reading.cancel()
    else:

        def end() -> int:
            raise SystemExit

        monkeypatch.setattr(consumer, "_await_room", end)
    await eventually(lambda: _fault(bus, "its reader ended"))
    told = await health(bus, ask_redis=False)
    assert (told.live, told.ready) == (False, False)


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_it_may_be_asked_from_another_event_loop(buses: Buses, stream: str) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    await bus.start()
    await eventually(lambda: asyncio.to_thread(lambda: asyncio.run(bus.raw.health()).ready))


@pytest.mark.parametrize("address", ["8080", "127.0.0.1:70000", ""])
async def test_an_address_that_cannot_work_is_told_before_anything_is_done(
    buses: Buses, twin: str, address: str
) -> None:
    bus = buses()
    with pytest.raises(ConfigurationError, match="probes="):
        await settled(bus.raw.run(probes=address))
    assert bus.raw._state.value == "new"


# --- over HTTP ---------------------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, os, time
    from quantum_bus{module} import EventBus
    bus = EventBus(service="shop", block=0.5, connect_timeout=20, backoff_maximum=0.2)

    @bus.subscriber({stream!r})
    {define} handle(order: dict) -> None:
        print("handling", flush=True)
        while not os.path.exists(order["until"]):
            if order["blocks"]:
                time.sleep(0.02)
            else:
                {sleep}(0.02)
"""
FORMS = {
    ASYNCIO: {"module": "", "define": "async def", "sleep": "await asyncio.sleep"},
    THREADS: {"module": ".sync", "define": "def", "sleep": "time.sleep"},
}


@dataclass
class Service:
    process: subprocess.Popen[str]
    base: str

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and answer; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(self.base + path, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    async def eventually(self, path: str, status: int, **parts: str) -> dict[str, Any]:
        async def told() -> dict[str, Any] | None:
            answered, body = await asyncio.to_thread(self.ask, path)
            return body if answered == status and parts.items() <= body.items() else None

        found: dict[str, Any] = await eventually(told)
        return found

    async def output(self, part: str) -> None:
        assert self.process.stdout is not None
        while part not in (line := await asyncio.to_thread(self.process.stdout.readline)):
            assert line, "it ended"


@pytest.fixture
def newest_redis() -> Iterator[RedisProcess]:
    """What is asked over HTTP is the same on every Redis."""
    with start_redis(server_of(series_to_test()[-1])) as process:
        yield process


@pytest.fixture
def serve(twin: str, newest_redis: RedisProcess, stream: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    (tmp_path / "shop.py").write_text(textwrap.dedent(PROGRAM).format(stream=stream, **FORMS[twin]))
    with contextlib.ExitStack() as running:

        def start(address: str) -> Service:
            env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-m", "quantum_bus", "run", "shop:bus", f"--probes={address}"],
                    env={**env, "QUANTUM_BUS_URL": newest_redis.url}, cwd=tmp_path, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
            running.callback(process.kill)
            return Service(process, f"http://{address}")

        yield start


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"127.0.0.1:{held.getsockname()[1]}"


async def test_a_service_answers_its_probes_from_before_its_start_to_the_end_of_its_drain(
    twin: str, serve: Callable[..., Service], newest_redis: RedisProcess, stream: str, tmp_path: Path
) -> None:
    blocks_until, runs_until = tmp_path / "unblock", tmp_path / "end"
    newest_redis.stop()
    service = serve(free_address())
    starting = await service.eventually("/readyz", 503)
    assert (starting["state"], starting["faults"][0]) == ("starting", "the bus is starting")
    await service.eventually("/livez", 200)
    newest_redis.start(timeout=60.0)
    told = await service.eventually("/readyz", 200)
    assert told["subscribers"] == [{"streams": [stream], "group": "shop", "doing": "reading", "fault": None}]

    async with redis.asyncio.Redis.from_url(newest_redis.url) as client:
        await client.xadd(stream, {"data": json.dumps({"until": str(blocks_until), "blocks": True})})
        await service.output("handling")
        if twin == ASYNCIO:
            stalled = await service.eventually("/livez", 503)
            assert stalled["faults"] == ["the event loop has not turned for 2 s"]
            blocks_until.touch()
            await service.eventually("/readyz", 200)
        await service.eventually("/livez", 200)  # a handler that blocks its own thread blocks nothing else
        blocks_until.touch()

        await client.xadd(stream, {"data": json.dumps({"until": str(runs_until), "blocks": False})})
        await service.output("handling")
    service.process.send_signal(signal.SIGTERM)
    await service.eventually("/readyz", 503, state="draining")
    await service.eventually("/livez", 200)
    runs_until.touch()
    _, err = await asyncio.to_thread(service.process.communicate, timeout=30)
    assert (service.process.returncode, err) == (0, "")
    assert service.ask("/livez")[0] == 0


async def test_a_taken_port_is_one_line_and_2(serve: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = serve(f"127.0.0.1:{taken.getsockname()[1]}")
        _, err = await asyncio.to_thread(service.process.communicate, timeout=30)
    assert service.process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "cannot listen there: Address already in use" in err
