"""``quantum-bus dlq list|show|replay|purge``: what no handler could take, and the way back."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Final, NoReturn

import typer
from redis.exceptions import RedisError

from quantum_bus import driver
from quantum_bus.cli import dlq_view as view
from quantum_bus.cli.connection import Debug, Prefix, Url, connected, full_name
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_INTERRUPTED, fail
from quantum_bus.cli.examples import epilog
from quantum_bus.cli.terminal import progress_bar, wide_console
from quantum_bus.deadletter_stream import DeadLetterStream
from quantum_bus.deadletters import DeadLetter, Filter, Pace, Replay, Target, missing_group, replay, seconds
from quantum_bus.envelope import is_entry_id
from quantum_bus.errors import ConfigurationError

# Ids that one XDEL names.
DELETED_TOGETHER: Final = 100
DEFAULT_LISTED: Final = 50

app = typer.Typer(
    help="Look at dead letters, give them back to their handlers, or delete them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream whose dead letters are meant.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Dead letters, by their own ids.")]
OfEvent = Annotated[str | None, typer.Option("--event", metavar="NAME", help="Only those of this event.")]
OfFlow = Annotated[str | None, typer.Option("--correlation-id", metavar="ID", help="Only those of this flow.")]
OfGroup = Annotated[str | None, typer.Option("--group", metavar="GROUP", help="Only those this group gave up on.")]
WithReason = Annotated[
    str | None, typer.Option("--reason", metavar="REASON", help="Only those with this reason, as max_attempts.")
]
WithError = Annotated[
    str | None, typer.Option("--error", metavar="TEXT", help="Only those with this in the error's type or text.")
]
Older = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only those dead for longer: 90s, 15m, 2h, 7d.")
]
Newer = Annotated[str | None, typer.Option("--newer-than", metavar="AGE", help="Only those dead for less.")]
AtMost = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="The first N of them.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Every one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, and nothing else.")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters a command is about: these ids, or all that match; of both, what both say.

    Attributes:
        last: the newest one's id when the command began: what comes later was not meant. None where there are none.
    """

    ids: Sequence[str]
    wanted: Filter
    limit: int | None
    last: str | None

    @classmethod
    def of(
        cls,
        dead: DeadLetterStream,
        ids: Sequence[str] | None,
        limit: int | None,
        *,
        older: str | None,
        newer: str | None,
        **filters: str | None,
    ) -> Chosen:
        """Check what the command line says.

        Raises:
            ConfigurationError: an id or a duration is none.
        """
        for letter_id in ids or ():
            if not is_entry_id(letter_id):
                raise ConfigurationError(f"{letter_id[:40]!a} is no dead letter's id; one is 1735900523456-0")
        ages = {name: seconds(age) * 1000 for name, age in (("older", older), ("newer", newer)) if age is not None}
        now = dead.now_ms() if ages else 0
        return cls(
            ids or (),
            Filter(
                **filters,
                since_ms=int(now - ages["newer"]) if "newer" in ages else None,
                until_ms=int(now - ages["older"]) if "older" in ages else None,
            ),
            limit,
            dead.last_id(),
        )

    @property
    def says_nothing(self) -> bool:
        """Whether it would be all, without that having been said."""
        return not self.ids and self.wanted == Filter()

    def letters(self, dead: DeadLetterStream, absent: Callable[[str], None] | None = None) -> Iterator[DeadLetter]:
        """The dead letters, page by page; ``absent`` is told of ids that are not there."""
        return islice(self._found(dead, absent), self.limit)

    def _found(self, dead: DeadLetterStream, absent: Callable[[str], None] | None) -> Iterator[DeadLetter]:
        if not self.ids:
            if self.last is not None:
                yield from dead.find(self.wanted, self.last)
            return
        for letter_id, letter in dead.get(dict.fromkeys(self.ids)):
            if letter is None:
                if absent is not None:
                    absent(letter_id)
            elif self.wanted.matches(letter):
                yield letter


@app.command("list", epilog=epilog("dlq list"))
def list_letters(
    stream: Stream,
    *,
    url: Url = None,
    prefix: Prefix = "",
    event: OfEvent = None,
    correlation_id: OfFlow = None,
    group: OfGroup = None,
    reason: WithReason = None,
    error: WithError = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: AtMost = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List a stream's dead letters, oldest first: 50 in a table, or with --json all, one object a line."""
    with connected("dlq list", url, debug=debug) as client:
        dead = DeadLetterStream(client, full_name(stream, prefix))
        chosen = Chosen.of(
            dead, (), limit, older=older_than, newer=newer_than, event=event, correlation_id=correlation_id,
            group=group, reason=reason, error=error,
        )  # fmt: skip
        letters = chosen.letters(dead)
        if as_json:
            for letter in letters:
                print(view.as_line(letter))
            return
        shown = list(islice(letters, limit or DEFAULT_LISTED))
        if not shown:
            print(f"no dead letters{'' if chosen.says_nothing else ' that match'} in {view.visible(dead.key)}")
            return
        wide_console().print(view.table(shown))
        if limit is None and (rest := sum(1 for _ in letters)):
            print(f"and {rest:,} more; --limit N shows more of them, --json all")


@app.command(epilog=epilog("dlq show"))
def show(
    stream: Stream,
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter's own id.")],
    *,
    url: Url = None,
    prefix: Prefix = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show everything of one dead letter: its payload, its headers, its error, and its fields as they are."""
    with connected("dlq show", url, debug=debug) as client:
        dead = DeadLetterStream(client, full_name(stream, prefix))
        chosen = Chosen.of(dead, [letter_id], None, older=None, newer=None)
        for letter in chosen.letters(dead, lambda absent: fail(_absent("show", absent, dead), EXIT_FAILED)):
            if as_json:
                print(view.as_line(letter, full=True))
            else:
                for line in view.lines(letter):
                    print(line)


@dataclass(slots=True)
class Tally:
    """What a replay or purge came to."""

    done: Counter[str] = field(default_factory=Counter)
    gone: int = 0
    failed: int = 0

    def refuse(self, letter_id: str, why: str) -> None:
        """Say why one stays where it is."""
        self.failed += 1
        print(f"quantum-bus: dlq: {letter_id}: {view.visible(why)}", file=sys.stderr)


@app.command("replay", epilog=epilog("dlq replay"))
def replay_letters(
    stream: Stream,
    ids: Ids = None,
    *,
    url: Url = None,
    prefix: Prefix = "",
    to: Annotated[
        Target, typer.Option("--to", help="Only to the group that gave up, or to the stream and so to every group.")
    ] = Target.GROUP,
    every: All = False,
    event: OfEvent = None,
    correlation_id: OfFlow = None,
    group: OfGroup = None,
    reason: WithReason = None,
    error: WithError = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: AtMost = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="At most N a second.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also to a group that is not there now.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Give dead letters back to be handled again, oldest first.

    Each is added and deleted here in one step, so that a replay may be stopped at any time and run again. Ids and trace
    context stay, attempts count from 1 again. Those that cannot be given back stay, each with a line that says why.
    """
    with connected("dlq replay", url, debug=debug) as client:
        dead = DeadLetterStream(client, full_name(stream, prefix))
        chosen = Chosen.of(
            dead, ids, limit, older=older_than, newer=newer_than, event=event, correlation_id=correlation_id,
            group=group, reason=reason, error=error,
        )  # fmt: skip
        _must_choose("replay", chosen, every=every)
        groups = dead.groups()

        def way(letter: DeadLetter) -> Replay | str:
            return replay(letter, dead.stream, to, groups=groups, force=force)

        if dry_run:
            tally = Tally()
            for letter in chosen.letters(dead, lambda absent: tally.refuse(absent, _no_letter(dead))):
                found = way(letter)
                if isinstance(found, str):
                    tally.refuse(letter.id, found)
                else:
                    tally.done[found.key] += 1
                    print(f"{letter.id} → {view.visible(found.key)}")
            _end("would replay", tally)
        planned = Counter("" if isinstance(found := way(letter), str) else found.key for letter in chosen.letters(dead))
        _confirm("Replay", planned, yes=yes)
        tally = give_back_all(dead, chosen, way, Pace(rate, clock=time.monotonic), total=planned.total())
    _end("replayed", tally)


def give_back_all(
    dead: DeadLetterStream,
    chosen: Chosen,
    way: Callable[[DeadLetter], Replay | str],
    pace: Pace,
    *,
    total: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Tally:
    """Replay what is chosen, one after the other, with a progress bar where there is a terminal.

    Args:
        way: how each is given back, or why it cannot be.
        total: how many there are, for the bar.

    Raises:
        redis.exceptions.RedisError: the connection broke; what was done by then is said.
    """
    tally = Tally()
    try:
        with progress_bar("replaying") as progress:
            task = progress.add_task("", total=total)
            for letter in chosen.letters(dead, lambda absent: tally.refuse(absent, _no_letter(dead))):
                found = way(letter)
                if isinstance(found, str):
                    tally.refuse(letter.id, found)
                else:
                    if (pause := pace.pause()) > 0:
                        sleep(pause)
                    _give_back(dead, letter, found, tally)
                progress.advance(task)
    except KeyboardInterrupt:
        print(view.summary("replayed", tally.done, tally.gone, tally.failed))
        fail("dlq replay: stopped; the rest is where it was, and running it again goes on", EXIT_INTERRUPTED)
    except driver.CONNECTION_ERRORS:
        print(view.summary("replayed", tally.done, tally.gone, tally.failed))
        raise
    return tally


def _give_back(dead: DeadLetterStream, letter: DeadLetter, found: Replay, tally: Tally) -> None:
    try:
        answer = dead.give_back(found.command)
    except driver.CONNECTION_ERRORS:
        raise
    except RedisError as error:  # of this message's target: the next may have another
        tally.refuse(letter.id, f"{found.key}: Redis refused it, and it stays: {error}")
        return
    if answer == "ok":
        tally.done[found.key] += 1
    elif answer == "gone":
        tally.gone += 1
    else:
        tally.refuse(letter.id, missing_group(letter.group or "", dead.stream))


@app.command(epilog=epilog("dlq purge"))
def purge(
    stream: Stream,
    ids: Ids = None,
    *,
    url: Url = None,
    prefix: Prefix = "",
    every: All = False,
    event: OfEvent = None,
    correlation_id: OfFlow = None,
    group: OfGroup = None,
    reason: WithReason = None,
    error: WithError = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: AtMost = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Delete dead letters for good."""
    with connected("dlq purge", url, debug=debug) as client:
        dead = DeadLetterStream(client, full_name(stream, prefix))
        chosen = Chosen.of(
            dead, ids, limit, older=older_than, newer=newer_than, event=event, correlation_id=correlation_id,
            group=group, reason=reason, error=error,
        )  # fmt: skip
        _must_choose("purge", chosen, every=every)
        tally = Tally()
        if dry_run:
            for letter in chosen.letters(dead, lambda absent: tally.refuse(absent, _no_letter(dead))):
                tally.done[dead.key] += 1
                print(letter.id)
            _end("would delete", tally)
        _confirm("Delete for good", Counter(dead.key for _ in chosen.letters(dead)), yes=yes)
        letters = chosen.letters(dead, lambda absent: tally.refuse(absent, _no_letter(dead)))
        while together := [letter.id for letter in islice(letters, DELETED_TOGETHER)]:
            deleted = dead.delete(together)
            tally.done[dead.key] += deleted
            tally.gone += len(together) - deleted
    _end("deleted", tally)


def _must_choose(what: str, chosen: Chosen, *, every: bool) -> None:
    if chosen.says_nothing and not every:
        raise ConfigurationError(f"nothing says which to {what}: give ids, a filter such as --event, or --all")
    if every and chosen.ids:
        raise ConfigurationError("give either ids or --all, not both")


def _confirm(what: str, planned: Counter[str], *, yes: bool) -> None:
    """Ask, where somebody is there to answer; end the process if the answer is no."""
    if yes or not planned or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(view.question(what, planned), err=True):
        fail("dlq: nothing was changed", EXIT_FAILED)


def _end(did: str, tally: Tally) -> NoReturn:
    print(view.summary(did, tally.done, tally.gone, tally.failed))
    raise typer.Exit(EXIT_FAILED if tally.failed else 0)


def _no_letter(dead: DeadLetterStream) -> str:
    return f"there is no such dead letter in {dead.key}"


def _absent(command: str, letter_id: str, dead: DeadLetterStream) -> str:
    return f"dlq {command}: {letter_id}: {view.visible(_no_letter(dead))}"
