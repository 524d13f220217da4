"""The README and the pages behind it: what they show is what comes out. Every page's blocks: test_pages.py."""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from quantum_bus.cli.demo import flow_tree
from quantum_bus.demo.flow import StreamEntry, build_flow
from quantum_bus.demo.trading import EXECUTION_STREAM, INTENT_STREAM, SERVICES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Of rich's SVG.
COLUMN_WIDTH = 12.2

# Puts a Redis in memory where the page names a real one.
IN_MEMORY = """
import fakeredis, redis.asyncio
server = fakeredis.FakeServer(version=(7, 0))
redis.asyncio.Redis.from_url = lambda url, **options: fakeredis.FakeAsyncRedis(server=server)
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_first_example_logs_what_the_readme_shows(tmp_path: Path) -> None:
    example = blocks(README, "python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    (tmp_path / "example.py").write_text(IN_MEMORY + example, encoding="utf-8")
    shown = [json.loads(line) for line in blocks(README, "json")[0].splitlines()]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", tmp_path / "example.py"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    logged = []
    with process.stdout:
        for line in process.stdout:
            record = json.loads(line)
            if record["correlation_id"] is not None:
                logged.append(record)
            if record["event"] == shown[-1]["event"]:
                process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    varying = {"ts", "correlation_id", "trace_id", "span_id"}
    for real, printed in zip(logged, shown, strict=True):
        assert list(real) == list(printed)
        assert {k: v for k, v in real.items() if k not in varying} == {
            k: v for k, v in printed.items() if k not in varying
        }
    for lines in (logged, shown):
        assert len({line["correlation_id"] for line in lines}) == 1
        assert all(line["trace_id"] == line["correlation_id"] for line in lines)


def test_the_demos_tree_looks_as_the_page_and_the_readmes_picture_show_it() -> None:
    def line(micros: int, event: str, msg: str) -> dict[str, str]:
        return {"ts": f"2026-01-03T10:15:23.{micros:06d}Z", "event": event, "msg": msg, "correlation_id": "f" * 32}

    def entry(micros: int, stream: str, service: str) -> StreamEntry:
        fields = {"correlation_id": "f" * 32, "service": service, "ts": f"2026-01-03T10:15:23.{micros:06d}Z"}
        return StreamEntry(stream, "1795457365396-0", fields)

    flow = build_flow(
        "f" * 32,
        {
            "ai_engine": [line(0, "INTENT_CREATED", "Intent created: ETHUSDT")],
            "auto_executor": [
                line(1300, "INTENT_RECEIVED", "Intent received: ETHUSDT"),
                line(1500, "ORDER_SUBMIT", "Order submitted: ETHUSDT"),
                line(7100, "ORDER_RESPONSE", "Order response: ETHUSDT"),
            ],
            "portfolio": [line(8600, "POSITION_UPDATED", "Position updated: ETHUSDT")],
        },
        [entry(200, INTENT_STREAM, "ai_engine"), entry(7400, EXECUTION_STREAM, "auto_executor")],
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(flow_tree(flow))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue().strip()
    page = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
    shown = next(block for block in blocks(page, "") if "└──" in block).strip()
    assert shape(drawn) == shape(shown)
    pictured = pictured_lines("demo")
    begin = next(at for at, line in enumerate(pictured) if line.startswith("correlation_id"))
    assert shape("\n".join(pictured[begin : begin + len(shape(drawn))])) == shape(drawn)


def pictured_lines(name: str) -> list[str]:
    """The text of a picture that `make picture` has made."""
    source = (ROOT / f"docs/images/{name}.svg").read_text(encoding="utf-8")
    assert f"docs/images/{name}.svg" in README
    lines: dict[float, str] = {}
    part = re.compile(r'<text class="[\w-]+-r[0-9]+" x="([0-9.]+)" y="([0-9.]+)"[^>]*>([^<\n]+)</text>')
    for x, y, text in sorted(part.findall(source), key=lambda found: (float(found[1]), float(found[0]))):
        before = lines.get(float(y), "")
        column = round(float(x) / COLUMN_WIDTH)  # blanks alone have no text of their own
        lines[float(y)] = before.ljust(column) + html.unescape(text).replace("\xa0", " ")
    return list(lines.values())


def test_the_picture_of_trace_shows_every_service_and_their_log_lines() -> None:
    text = "\n".join(pictured_lines("trace"))
    for word in (*SERVICES, "handled in", "after it was sent", "ORDER_SUBMIT", "POSITION_UPDATED"):
        assert word in text


def shape(tree: str) -> list[str]:
    """Without what differs from run to run."""
    text = re.sub(r"correlation_id [0-9a-f]{32}", "correlation_id …", tree)
    return [re.sub(r"[0-9]+", "#", line.rstrip()) for line in text.splitlines()]


def test_the_service_and_its_test_run_as_the_pages_show_them(tmp_path: Path) -> None:
    service = blocks((ROOT / "docs/getting-started.md").read_text(encoding="utf-8"), "python")[0]
    test = blocks((ROOT / "docs/testing.md").read_text(encoding="utf-8"), "python")[0]
    (tmp_path / "executor.py").write_text(service, encoding="utf-8")
    (tmp_path / "test_executor.py").write_text(test, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "QUANTUM_BUS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_commands_that_the_readme_names_exist() -> None:
    targets = re.findall(r"^([a-z-]+)[ a-z-]*:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.MULTILINE)):
        assert command in targets
