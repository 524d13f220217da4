"""``quantum-bus doctor``: what is wrong, what it means, what to type."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from quantum_bus.checkup import Facts, Limits, examine
from quantum_bus.cli.connection import Debug, Prefix, Url, connected, full_name, make_link
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE
from quantum_bus.cli.terminal import wide_console
from quantum_bus.config import masked_url
from quantum_bus.deadletters import seconds
from quantum_bus.errors import ConfigurationError
from quantum_bus.findings import Finding, Severity, diagnose
from quantum_bus.inquiry import answered
from quantum_bus.jsonlog.escape import escaped, visible

_COLOURS: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}


class FailOn(StrEnum):
    """From which severity on the exit code is 1."""

    ERROR = "error"
    WARNING = "warning"


def doctor(
    url: Url = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="NAME", help="A stream to look at; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="GROUP",
            help="A group that each --stream should have; may be repeated.",
            show_default=False,
        ),
    ] = None,
    prefix: Prefix = "",
    dead_after: Annotated[
        str, typer.Option(metavar="AGE", help="Not seen for so long, a consumer is dead; so old, a lag is a finding.")
    ] = "5m",
    cap: Annotated[int, typer.Option(min=1, metavar="N", help="More entries are too many for a stream.")] = 1_000_000,
    fail_on: Annotated[FailOn, typer.Option(help="The mildest finding that makes the exit code 1.")] = FailOn.WARNING,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Look for what is wrong with streams, groups, consumers and Redis, and say what to type.

    It only reads. The exit code is 0 where all is well, 1 where there is a finding of --fail-on or worse, 2 where Redis
    could not be asked.
    """
    with connected("doctor", url, debug=debug, unreachable=EXIT_USAGE) as client:
        if groups and not streams:
            raise ConfigurationError("--group says what a --stream should have: name streams, too")
        named = [full_name(stream, prefix) for stream in streams or ()]
        limits = Limits(dead_after=seconds(dead_after), length=cap)
        link = make_link(client, url)
        try:
            facts = answered(examine(named, expected=groups or (), prefix=prefix, limits=limits), link.execute)
        finally:
            link.close()
    findings = diagnose(facts)
    bad = {Severity.ERROR} if fail_on is FailOn.ERROR else {Severity.ERROR, Severity.WARNING}
    healthy = not any(finding.severity in bad for finding in findings)
    if as_json:
        shown = orjson.dumps(as_object(facts, findings, healthy, url), option=orjson.OPT_INDENT_2)
        print(escaped(shown).decode())
    else:
        show(facts, findings, wide_console())
    if not healthy:
        sys.exit(EXIT_FAILED)


def as_object(facts: Facts, findings: Sequence[Finding], healthy: bool, url: str | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    counts = Counter(finding.severity for finding in findings)
    return {
        "redis": masked_url(url or ""),
        "version": (facts.server or {}).get("redis_version"),
        "healthy": healthy,
        "streams": len(facts.state.streams),
        "groups": _groups(facts),
        "counts": {severity.value: counts[severity] for severity in Severity},
        "findings": [
            {
                "severity": finding.severity.value,
                "check": finding.check,
                "subject": finding.subject,
                "means": finding.means,
                "commands": list(finding.commands),
            }
            for finding in findings
        ],
    }


def show(facts: Facts, findings: Sequence[Finding], console: Console) -> None:
    """Each finding with what it means and what to type; then how many there are."""
    for finding in findings:
        console.print(
            Text.assemble(
                (f"{finding.severity.value:<8}", _COLOURS[finding.severity]),
                (finding.check, "bold"),
                "  ",
                (visible(finding.subject), "cyan"),
            ),
            soft_wrap=True,
        )
        console.print(Padding(Text(f"{visible(finding.means)}."), (0, 0, 0, 8)))
        for command in finding.commands:
            console.print(Text(f"        $ {visible(command)}", "dim"), soft_wrap=True)
        console.print()
    counts = Counter(finding.severity for finding in findings)
    told = ", ".join(
        f"{counts[severity]} {name}"
        for severity, name in ((Severity.ERROR, "errors"), (Severity.WARNING, "warnings"), (Severity.INFO, "notes"))
    )
    console.print(f"{len(facts.state.streams)} streams, {_groups(facts)} groups: {told}")


def _groups(facts: Facts) -> int:
    return sum(len(stream.groups) for stream in facts.state.streams)
