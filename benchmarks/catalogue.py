"""What is measured: rows of contestants, and how much each is given to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Direction = Literal["more", "less"]

RATE: Final[Mapping[str, tuple[str, Direction]]] = {"rate": ("messages/s", "more")}
MICROS: Final[Mapping[str, tuple[str, Direction]]] = {"micros": ("µs", "less")}
COST: Final[Mapping[str, tuple[str, Direction]]] = {"micros": ("µs a message", "less")}
MEMORY: Final[Mapping[str, tuple[str, Direction]]] = {"megabytes": ("MB above the start", "less")}
PERCENTILES: Final[Mapping[str, tuple[str, Direction]]] = {"p50": ("µs", "less"), "p99": ("µs", "less")}


@dataclass(frozen=True, slots=True)
class Case:
    """One contestant in one row.

    Attributes:
        name: what the tables call it.
        command: module below ``benchmarks.contestants``, workload and options.
        count: messages, or log records: about a second's worth.
        quick: whether ``make bench-quick`` runs it.
        once: whether it runs in the first round only.
        ladder: its rung on the overhead ladder, counted from 1.
    """

    name: str
    command: tuple[str, ...]
    count: int
    quick: bool = False
    once: bool = False
    ladder: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Contestants that do the same, and are compared.

    Attributes:
        figures: what each answers, by its name: the unit, and what is better.
        note: what a reader has to know.
        compared: whether a ratio to the first contestant says anything.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    figures: Mapping[str, tuple[str, Direction]] = field(default_factory=lambda: RATE)
    note: str = ""
    compared: bool = True


RAW: Final = "raw redis-py"
RAW_ON: Final = "raw redis-py, instrumented"
BY_HAND: Final = "raw redis-py, all on by hand"
OFF: Final = "quantum-bus, no SDK"
ALL_ON: Final = "quantum-bus, all on"
FASTSTREAM_OFF: Final = "FastStream, off"
FASTSTREAM_ON: Final = "FastStream, on"
TASKIQ_OFF: Final = "taskiq-redis, off"
TASKIQ_ON: Final = "taskiq-redis, on"
ON: Final = ("--level", "metrics")
ALL: Final = ("--level", "logs")

ROWS: Final = (
    Row(
        "publish",
        "publish, one at a time",
        (
            Case(RAW, ("raw", "publish"), 8_000, quick=True, ladder=1),
            Case(OFF, ("bus", "publish"), 15_000, quick=True, ladder=2),
            Case("quantum-bus, nothing sampled", ("bus", "publish", "--level", "unsampled"), 12_000, ladder=3),
            Case("quantum-bus, 5 % sampled", ("bus", "publish", "--level", "some"), 12_000, ladder=4),
            Case("quantum-bus, all sampled", ("bus", "publish", "--level", "sampled"), 12_000, ladder=5),
            Case("quantum-bus, and metrics", ("bus", "publish", "--level", "metrics"), 12_000, ladder=6),
            Case(ALL_ON, ("bus", "publish", *ALL), 12_000, quick=True, ladder=7),
            Case("quantum-bus, all on, OTLP", ("bus", "publish", "--level", "otlp"), 6_000, ladder=8),
            Case(FASTSTREAM_OFF, ("faststream_peer", "publish"), 6_000, quick=True),
            Case(FASTSTREAM_ON, ("faststream_peer", "publish", *ON), 3_000, quick=True),
            Case(TASKIQ_OFF, ("taskiq_peer", "publish"), 4_000),
            Case(TASKIQ_ON, ("taskiq_peer", "publish", *ON), 3_000),
            Case(RAW_ON, ("raw", "publish", *ON), 4_000),
        ),
    ),
    Row(
        "publish-in-flight",
        "publish, 100 in flight",
        (
            Case(RAW, ("raw", "publish-in-flight"), 30_000, quick=True),
            Case(OFF, ("bus", "publish-in-flight"), 50_000, quick=True),
            Case(ALL_ON, ("bus", "publish-in-flight", *ALL), 30_000, quick=True),
            Case(FASTSTREAM_OFF, ("faststream_peer", "publish-in-flight"), 15_000),
            Case(FASTSTREAM_ON, ("faststream_peer", "publish-in-flight", *ON), 7_000, quick=True),
            Case(TASKIQ_OFF, ("taskiq_peer", "publish-in-flight"), 8_000),
            Case(TASKIQ_ON, ("taskiq_peer", "publish-in-flight", *ON), 5_000),
            Case(RAW_ON, ("raw", "publish-in-flight", *ON), 6_000),
            Case(BY_HAND, ("by_hand", "publish-in-flight", *ALL), 12_000),
        ),
    ),
    Row(
        "publish-many",
        "publish_many, 100 at a time",
        (
            Case("raw redis-py, pipeline", ("raw", "publish-many"), 60_000, quick=True),
            Case(OFF, ("bus", "publish-many"), 60_000),
            Case(ALL_ON, ("bus", "publish-many", *ALL), 50_000, quick=True),
        ),
        note="FastStream and taskiq publish to streams one at a time only.",
    ),
    Row(
        "consume",
        "consume, a trivial async handler",
        (
            Case("raw redis-py, read 100, ack 100", ("raw", "consume"), 150_000),
            Case(OFF, ("bus", "consume"), 50_000),
            Case(ALL_ON, ("bus", "consume", *ALL), 30_000, quick=True),
            Case("quantum-bus, 16 at once, all on", ("bus", "consume-by-default", *ALL), 25_000),
            Case("quantum-bus, batches, all on", ("bus", "consume-batches", *ALL), 80_000, quick=True),
            Case(FASTSTREAM_OFF, ("faststream_peer", "consume"), 7_000, quick=True),
            Case(FASTSTREAM_ON, ("faststream_peer", "consume", *ON), 5_000),
            Case("FastStream, batches, off", ("faststream_peer", "consume-batches"), 100_000),
            Case("FastStream, batches, on", ("faststream_peer", "consume-batches", *ON), 50_000),
            Case(TASKIQ_OFF, ("taskiq_peer", "consume"), 5_000),
            Case(TASKIQ_ON, ("taskiq_peer", "consume", *ON), 3_000),
            Case(BY_HAND, ("by_hand", "consume", *ALL), 25_000),
        ),
        note="The bus with concurrency=100, as many as the others read at once; 16 at once is what it does unasked. By "
        "hand: a loop that reads a hundred, makes span, duration and log line of each, and acks a hundred.",
    ),
    Row(
        "threads",
        "publish from threads (quantum_bus.sync)",
        (
            Case(RAW, ("raw", "publish-threads"), 10_000, quick=True),
            Case(ALL_ON, ("bus_threads", "publish", *ALL), 12_000, quick=True),
        ),
    ),
    Row(
        "latency",
        "publish → handler, idle bus",
        (
            Case("raw redis-py, blocked XREADGROUP", ("raw", "latency"), 400, quick=True),
            Case(ALL_ON, ("bus", "latency", *ALL), 400, quick=True),
        ),
        figures=PERCENTILES,
    ),
    Row(
        "log",
        "a log record: bound context, three fields",
        (
            Case("orjson and a write", ("log_peers", "floor"), 200_000),
            Case("quantum-bus", ("log_bus", "log"), 200_000, quick=True),
            Case("structlog, BytesLogger, orjson", ("log_peers", "structlog"), 100_000, quick=True),
            Case("loguru, serialize", ("log_peers", "loguru"), 20_000),
        ),
        figures=MICROS,
        note="To the null device: what a write to a file takes comes on top, for everyone.",
    ),
    Row(
        "log-stdlib",
        "the same through a standard library's logger",
        (
            Case("quantum-bus", ("log_bus", "log-stdlib"), 60_000, quick=True),
            Case("standard library, text", ("log_peers", "stdlib-text"), 60_000, quick=True),
            Case("python-json-logger, orjson", ("log_peers", "python-json-logger"), 50_000),
        ),
        figures=MICROS,
    ),
    Row(
        "memory",
        "memory, a million messages",
        (
            Case("a consumer that drains", ("bus_growth", "memory-consume", *ALL), 1_000_000, once=True),
            Case("a publisher, 100 in flight", ("bus_growth", "memory-publish", *ALL), 1_000_000, once=True),
        ),
        figures=MEMORY,
        compared=False,
    ),
    Row(
        "growth-publish",
        "growth: publish, one at a time, into a stream that holds",
        (
            Case("1 k messages", ("bus_growth", "publish-into", "--spread", "1000", *ALL), 12_000),
            Case("1 M messages", ("bus_growth", "publish-into", "--spread", "1000000", *ALL), 12_000),
        ),
        figures=COST,
    ),
    Row(
        "growth-consume",
        "growth: consume from a stream that holds, handled before",
        (
            Case("1 k messages", ("bus_growth", "consume-behind", "--spread", "1000", *ALL), 25_000),
            Case("1 M messages", ("bus_growth", "consume-behind", "--spread", "1000000", *ALL), 25_000),
        ),
        figures=COST,
    ),
    Row(
        "growth-subscribers",
        "growth: consume, in one bus",
        (
            Case("1 subscriber", ("bus_growth", "subscribers", "--spread", "1", *ALL), 25_000),
            Case("100 subscribers", ("bus_growth", "subscribers", "--spread", "100", *ALL), 25_000),
        ),
        figures=COST,
        note="Each subscriber has a stream of its own, with its share of the messages.",
    ),
    Row(
        "processes",
        "consume with several processes of one group",
        (
            Case("1 process", ("bus_growth", "processes", "--spread", "1", *ALL), 20_000, once=True),
            Case("2 processes", ("bus_growth", "processes", "--spread", "2", *ALL), 20_000, once=True),
            Case("4 processes", ("bus_growth", "processes", "--spread", "4", *ALL), 20_000, once=True),
        ),
        note="On all cores, the server's included: what two cores can show of it.",
    ),
    Row(
        "pipeline",
        "log lines: file → collector → Loki",
        (Case("all of it", ("pipeline", "lines"), 200_000, once=True),),
        figures={
            "lines_per_second": ("lines/s", "more"),
            "missing": ("lines", "less"),
            "collector_cpu": ("s / 1,000 lines", "less"),
            "loki_cpu": ("s / 1,000 lines", "less"),
        },
        compared=False,
    ),
)


def chosen(*, quick: bool, only: str = "") -> Iterator[tuple[Row, Case]]:
    """What a run measures, in its order.

    Args:
        only: rows whose name begins with this.
    """
    for row in ROWS:
        if not row.name.startswith(only):
            continue
        for case in row.cases:
            if case.quick or not quick:
                yield row, case
