"""`quantum-bus demo`, as a newcomer runs it: on a Redis of its own, and on one that is there."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quantum_bus.demo.redis_server import RedisProcess
from tests.otlp import Collector

INTENT = "quantum:stream:intent"
EXECUTION = "quantum:stream:execution"
SERVICES = ["ai_engine", "auto_executor", "portfolio"]
INTENTS = 3
MARK = "QUANTUM_TEST_MARK"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for left-over processes in /proc")


class Demo:
    """Runs of the demo in one folder, and whatever process is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "demo"
        self.mark = uuid.uuid4().hex
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
        self.env |= {MARK: self.mark, "TERM": "xterm-256color"}

    def command(self, *arguments: str) -> list[str]:
        own = [f"--dir={self.folder}", f"--intents={INTENTS}"]
        return [sys.executable, "-m", "quantum_bus", "demo", *own, *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            text=True,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            **options,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env={**self.env, **env}, text=True, capture_output=True, timeout=50, check=False
        )

    def object(self, *arguments: str, **env: str) -> Any:
        done = self.run("--json", *arguments, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def left(self) -> list[int]:
        """Processes that carry our mark: this test's own children and theirs, Redis included."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def wait_until(self, condition: Callable[[], bool], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def lines(self, service: str) -> list[Any]:
        path = self.folder / "logs" / f"{service}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    assert demo.left() == []


def test_one_correlation_id_goes_through_all_services(demo: Demo) -> None:
    shown = demo.object()
    correlation_id = shown["correlation_id"]
    assert list(shown["services"]) == list(shown["files"]) == SERVICES
    for service in SERVICES:
        path = Path(shown["files"][service])
        assert path == demo.folder / "logs" / f"{service}.jsonl"
        assert correlation_id in path.read_text()
        assert shown["services"][service]["lines"] == len(demo.lines(service))
    counts = {event: count for service in shown["services"].values() for event, count in service["events"].items()}
    wanted = ("INTENT_CREATED", "INTENT_RECEIVED", "ORDER_SUBMIT", "ORDER_RESPONSE", "POSITION_UPDATED")
    assert {event: counts[event] for event in wanted} == dict.fromkeys(wanted, INTENTS)
    for service in SERVICES:
        events = [line["event"] for line in demo.lines(service)]
        assert events[0] == "SERVICE_STARTED"
        assert events[-1] == "SERVICE_STOPPED"
    entries = [json.loads(line) for line in Path(shown["entries_file"]).read_text().splitlines()]
    own = [entry for entry in entries if entry["correlation_id"] == correlation_id]
    assert [entry["stream"] for entry in own] == [INTENT, EXECUTION]
    assert [entry["event"] for entry in own] == ["INTENT_CREATED", "ORDER_FILLED"]
    assert {entry["traceparent"].split("-")[1] for entry in own} == {correlation_id}
    assert own[1]["causation_id"] == own[0]["message_id"]


def test_it_shows_a_tree_of_one_flow_that_fits_80_columns(demo: Demo) -> None:
    done = demo.run()
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    tree = done.stdout.partition("service ")[0].splitlines()
    assert max(map(len, tree)) <= 80
    steps = ["correlation_id", *SERVICES, "INTENT_CREATED", "ORDER_SUBMIT", "POSITION_UPDATED", INTENT, EXECUTION]
    for step in steps:
        assert any(step in line for line in tree), step
    search = next(line.strip() for line in done.stdout.splitlines() if "grep" in line)
    found = subprocess.run(search, shell=True, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["service"] for line in found.splitlines()] == [
        SERVICES[0],
        *[SERVICES[1]] * 3,
        SERVICES[2],
    ]


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(demo: Demo, env: dict[str, str], coloured: bool) -> None:
    terminal, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as output:
        process = subprocess.Popen(demo.command(), env={**demo.env, **env}, stdout=output, stderr=subprocess.DEVNULL)
    shown = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        shown += read
    os.close(terminal)
    assert process.wait() == 0
    # Bold is no colour; NO_COLOR leaves it.
    assert (b"\x1b[1;36m" in shown) is coloured


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("moment", ["at once", "in the middle"])
def test_a_signal_leaves_no_process(demo: Demo, number: signal.Signals, code: int, moment: str) -> None:
    process = demo.start("--intents=1000")
    if moment == "at once":
        demo.wait_until(lambda: len(demo.left()) > 1)
    else:
        demo.wait_until(lambda: any(line["event"] == "POSITION_UPDATED" for line in demo.lines("portfolio")))
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert said.splitlines() == [f"quantum-bus: demo: stopped by {number.name}; no process is left"]
    assert demo.left() == []


def test_even_a_killed_demo_leaves_no_process(demo: Demo) -> None:
    process = demo.start("--intents=1000")
    demo.wait_until(lambda: any(line["event"] == "POSITION_UPDATED" for line in demo.lines("portfolio")))
    process.kill()
    process.communicate()
    demo.wait_until(lambda: not demo.left())


def test_a_service_that_dies_ends_the_demo_with_its_last_words(demo: Demo) -> None:
    process = demo.start("--intents=1000")
    demo.wait_until(lambda: any(line["event"] == "POSITION_UPDATED" for line in demo.lines("portfolio")))
    pid = next(line["pid"] for line in demo.lines("portfolio") if line["event"] == "SERVICE_STARTED")
    os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert "portfolio ended with -9" in said


def test_a_second_run_in_the_same_folder_counts_its_own(demo: Demo) -> None:
    first, second = demo.object(), demo.object()
    assert first["correlation_id"] != second["correlation_id"]
    assert second["services"]["portfolio"]["events"]["POSITION_UPDATED"] == INTENTS
    assert len([line for line in demo.lines("portfolio") if line["event"] == "POSITION_UPDATED"]) == 2 * INTENTS


def test_a_folder_in_use_is_refused(demo: Demo) -> None:
    running = demo.start("--intents=1000")
    demo.wait_until(lambda: bool(demo.lines("ai_engine")))
    refused = demo.run()
    running.terminate()
    running.communicate(timeout=20)
    assert refused.returncode == 2
    assert "--dir" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--url=redis://127.0.0.1:1/0"], 1, "redis://127.0.0.1:1/0 cannot be used"),
        (["--url=http://127.0.0.1"], 2, "redis://localhost:6379/0"),
        (["--dir=/proc/none"], 2, "--dir /proc/none"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(demo: Demo, arguments: list[str], code: int, says: str) -> None:
    done = demo.run(*arguments)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_with_an_endpoint_every_span_of_a_flow_carries_its_id(demo: Demo) -> None:
    collector = Collector()
    try:
        correlation_id = demo.object(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)["correlation_id"]
    finally:
        collector.close()
    own = [span for span in collector.spans if span.trace_id.hex() == correlation_id]
    children = {span.parent_span_id: span for span in own}
    chain = [children[b""]]
    while chain[-1].span_id in children:
        chain.append(children[chain[-1].span_id])
    assert [span.name for span in chain] == [
        "create intent",
        f"send {INTENT}",
        f"process {INTENT}",
        f"send {EXECUTION}",
        f"process {EXECUTION}",
    ]
    assert len(own) == len(chain)
    for span in chain[1:]:
        attributes = {pair.key: pair.value.string_value for pair in span.attributes}
        assert attributes["messaging.message.conversation_id"] == correlation_id
    assert {resource["service.name"] for resource in collector.resources} == set(SERVICES)
    for service in SERVICES:
        of_flow = [line for line in demo.lines(service) if line["correlation_id"] == correlation_id]
        assert {line["trace_id"] for line in of_flow} == {correlation_id}


# --- on a Redis that is there --------------------------------------------------------------------


@pytest.fixture
def there(own_redis: RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_redis.url, decode_responses=True) as client:
        yield client


def test_a_given_redis_keeps_the_entries_and_no_group(demo: Demo, own_redis: RedisProcess, there: redis.Redis) -> None:
    there.xadd(INTENT, {"note": "somebody else's"})
    there.xgroup_create(INTENT, "idle-one", id="$")
    shown = demo.object(QUANTUM_BUS_URL=own_redis.url)
    correlation_id = shown["correlation_id"]
    for stream in (INTENT, EXECUTION):
        found = [fields for _, fields in there.xrange(stream) if fields.get("correlation_id") == correlation_id]
        assert len(found) == 1
    assert len(there.xrange(INTENT)) == 1 + INTENTS
    assert [group["name"] for group in there.xinfo_groups(INTENT)] == ["idle-one"]
    assert there.xinfo_groups(EXECUTION) == []
    assert shown["services"]["auto_executor"]["events"]["INTENT_RECEIVED"] == INTENTS


def test_it_says_how_to_look_into_a_given_redis(demo: Demo, own_redis: RedisProcess) -> None:
    done = demo.run(f"--url={own_redis.url}")
    assert done.returncode == 0, done.stderr
    assert f"redis-cli -u {own_redis.url} XRANGE {INTENT}" in done.stdout
    assert "stay in your Redis" in done.stdout


def test_services_at_work_are_not_handed_the_demos_intents(
    demo: Demo, own_redis: RedisProcess, there: redis.Redis
) -> None:
    there.xgroup_create(INTENT, "live", mkstream=True)
    there.xadd(INTENT, {"note": "real"})
    there.xreadgroup("live", "consumer", {INTENT: ">"}, count=1)
    done = demo.run(f"--url={own_redis.url}")
    assert done.returncode == 2
    assert "'live'" in done.stderr
    assert there.xlen(INTENT) == 1


def test_a_key_of_another_type_is_named(demo: Demo, own_redis: RedisProcess, there: redis.Redis) -> None:
    there.set(EXECUTION, "x")
    done = demo.run(f"--url={own_redis.url}")
    assert done.returncode == 1
    assert EXECUTION in done.stderr
    assert len(done.stderr.splitlines()) == 1
