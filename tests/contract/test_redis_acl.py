"""docs/redis-acl.md: with its lines everything works, and without any one of their commands something does not.

The lines are read from the page. Redis itself is asked what it refused whom: ACL LOG.
"""

import asyncio
import gc
import re
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from typer.testing import CliRunner, Result

import quantum_bus.confirmation
import quantum_bus.upkeep
from quantum_bus import Event, EventBus, Message, NotDurable, Reject, Retry, names
from quantum_bus.cli.app import app
from quantum_bus.cli.connection import make_client, make_link
from quantum_bus.demo.redis_server import RedisProcess, RedisServer, start_redis
from quantum_bus.exporter import Exporter
from quantum_bus.gauges import Gauge
from quantum_bus.stopping import StopRequest
from quantum_bus.streams import Keys
from quantum_bus.sync import EventBus as SyncEventBus
from tests.contract.backends import Backend
from tests.contract.conditions import PATIENCE, eventually, pause
from tests.contract.twins import ASYNCIO, Buses
from tests.servers import series_to_test, server_of

ROOT = Path(__file__).parents[2]
LINES = {
    line.split()[2]: line
    for page in ("redis-acl.md", "operating.md")
    for line in re.findall(r"^ACL SETUSER .*$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
}
SECRET = "secret"
# redis-py says its name where it may (CLIENT SETINFO, since 7.2) and goes on where not; 6.2 says what it refused so.
UNNEEDED = {"client", "client|setinfo"}
# Entries are freed by the hundred.
FILLERS = 120


def commands(role: str) -> list[str]:
    """What a line grants, as it does."""
    return re.findall(r"(?<= )\+\S+", LINES[role])


@pytest.fixture(scope="module")
def server(redis_binary: RedisServer) -> Iterator[RedisProcess]:
    """A Redis whose users this module makes."""
    with start_redis(redis_binary, options={"acllog-max-len": "100000"}) as process:
        yield process


@pytest.fixture(scope="module")
def newest() -> Iterator[RedisProcess]:
    """One of the newest series alone, for what takes long: what is asked for is the same on every Redis."""
    with start_redis(server_of(series_to_test()[-1]), options={"acllog-max-len": "100000"}) as process:
        yield process


def admin_of(server: RedisProcess) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


@pytest.fixture(scope="module")
def admin(server: RedisProcess) -> Iterator[redis.Redis]:
    with admin_of(server) as client:
        yield client


def made(admin: redis.Redis, role: str, *, but: str = "") -> str:
    """A new user by the role's line, but for one command; its name."""
    user = f"{role}-{uuid.uuid4().hex[:8]}"
    rules = LINES[role].split()[3:]
    assert not but or but in rules
    admin.execute_command("ACL", "SETUSER", user, "reset", *(rule for rule in rules if rule != but))
    return user


def url_for(server: RedisProcess, user: str) -> str:
    return f"redis://{user}:{SECRET}@127.0.0.1:{server.port}/0"


class Refused:
    """What Redis refused to whom. It adds up only what comes close together, so it is emptied as it is read."""

    def __init__(self, admin: redis.Redis) -> None:
        self._admin = admin
        self._found: dict[str, set[str]] = {}
        admin.acl_log_reset()

    def to(self, user: str) -> set[str]:
        self._read()
        return self._found.get(user, set())

    def _read(self) -> None:
        """In one transaction: what came between the two commands would be lost, and some is only refused once."""
        with self._admin.pipeline(transaction=True) as both:
            entries, _ = both.acl_log(100_000).acl_log_reset().execute()
        for entry in entries:
            self._found.setdefault(entry["username"], set()).add(entry["object"].lower())

    def lacking(self, users: dict[str, str]) -> set[str]:
        """Those commands of the users' that were not refused to them; 6.2 names no subcommand."""
        self._read()
        asked = {user: self._found.get(user, set()) for user in users}
        lacking = set()
        for user, command in users.items():
            name, _, _ = (whole := command.removeprefix("+")).partition("|")
            if not any(what in {whole, name} or what.startswith(f"{whole}|") for what in asked[user]):
                lacking.add(command)
        return lacking


def prefix() -> str:
    return f"quantum:{uuid.uuid4().hex[:12]}:"


# --- what each of them does ------------------------------------------------------------------------


async def publish_everything(new_bus: Callable[..., Any], admin: redis.asyncio.Redis) -> None:
    stream = prefix() + "orders"
    async with new_bus() as bus:
        assert (await bus.publish(stream, {"n": 1})).id
        receipts = await bus.publish_many(stream, [{"n": 2}, Event({"n": 3}, dedupe=60.0, message_id="three")])
        assert all(receipt.id for receipt in receipts)
        again = await bus.publish(stream, {"n": 3}, dedupe=60.0, message_id="three")
        assert again.id == receipts[1].id
        for _ in range(2):  # the second finds the first
            await bus.publish(stream, {"n": 4}, delay=60.0, message_id="four")
        assert await admin.zcard(f"{{{stream}}}:due") == 1
        with pytest.raises(NotDurable):
            await bus.publish(stream, {"n": 5}, wait_replicas=1, timeout=20.0)
    assert await admin.xlen(stream) == 4


async def consume_everything(new_bus: Callable[..., Any], admin: redis.asyncio.Redis) -> None:
    orders, ordered, bulk = (prefix() + name for name in ("orders", "ordered", "bulk"))
    keys = Keys.of(orders, "pay")
    handled: list[str] = []
    # What a consumer that died left behind, one of it deleted meanwhile; a group that vanished and is noted.
    await admin.xgroup_create(orders, "pay", "0", mkstream=True)
    await admin.xgroup_create(ordered, "row", "0", mkstream=True)
    for name, group in ((orders, "pay"), (ordered, "row")):
        for n in range(3):
            await admin.xadd(name, {"data": f'{{"n":"left {n}"}}', "key": "a"})
        entries = await admin.xreadgroup(group, "dead", {name: ">"})
        await admin.xdel(name, entries[0][1][0][0])
    await admin.hset(keys.notes, "low:vanished", (await admin.xadd(orders, {"data": "{}"})).decode())
    async with EventBus(client=admin, service="test") as other:
        for n in ("fails once", "fails", "is refused", "slow", "once"):
            await other.publish(orders, {"n": n}, message_id=f"{keys.stream}:{n}")
        await other.publish(orders, {"n": "once"}, message_id=f"{keys.stream}:once")
        await other.publish(orders, {"n": "delayed"}, delay=0.05)
        await other.publish(ordered, {"n": "fails once"}, key="a")
        await other.publish(ordered, {"n": "behind it"}, key="a")
    filling = admin.pipeline(transaction=False)
    for _ in range(FILLERS):
        filling.xadd(bulk, {"data": "{}"})
    await filling.execute()
    retry = Retry(max_attempts=2, initial=0.05, jitter="none")

    async def handle(payload: dict[str, Any], message: Message) -> None:
        n = payload.get("n", "")
        if n == "fails" or (n == "fails once" and message.attempt == 1):
            raise RuntimeError(n)
        if n == "is refused":
            raise Reject(n)
        if n == "slow":  # the heartbeat renews its lease meanwhile
            await pause(0.5)
        handled.append(f"{message.group} {n}")

    bus = new_bus(keep=0)
    bus.subscriber(orders, group="pay", retry=retry, ack_wait=0.3)(handle)
    bus.subscriber(orders, group="once", retry=retry, idempotent=60.0)(handle)
    bus.subscriber(orders, group="vanished", retry=retry)(handle)
    bus.subscriber(ordered, group="row", retry=retry, ordered=True, ack_wait=0.3)(handle)
    bus.subscriber(bulk, group="bulk")(handle)
    standby = new_bus()
    standby.subscriber(ordered, group="row", retry=retry, ordered=True, ack_wait=0.3)(handle)
    async with bus, standby:
        expected = {
            *(f"pay {n}" for n in ("fails once", "slow", "once", "delayed", "left 1", "left 2")),
            *(f"once {n}" for n in ("fails once", "slow", "once")),
            "vanished slow",
            *(f"row {n}" for n in ("left 1", "left 2", "fails once", "behind it")),
        }
        await eventually(lambda: expected <= set(handled))
        assert handled.count("once once") == 1
        for _ in range(2):  # looked at once more after each
            added = await admin.xadd(orders, {"data": "{}"})
            await eventually(lambda added=added: _marked(admin, keys.marks, added))

        async def is_settled() -> bool:
            rows = [*await admin.xinfo_groups(orders), *await admin.xinfo_groups(ordered)]
            return all(row["pending"] == 0 for row in rows)

        await eventually(is_settled)

        async def is_trimmed() -> bool:
            return await admin.xlen(bulk) < FILLERS

        await eventually(is_trimmed)
    assert await admin.xlen(keys.dead) >= 2
    assert await admin.xlen(keys.completed) > 10


async def _marked(admin: redis.asyncio.Redis, marks: str, entry_id: bytes) -> bool:
    return await admin.zscore(marks, entry_id) is not None


# Fractions of a second for what takes seconds: nobody waits, and everything comes about.
@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantum_bus.upkeep, "EVERY", 0.1)
    monkeypatch.setattr(quantum_bus.upkeep, "MOST_MARKS", 1)
    # Of the twenty seconds for it replicas are waited for one: the answer has the rest.
    monkeypatch.setattr(quantum_bus.confirmation, "ANSWER_SHARE", 0.95)
    monkeypatch.setattr(quantum_bus.confirmation, "ANSWER_MARGIN", 60.0)


Behaviour = Callable[[Callable[..., Any], redis.asyncio.Redis], Awaitable[None]]
OF_BUSES: dict[str, Behaviour] = {"publisher": publish_everything, "consumer": consume_everything}


@pytest.mark.parametrize("role", OF_BUSES)
async def test_with_its_line_a_bus_does_all_it_is_for(
    role: str, twin: str, server: RedisProcess, admin: redis.Redis
) -> None:
    user, refused = made(admin, role), Refused(admin)
    buses = Buses(twin, Backend(server.server.series, url_for(server, user)))
    async with redis.asyncio.Redis.from_url(server.url) as client:
        try:
            await OF_BUSES[role](buses, client)
        finally:
            await buses.stop()
    assert refused.to(user) <= UNNEEDED


@pytest.fixture
def swept(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Used first, so that it ends last: when the test's loop is closed and nothing refers to its connections."""
    yield
    caplog.get_records("call").clear()  # their exceptions' tracebacks lead to everything
    gc.collect()


@pytest.mark.timeout(180)
# redis-py leaves a connection open whose making is cancelled; they are swept here, not in a test that did not do it.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:loop is closed:ResourceWarning")
@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize(
    ("role", "part"), [("publisher", slice(None)), *(("consumer", slice(first, None, 3)) for first in range(3))]
)
async def test_a_bus_asks_for_every_command_of_its_line(role: str, part: slice, newest: RedisProcess) -> None:
    """As many users as the line has commands, each without one of them, all (of a third) at the same time."""
    server, admin = newest, admin_of(newest)
    users = {made(admin, role, but=command): command for command in commands(role)[part]}
    refused = Refused(admin)
    every_bus = [Buses(ASYNCIO, Backend("", url_for(server, user))) for user in users]
    async with redis.asyncio.Redis.from_url(server.url) as client:
        doing = [asyncio.ensure_future(OF_BUSES[role](buses, client)) for buses in every_bus]

        def nobody_is_lacking() -> bool:
            admin.script_flush()  # else the first to send a script's text does it for all
            return not refused.lacking(users)

        try:
            await eventually(nobody_is_lacking, timeout=3 * PATIENCE)
        except AssertionError:
            raise AssertionError(f"nobody asked for {sorted(refused.lacking(users))}") from None
        finally:
            for task in doing:
                task.cancel()
            await asyncio.gather(*doing, return_exceptions=True)
            await asyncio.gather(*(buses.stop() for buses in every_bus))
            admin.close()


# --- those that ask ----------------------------------------------------------------------------------


def sick_stream(admin: redis.Redis) -> str:
    """The name of a new stream on which there is something of everything: what is asked for is asked of it."""
    stream = prefix() + "sick"
    keys = Keys.of(stream, "pay")
    ids = [admin.xadd(stream, {"data": "{}"}) for _ in range(6)]
    admin.xgroup_create(stream, "pay", "0")
    admin.xgroup_create(keys.retry, "pay", "0", mkstream=True)
    admin.xreadgroup("pay", "dead", {stream: ">"}, count=2)
    admin.xdel(stream, ids[3])  # in between: how many are left must be counted
    admin.zadd(keys.due, {"1-1": 1})
    admin.hset(keys.copies, "1-1", "")
    admin.zadd(keys.delayed_due, {"2-1": 1})
    return stream


def typed(url: str, line: str, streams: dict[str, str]) -> Result:
    return CliRunner().invoke(app, line.format(**streams).split(), env={"QUANTUM_BUS_URL": url})


OPERATED = (
    "doctor",
    "lag",
    "status",
    "trace flow-1 --stream {plain}",
    "tail {plain} --count 1",
    "publish {plain} 1",
    "dlq list {stream}",
    "dlq show {stream} {dead}",
    "dlq replay {stream} {dead} --yes",
    "dlq purge {stream} --all --yes",
)


def flow_stream(server: RedisProcess) -> str:
    """The name of a new stream with a flow on it, part of which is only due later."""
    stream = prefix() + "flow"
    with SyncEventBus(server.url, service="test") as bus:
        for delay in (None, 3600.0):
            bus.publish(stream, {}, correlation_id="flow-1", delay=delay)
    return stream


@contextmanager
def messages_coming(admin: redis.Redis, stream: str) -> Iterator[None]:
    """For what waits for one."""
    over = threading.Event()

    def add() -> None:
        while not over.wait(0.02):
            admin.xadd(stream, {"data": "{}"})

    adding = threading.Thread(target=add)
    adding.start()
    try:
        yield
    finally:
        over.set()
        adding.join()


def operate(
    url: str, admin: redis.Redis, sick: str, plain: str, *, enough: Callable[[], bool] = lambda: False
) -> dict[str, Result]:
    """Every command once, with one dead letter to show and replay and one to purge; or until it is `enough`."""
    dead = {"data": "{}", "dlq.stream": sick, "dlq.id": "1-1", "dlq.group": "pay", "dlq.reason": "rejected"}
    first, _ = (admin.xadd(Keys.of(sick, "pay").dead, dead) for _ in range(2))
    admin.script_flush()
    ended: dict[str, Result] = {}
    for line in OPERATED:
        with messages_coming(admin, plain) if line.startswith("tail") else nullcontext():
            ended[line] = typed(url, line, {"stream": sick, "plain": plain, "dead": first})
        if enough():
            break
    return ended


def observe(url: str) -> list[Gauge]:
    """What the exporter sees at its first look."""
    seen: list[list[Gauge]] = []
    stop = StopRequest()

    def see(found: list[Gauge]) -> None:
        seen.append(found)
        stop.set()

    with make_client(url) as client:
        link = make_link(client, url)
        Exporter(link, interval=0.1).run(stop, seen=see)
        link.close()
    return seen[0]


def test_with_its_line_the_exporter_and_the_operator_are_told_everything(
    server: RedisProcess, admin: redis.Redis
) -> None:
    sick, refused = sick_stream(admin), Refused(admin)
    user = made(admin, "exporter")
    seen = {gauge.name: gauge.points for gauge in observe(url_for(server, user))}
    assert [value for _, value in seen[names.METRIC_EXPORTER_REFUSED]] == [0]
    assert any(sick in point.values() for point, _ in seen[names.METRIC_LAG])
    operator = made(admin, "operator")
    ended = operate(url_for(server, operator), admin, sick, flow_stream(server))
    assert {line: result.exit_code for line, result in ended.items()} == {line: line == "doctor" for line in OPERATED}
    assert "overdue" in ended["doctor"].stdout
    assert "not-checked" not in ended["doctor"].stdout
    trace = next(result.stdout for line, result in ended.items() if line.startswith("trace"))
    assert "refused" not in trace
    assert admin.xlen(Keys.of(sick, "pay").dead) == 0
    assert refused.to(user) | refused.to(operator) <= UNNEEDED


def test_the_exporter_and_the_operator_ask_for_every_command_of_their_lines(newest: RedisProcess) -> None:
    server, admin = newest, admin_of(newest)
    sick, plain, refused = sick_stream(admin), flow_stream(server), Refused(admin)
    users = {}
    for role in ("exporter", "operator"):
        for command in commands(role):
            user = made(admin, role, but=command)
            users[user] = command
            if role == "operator":
                noticed = partial(lambda user, command: not refused.lacking({user: command}), user, command)
                operate(url_for(server, user), admin, sick, plain, enough=noticed)
            else:
                admin.script_flush()
                observe(url_for(server, user))
    assert refused.lacking(users) == set()
    admin.close()


@pytest.mark.parametrize("options", ["", "--delay 60", "--dedupe 60 --message-id one"])
def test_a_publisher_may_publish_from_a_shell(options: str, server: RedisProcess, admin: redis.Redis) -> None:
    user, refused, stream = made(admin, "publisher"), Refused(admin), prefix() + "orders"
    for _ in range(2):
        ended = typed(url_for(server, user), f"publish {{plain}} 1 {options}", {"plain": stream})
        assert ended.exit_code == 0, ended.output
    assert admin.xlen(stream) + admin.zcard(f"{{{stream}}}:due") == (1 if "dedupe" in options else 2)
    assert refused.to(user) <= UNNEEDED


@pytest.mark.parametrize("role", ["publisher", "consumer"])
def test_a_user_has_no_key_but_those_of_its_streams(role: str, server: RedisProcess, admin: redis.Redis) -> None:
    user = made(admin, role)
    with redis.Redis.from_url(url_for(server, user)) as client:
        for key in ("other:stream", "{other:stream}:dlq", "quantumother"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.xadd(key, {"data": "{}"})


def test_the_compose_files_users_have_these_lines() -> None:
    given = (ROOT / "deploy" / "redis" / "users.acl").read_text(encoding="utf-8")
    users = {line.split()[1]: line.split()[2:] for line in given.splitlines() if line.startswith("user ")}

    def rights(*roles: str) -> set[str]:
        return {rule for role in roles for rule in LINES[role].split()[4:] if not rule.startswith(">")}

    assert set(users) == {"default", "health", "service", "exporter", "operator"}
    assert {rule for rule in users["service"] if not rule.startswith(">")} == {"on", *rights("publisher", "consumer")}
    for role in ("exporter", "operator"):
        assert {rule for rule in users[role] if not rule.startswith(">")} == {"on", *rights(role)}
    assert users["default"] == ["off"]
    assert users["health"] == ["on", "nopass", "resetkeys", "resetchannels", "-@all", "+ping"]
