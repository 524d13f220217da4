"""The code blocks of the pages, and what each kind of them must be: a block of no known kind is an error."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
import yaml

from quantum_bus.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "runbooks/*.md", "deploy/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\s`]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
# What nobody would type: arrows and lines of drawings.
_DRAWN = re.compile("[─│└├┌┐┘▶▲▼→…]")

SHELL, CONSOLE, REDIS, TEXT = "sh", "console", "redis", "text"
# Not ours: that they are there, and take these options, is up to others.
_PROGRAMS = """
    amtool cat chmod chown cp curl df docker echo export git grep head honcho id install journalctl jq kill logcli loki
    lokitool ls mkdir mv openssl otelcol-quantum pip printf promtool redis-server rm sed sha256sum sort source sudo
    systemctl systemd-sysusers systemd-tmpfiles tail touch umask unset uvicorn
"""
# What stands for a program of the reader's.
_PLACEHOLDERS = "page-somebody"
FOREIGN = frozenset([*_PROGRAMS.split(), *_PLACEHOLDERS.split()])
OURS = frozenset({"cd", "make", "python", "python3", "quantum-bus", "redis-cli"})
_COMMANDS = """
    ACL CONFIG DEL EXISTS EXPIRE GET HGETALL HLEN INFO KEYS MEMORY PING SCAN SET TYPE XACK XADD XDEL XGROUP XINFO XLEN
    XPENDING XRANGE XREVRANGE XTRIM ZCARD ZRANGE ZREM
"""
REDIS_COMMANDS = frozenset(_COMMANDS.split())


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        inner = "".join(line[indent:] if not line[:indent].strip() else line for line in match["text"].splitlines(True))
        line = text.count("\n", 0, match.start()) + 1
        found.append(
            Block(str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page), line, match["language"], inner)
        )
    return found


def kind_of(block: Block) -> str:
    """Its language; of one without a name what it evidently is."""
    if block.language:
        return block.language
    lines = [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]
    first = lines[0].split()[0] if lines else ""
    if any(line.startswith("$ ") for line in lines):
        return CONSOLE
    if first in REDIS_COMMANDS:
        return REDIS
    if first in FOREIGN | OURS or re.match(r"[\w/.-]+\.sh$|[A-Z_]+=", first):
        return SHELL
    if _DRAWN.search(block.text):
        return TEXT
    raise AssertionError(f"{block}: what is this block? Name its language behind the fence; `text` is one, too")


def check(block: Block) -> None:
    """Fails if the block is not what its language says; Python is run elsewhere."""
    kind = kind_of(block)
    if kind not in CHECKS:
        raise AssertionError(f"{block}: nothing checks {kind}; there are {', '.join(sorted(CHECKS))}")
    try:
        CHECKS[kind](block.text)
    except (ValueError, AssertionError, typer.Abort, yaml.YAMLError, configparser.Error, SyntaxError) as error:
        raise AssertionError(f"{block}: {error}") from error


# --- data ---------------------------------------------------------------------------------------------------------


def _json(text: str) -> None:
    """One value, or one a line."""
    try:
        json.loads(text)
    except ValueError:
        for line in filter(None, text.splitlines()):
            json.loads(line)


def _ini(text: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    assert parser.sections(), "no section"


def _redis(text: str) -> None:
    for line in text.splitlines():
        if line.strip():
            assert line.split()[0] in REDIS_COMMANDS, f"{line.split()[0]} is no command of Redis that is known here"


# --- the shell ----------------------------------------------------------------------------------------------------


def _console(text: str) -> None:
    """Commands behind a prompt; the rest is what they said."""
    lines = text.splitlines()
    typed = []
    for number, line in enumerate(lines):
        continues = number > 0 and lines[number - 1].endswith("\\") and bool(typed)
        if line.startswith("$ ") or continues:
            typed.append(line.removeprefix("$ "))
    assert typed, "a console without a command: begin commands with `$ `"
    _shell("\n".join(typed))


def _shell(text: str) -> None:
    for command in commands(text):
        _command(command)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, without assignments, redirections and the words of compound ones."""
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"<<-?'?(\w+)'?.*?\n(.*?)^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    for inner in re.findall(r"\$\(([^()]*)\)", text):
        yield from commands(inner)
    text = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", text)
    lexer = shlex.shlex(text.replace("\n", "\n; "), posix=True, punctuation_chars=True)  # a comment ends with its line
    lexer.whitespace_split = True
    command: list[str] = []
    redirected = False
    for token in [*lexer, ";"]:
        if redirected:
            redirected = False
        elif re.fullmatch(r"[<>]+&?", token):
            if command and command[-1] in {"1", "2"}:  # of `2>`
                command.pop()
            redirected = True
        elif re.fullmatch(r"[;&|()]+", token):
            if stripped := _stripped(command):
                yield stripped
            command = []
        else:
            command.append(token)


def _stripped(command: list[str]) -> list[str]:
    while command and (
        re.match(r"\w+=", command[0]) or command[0] in {"do", "then", "else", "!", "exec", "env", "sudo", "if", "while"}
    ):
        command = command[1:]
    return [] if command and command[0] in {"done", "fi", "for", "$"} else command


def _command(argv: list[str]) -> None:
    program, *arguments = argv
    name = Path(program).name if "/bin/" in program else program
    if name in {"python", "python3"}:
        _python(arguments)
    elif name == "quantum-bus":
        _ours(arguments)
    elif name == "make":
        wanted = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
        unknown = set(wanted) - targets()
        assert not unknown, f"make has no {', '.join(unknown)}"
    elif name == "pip":
        for extras in (
            re.findall(r"\[([\w,]+)\]", " ".join(arguments)) if "quantum" in str(argv) or "." in arguments else ()
        ):
            assert set(extras.split(",")) <= set(project()["optional-dependencies"]), f"no such extra: {extras}"
    elif name == "redis-cli":
        words = [word for word in arguments if word.isalpha() and word.isupper()]
        assert not words or words[0] in REDIS_COMMANDS, f"{words[0]} is no command of Redis that is known here"
    elif name == "cd":
        assert (ROOT / arguments[0]).is_dir() or arguments[0] == "quantum-bus", f"no folder {arguments[0]}"
    elif "/" in program and not program.startswith("/"):
        assert (ROOT / program).is_file(), f"no file {program}"
    else:
        assert name in FOREIGN, (
            f"{program}: no program that is known here; is it spelt right? If so, name it in {__name__}"
        )


def _python(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"]:
        if arguments[1] == "quantum_bus":
            _ours(arguments[2:])
        elif arguments[1].split(".")[0] not in {"build", "http", "json", "pip", "venv"}:
            assert find_spec(arguments[1]), f"no module {arguments[1]}"
    elif arguments and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"


def _ours(arguments: list[str]) -> None:
    """Every command and option is one of `quantum-bus`."""
    command: Any = typer.main.get_command(app)
    context_of = type(command).context_class
    while hasattr(command, "commands"):
        options = [word for word in arguments if word.startswith("-")]
        if not arguments or arguments[0].startswith("-"):
            assert options, "which command of quantum-bus?"
            break
        assert arguments[0] in command.commands, f"quantum-bus has no {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if "--help" not in arguments and arguments[:1] != ["…"]:
        try:
            command.make_parser(context_of(command)).parse_args(args=list(arguments))
        except Exception as error:
            raise AssertionError(f"quantum-bus {' '.join(arguments)}: {error}") from error


@cache
def targets() -> frozenset[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(
        target for line in re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE) for target in line.split()
    )


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


CHECKS = {
    SHELL: _shell,
    "bash": _shell,
    CONSOLE: _console,
    REDIS: _redis,
    TEXT: lambda _: None,
    "ini": _ini,
    "json": _json,
    "python": lambda text: compile(text, "block", "exec", flags=0x2000),  # PyCF_ALLOW_TOP_LEVEL_AWAIT
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}
