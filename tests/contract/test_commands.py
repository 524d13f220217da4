"""Every command through a terminal and through a pipe: with Redis down, with an empty one, with hostile content.

`demo`, `run` and `exporter`, which start something and stay, are in suites of their own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import typer

from quantum_bus.cli.app import app
from quantum_bus.cli.examples import EXAMPLES
from tests.contract.terminals import COLUMNS, OUR_CODES, Ended, Terminals
from tests.servers import RedisPool, series_to_test

NOBODY = "redis://someone:secret@127.0.0.1:1/0"
# Databases of the shared servers that no other test uses.
EMPTY, HOSTILE = 13, 14
EVIL = "\x1b[31mEVIL\x07\u202e\u2028\x9b0m"
RIGHTS = re.search(
    "^ACL SETUSER looker .*$", (Path(__file__).parents[2] / "docs/commands.md").read_text(), re.MULTILINE
)[0]
# What must reach no screen: C0 but the line end, DEL, C1, line separators, bidi marks.
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

# Arguments of each command, with {stream} for a stream's name and {id} for an id.
COMMANDS = {
    "doctor": ["doctor"],
    "dlq list": ["dlq", "list", "{stream}"],
    "dlq show": ["dlq", "show", "{stream}", "{dead}"],
    "dlq replay": ["dlq", "replay", "{stream}", "--all", "--dry-run"],
    "dlq purge": ["dlq", "purge", "{stream}", "--all", "--dry-run"],
    "lag": ["lag"],
    "publish": ["publish", "{stream}", '{{"n": "{evil}"}}', "--event", "{event}"],
    "status": ["status"],
    "tail": ["tail", "--last", "9", "--count", "3"],
    "trace": ["trace", "{id}"],
}
# A command that watches has no end by itself: on an empty Redis there is nothing to end it.
WATCHES = ("tail",)
ENDS_WELL_ON_EMPTY = ("dlq list", "dlq replay", "dlq purge", "lag", "publish", "status")


@pytest.fixture(scope="module")
def terminals() -> Iterator[Terminals]:
    made = Terminals()
    yield made
    made.close()


@pytest.fixture(scope="module", params=series_to_test()[-1:])
def server(request: pytest.FixtureRequest, redis_pool: RedisPool) -> str:
    """The newest one: what is shown does not hang on the server's version, and other suites try each."""
    return redis_pool.of(request.param).url.rpartition("/")[0]


@pytest.fixture(scope="module")
def hostile(server: str) -> Iterator[dict[str, str]]:
    """A database that holds nothing but hostile text: names, fields, records, dead letters, groups, consumers."""
    name = f"s{EVIL}"
    with redis.Redis.from_url(f"{server}/{HOSTILE}") as client:
        assert client.dbsize() == 0
        group = f"g{EVIL}"
        fields = {
            "v": "1", "data": json.dumps({"order_id": "order-1", f"k{EVIL}": EVIL}), "event": f"E{EVIL}", "key": EVIL,
            "message_id": "m-1", "correlation_id": "flow-1", "service": f"svc{EVIL}", "ts": f"2026{EVIL}",
            f"h.{EVIL}": EVIL, f"x{EVIL}": EVIL, "causation_id": "nobody",
        }  # fmt: skip
        client.xgroup_create(name, group, "0", mkstream=True)
        client.xgroup_create(name, f"idle{EVIL}", "0")
        handled, waiting = client.xadd(name, fields), client.xadd(name, fields | {"message_id": "m-2"})
        client.xadd(name, {"data": b"\xff\xfe" + EVIL.encode(), b"\xff": b"\xfe"})
        client.xreadgroup(group, f"c{EVIL}", {name: ">"}, count=2)
        record = {
            "message_id": "m-1", "correlation_id": "flow-1", "started": "2026-01-03T10:15:23.456789Z", "duration": 0.5,
            "attempt": 1, "outcome": "ack",
        }  # fmt: skip
        head = {"group": group, "service": f"svc{EVIL}", "consumer": f"c{EVIL}"}
        client.xadd(f"{{{name}}}:completed", head | {handled: json.dumps(record), "no record": EVIL, "1-1": "{}"})
        dead = {f"dlq.{part}": EVIL for part in ("consumer", "reason", "error_type", "error_message", "stack", "span")}
        dead |= {"dlq.stream": name, "dlq.id": waiting.decode(), "dlq.group": group}
        letter = client.xadd(f"{{{name}}}:dlq", fields | {"message_id": "m-2"} | dead)
        client.hset(f"{{{name}}}:scheduled", EVIL, EVIL)
        client.zadd(f"{{{name}}}:due", {EVIL: 1})
        yield {"stream": name, "dead": letter.decode(), "id": "order-1", "event": EVIL, "evil": EVIL}
        client.flushdb()  # the database is this module's own


def run(terminals: Terminals, command: str, url: str, *, terminal: bool, until: str = "", **names: str) -> Ended:
    given = {"stream": "orders", "dead": "1735900523456-0", "id": "flow-1", "event": "E", "evil": "x"} | names
    arguments = [argument.format(**given) for argument in COMMANDS[command]]
    return terminals.run(*arguments, "--url", url, terminal=terminal, until=until)


def test_every_command_is_in_this_suite_and_has_examples_in_its_help(terminals: Terminals) -> None:
    commands = dict(typer.main.get_command(app).commands)
    of_dlq = {f"dlq {name}" for name in commands.pop("dlq").commands}
    assert {*commands, *of_dlq} == set(EXAMPLES) == {*COMMANDS, "demo", "run", "exporter"}
    for command, examples in EXAMPLES.items():
        shown = terminals.run(*command.split(), "--help", terminal=True)
        assert shown.code == 0
        for example in examples:
            assert example.startswith(("quantum-bus", "echo"))
            assert f"  {example}" in shown.out.replace("\r", "")
        if command not in ("demo", "run"):  # which have another, or none
            assert "QUANTUM_BUS_URL" in shown.out


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_redis_it_ends_with_one_line_and_shows_no_password(
    terminals: Terminals, command: str, terminal: bool
) -> None:
    ended = run(terminals, command, NOBODY, terminal=terminal)
    assert ended.code in (1, 2)
    assert ended.out == ""
    [line] = ended.err.splitlines()
    assert line.startswith(f"quantum-bus: {command}: Redis at redis://someone:***@127.0.0.1:1/0 cannot be reached")


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in WATCHES])
def test_on_an_empty_redis_it_says_so_and_leaves_nothing(
    terminals: Terminals, server: str, command: str, terminal: bool
) -> None:
    with redis.Redis.from_url(f"{server}/{EMPTY}") as client:
        client.delete("orders")  # `publish` is there to leave something
        assert client.dbsize() == 0
        ended = run(terminals, command, f"{server}/{EMPTY}", terminal=terminal)
        assert client.dbsize() == (command == "publish")
        client.delete("orders")
    assert ended.out or ended.err
    assert "Traceback" not in ended.err
    if command in ENDS_WELL_ON_EMPTY:
        assert (ended.code, OUR_CODES.sub("", ended.err)) == (0, "")


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("command", COMMANDS)
def test_hostile_content_is_shown_and_not_obeyed(
    terminals: Terminals, server: str, hostile: dict[str, str], command: str, terminal: bool
) -> None:
    ended = run(terminals, command, f"{server}/{HOSTILE}", terminal=terminal, **hostile)
    assert "Traceback" not in ended.err
    told = ended.out + ended.err
    assert "\x1b[31mEVIL" not in told
    assert not UNSAFE.search(OUR_CODES.sub("", told) if terminal else told)
    if command not in ("publish", "dlq purge"):  # which show ids alone
        shown = OUR_CODES.sub("", told)
        assert "EVIL" in re.sub(r"\s+", "", shown), "it is shown, not left out"


@pytest.mark.parametrize("command", ["dlq list", "lag", "status", "tail", "trace"])
def test_it_fits_80_columns_and_cuts_no_figure(
    terminals: Terminals, server: str, hostile: dict[str, str], command: str
) -> None:
    ended = run(terminals, command, f"{server}/{HOSTILE}", terminal=True, **hostile)
    shown = OUR_CODES.sub("", ended.out).splitlines()
    assert shown
    tables = [line for line in shown if not line.startswith(("2 messages", "  s\\u001b", "not looked at"))]
    assert all(len(line) <= COLUMNS for line in tables), tables
    if command in ("lag", "status"):
        assert not any("…" in line for line in shown)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", ["status", "tail", "trace"])
def test_in_a_pipe_and_with_no_color_there_is_no_colour(
    terminals: Terminals, server: str, hostile: dict[str, str], command: str, options: list[str]
) -> None:
    arguments = [argument.format(**hostile) for argument in COMMANDS[command]]
    arguments += [*options, "--url", f"{server}/{HOSTILE}"]
    piped = terminals.run(*arguments)
    assert "\x1b" not in piped.out
    if options:
        for text in piped.lines if command == "tail" else [piped.out]:
            json.loads(text)
        return
    coloured, plain = terminals.run(*arguments, terminal=True), terminals.run(*arguments, terminal=True, NO_COLOR="1")
    colours = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7])[;m]")
    assert colours.search(coloured.out)
    assert not colours.search(plain.out)


def test_ctrl_c_ends_what_watches_without_a_word(terminals: Terminals, server: str, hostile: dict[str, str]) -> None:
    url = f"{server}/{HOSTILE}"
    for terminal in (False, True):
        for arguments, until in (
            (["tail", "--last", "1"], "u001b"),
            (["status", "--watch", "--interval", "0.2"], "groups"),
            (["trace", "order-1", "--follow"], "u001b"),
        ):
            ended = terminals.run(*arguments, "--url", url, terminal=terminal, until=until)
            assert ended.code == 130, (arguments, ended)
            assert ended.err == ""


PRINTING = ["dlq list", "lag", "publish", "status", "tail", "trace"]


def command_line(server: str, hostile: dict[str, str], command: str) -> list[str]:
    arguments = [argument.format(**hostile | {"event": "E", "evil": "x"}) for argument in COMMANDS[command]]
    return [sys.executable, "-m", "quantum_bus", *arguments, "--url", f"{server}/{HOSTILE}"]


def printing_to(
    output: int, server: str, hostile: dict[str, str], command: str, *, buffered: bool
) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is this."""
    return subprocess.run(
        command_line(server, hostile, command),
        stdout=output,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", PRINTING)
def test_a_closed_pipe_behind_a_command_is_no_error(
    server: str, hostile: dict[str, str], command: str, *, buffered: bool
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    ended = printing_to(theirs, server, hostile, command, buffered=buffered)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", PRINTING)
def test_an_output_that_is_full_is_said_in_one_line(
    server: str, hostile: dict[str, str], command: str, *, buffered: bool
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = printing_to(full, server, hostile, command, buffered=buffered)
    os.close(full)
    said = "quantum-bus: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


@pytest.mark.parametrize("command", PRINTING)
def test_a_command_does_its_work_where_standard_output_was_closed_before(
    server: str, hostile: dict[str, str], command: str
) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command_line(server, hostile, command)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_error_is_not_written_where_standard_error_was_closed_before() -> None:
    # fails without: a look whether there is one; print() takes standard output instead
    command = [sys.executable, "-m", "quantum_bus", "status", "--url", "redis://127.0.0.1:1/0"]
    ended = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, b"")


def test_a_command_that_has_failed_ends_as_such_where_its_output_is_full() -> None:
    program = "import sys\nfrom quantum_bus.cli.ending import written_out\nwith written_out(): print('x'); sys.exit(2)"
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w", encoding="ascii") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert ended.returncode == 2
    assert b"No space left" in ended.stderr


@pytest.mark.parametrize("command", ["lag", "status", "tail", "trace"])
def test_a_user_with_the_rights_that_the_page_names_can_look(terminals: Terminals, server: str, command: str) -> None:
    with redis.Redis.from_url(f"{server}/{EMPTY}") as client:
        client.execute_command(*RIGHTS.split())
        client.xadd("orders", {"data": "1", "correlation_id": "flow-1"})
        try:
            url = f"{server}/{EMPTY}".replace("://", "://looker:secret@")
            arguments = [argument.format(id="flow-1") for argument in COMMANDS[command]]
            arguments = ["tail", "--last", "1", "--count", "1"] if command == "tail" else arguments
            ended = terminals.run(*arguments, "--url", url)
        finally:
            client.acl_deluser("looker")
            client.delete("orders")
    assert (ended.code, ended.err) == (0, "")
    assert "orders" in ended.out
    assert "refused" not in ended.out
    assert "secret" not in ended.out + ended.err
