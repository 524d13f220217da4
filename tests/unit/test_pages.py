"""The pages: Python runs, commands and their options exist, data can be read, links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import quantum_bus
from quantum_bus import jsonlog
from scripts import diagrams
from tests.pages import PAGES, ROOT, Block, blocks_of, check

# What a page takes for granted: the lines before its first block.
GIVEN = {
    "docs/correlation.md": """

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from quantum_bus import EventBus, get_correlation_id, get_logger
await asyncio.sleep(0)
log, bus, executor, order, seen = get_logger(), EventBus(service="page"), ThreadPoolExecutor(1), {"id": 7}, []
loop = asyncio.get_running_loop()
def work(order=None):
    seen.append(get_correlation_id())
""",
    "docs/operating.md": """
from quantum_bus import EventBus
from starlette.applications import Starlette
app, bus = Starlette(), EventBus(service="page")
""",
    "docs/telemetry.md": """
from starlette.applications import Starlette
app = Starlette()
""",
}
# What must hold once a page's blocks have run.
THEN = {
    "docs/correlation.md": """
executor.shutdown()
(entry,) = await __import__("redis").asyncio.Redis.from_url("").xrange("orders")
assert entry[1][b"correlation_id"] == b"a1b2c3d4-e5f6-7890-abcd-ef1234567890", entry
assert seen == [None, None, None], seen
""",
    "docs/tutorial.md": """
from quantum_bus.testing import TestBus
async with TestBus(bus) as test:
    receipt = await test.publish("quantum:stream:execution", {"symbol": "BTCUSDT", "qty": 0.5})
    await test.drained()
    (line,) = [line for line in test.logs if line["event"] == "RISK_CHECKED"]
assert (line["correlation_id"], line["msg"]) == (receipt.correlation_id, "BTCUSDT: 0.5 is within limits")
""",
    "docs/how-to/existing-service.md": """
(entry,) = await redis.asyncio.Redis.from_url("").xrange("invoices")
assert (entry[1][b"event"], entry[1][b"key"], entry[1][b"service"]) == (b"INVOICE_SENT", b"c-9", b"billing")
""",
    "docs/how-to/fastapi.md": """
import httpx
from quantum_bus.testing import TestBus
async with TestBus(bus) as test:
    await test.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        answer = await client.post("/orders", json={"id": 7}, headers={"X-Correlation-ID": "a-1"})
    (entry,) = await test.entries("orders")
assert (answer.status_code, answer.json()) == (202, {"correlation_id": "a-1"})
assert answer.headers["x-correlation-id"] == "a-1"
assert entry.fields["correlation_id"] == "a-1"
""",
    "docs/how-to/schema-changes.md": """
from quantum_bus.testing import TestBus
async with TestBus(bus) as test:
    await test.publish("orders", {"id": "o-1", "symbol": "BTCUSDT"})
    await test.publish("orders", {"id": "o-2", "symbol": "BTCUSDT", "venue": "kraken", "unknown": 1})
    await test.publish("orders", {"id": "o-3"})
    await test.publish("payments", {"amount": 1.5}, event="PAYMENT_BOOKED")
    await test.publish("payments", {"amount": {"minor": 150}}, event="PAYMENT_BOOKED_V2")
    await test.publish("payments", {}, event="OTHER")
    await test.drained()
    (letter,) = await test.dead_letters("orders")
    assert await test.dead_letters("payments") == []
assert sorted(order.venue for order in shipped) == ["binance", "kraken"]
assert seen == [150, 150]
assert letter.fields["dlq.reason"] == "invalid_payload"
""",
    "docs/how-to/cloudevents.md": """
from quantum_bus.testing import TestBus
async with TestBus(bus) as test:
    await test.start()
    given = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "com.example.order_placed", "subject": "o-7",
             "correlationid": "flow-1", "data": {"qty": 1}}
    await take(given)
    await take(given)
    await test.drained()
    assert len(await test.entries("orders")) == 1
(event,) = sent
assert {name: event[name] for name in ("id", "type", "subject", "correlationid", "data", "specversion")} == {
    name: given[name] for name in ("id", "type", "subject", "correlationid", "data", "specversion")}
assert event["traceparent"].startswith("00-") and event["source"] == "/services/bridge" and "causationid" not in event
""",
}
# By page and the beginning of the block: why it is only compiled.
NOT_RUN = {
    ("docs/testing.md", "import pytest"): "a test, run with its service in test_readme.py",
    ("tests/faults/README.md", "async def test_a_router"): "a test of that tier, with its fixtures",
}
# By page and the beginning of the block: which file it is to be put into, behind which line.
PART_OF = {
    ("docs/deploy-compose.md", "  pricing:"): ("deploy/compose.yaml", "services:\n"),
}

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
BY_PAGE = {
    str(page.relative_to(ROOT)): [block for block in blocks_of(page) if block.language == "python"] for page in PAGES
}


def excused(block: Block, reasons: dict[tuple[str, str], str]) -> bool:
    return any(block.page == page and block.text.startswith(beginning) for page, beginning in reasons)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_what_it_says_it_is(block: Block) -> None:
    for (page, beginning), (file, line) in PART_OF.items():
        if block.page == page and block.text.startswith(beginning):
            before, after = (ROOT / file).read_text(encoding="utf-8").split(f"\n{line}", 1)
            block = replace(block, text=f"{before}\n{line}{block.text}{after}")
    check(block)


@pytest.mark.parametrize("page", [page for page, found in BY_PAGE.items() if found])
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    program = [("given", GIVEN.get(page, ""))]
    program += [(str(block), block.text) for block in BY_PAGE[page] if not excused(block, NOT_RUN)]
    program += [("then", THEN.get(page, ""))]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "page_program.py"],
        input=json.dumps(program),
        cwd=tmp_path,
        env={
            **inherited,
            "QUANTUM_BUS_URL": "redis://localhost:6379/0",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
        },
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_excused_is_still_there() -> None:
    for page, beginning in (*NOT_RUN, *PART_OF):
        assert any(block.page == page and block.text.startswith(beginning) for block in BLOCKS), (page, beginning)
    assert set(GIVEN) | set(THEN) <= {page for page, found in BY_PAGE.items() if found}


@pytest.mark.parametrize(
    ("language", "text", "complaint"),
    [
        ("", "some words\nthat are no command\n", "what is this block"),
        ("haskell", "main = pure ()\n", "nothing checks haskell"),
        ("python", "def f(:\n", "invalid syntax"),
        ("json", '{"a": }\n', "Expecting value"),
        ("yaml", "a: [1\n", "expected"),
        ("ini", "a = 1\n", "no section headers"),
        ("toml", "a =\n", "Invalid value"),
        ("redis", "XAD s * a 1\n", "XAD is no command"),
        ("sh", "quantm-bus demo\n", "quantm-bus: no program"),
        ("sh", "quantum-bus demmo\n", "has no demmo"),
        ("sh", "quantum-bus dlq list orders --limt 3\n", "No such option"),
        ("sh", "export A=1; quantum-bus dlq show | jq . && make demmo\n", "make has no demmo"),
        ("sh", "make demo  # a comment\npython -m quantum_bus.demmo\n", "no module quantum_bus.demmo"),
        ("sh", "scripts/no_such.sh\n", "no file"),
        ("sh", "pip install 'quantum-bus[clli]'\n", "no such extra"),
        ("sh", "redis-cli XAD orders '*' a 1\n", "XAD is no command"),
        ("console", "quantum-bus lag\n", "begin commands with"),
        ("console", "$ quantum-bus lag --no-such-option\n", "No such option"),
    ],
)
def test_a_block_that_is_wrong_is_noticed(language: str, text: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(Block("page.md", 1, language, text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_pictures_are_what_their_script_draws() -> None:
    for name, draw in diagrams.PICTURES.items():
        assert (diagrams.IMAGES / name).read_text(encoding="utf-8") == draw().svg(), "run scripts/diagrams.py"


def test_the_reference_has_every_public_name() -> None:
    told = re.findall(
        r"^::: quantum_bus\.(.+)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(told) == len(set(told))
    names = {name.removeprefix("jsonlog.") for name in told}
    assert names >= set(quantum_bus.__all__)
    assert names >= set(jsonlog.__all__) - {"MASK"}
