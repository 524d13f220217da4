"""Where lines go, and what happens where they cannot go."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_bus.errors import ConfigurationError
from quantum_bus.jsonlog import close_logging, descriptor, flush_logging, get_logger, setup_json_logging
from quantum_bus.jsonlog.descriptor import DescriptorSink
from quantum_bus.jsonlog.encode import Clock
from quantum_bus.jsonlog.files import RotatingFile
from quantum_bus.jsonlog.pipeline import RecordPipeline
from quantum_bus.jsonlog.record import Context, Record
from quantum_bus.jsonlog.sinks import StreamSink, Tee

DROPPED = "LOG_RECORDS_DROPPED"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def failing_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, bytes], int] | None], None]]:
    """Replace ``os.write`` of the sink; None puts the real one back."""
    real = os.write

    def install(fake: Callable[[int, bytes], int] | None) -> None:
        monkeypatch.setattr(descriptor, "_write", fake or real)

    yield install
    install(None)


def full(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "no space left")


def test_lines_go_to_standard_output_where_nothing_else_is_named() -> None:
    done = run(
        "from quantum_bus.jsonlog import setup_json_logging\n"
        "setup_json_logging('svc').info('to stdout', n=1)\n"
        "import os; os.kill(os.getpid(), 9)"
    )
    started, line = map(json.loads, done.stdout.splitlines())
    assert (started["event"], line["msg"]) == ("SERVICE_STARTED", "to stdout")
    assert done.returncode == -signal.SIGKILL  # and a SIGKILL loses nothing


def test_a_service_that_starts_says_so_once(tmp_path: Path) -> None:
    setup_json_logging("svc", path=tmp_path / "a.jsonl")
    [record] = records(tmp_path / "a.jsonl")
    assert list(record)[3:] == ["event", "correlation_id", "msg", "pid", "python", "quantum_bus"]
    assert record["event"] == "SERVICE_STARTED"
    assert record["pid"] == os.getpid()


def test_stream_and_path_get_the_same_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, path=tmp_path / "deep" / "a.jsonl", announce=False)
    log.info("x")
    assert stream.getvalue() == (tmp_path / "deep" / "a.jsonl").read_text()


def test_streams_of_text_and_of_bytes_are_both_taken(tmp_path: Path) -> None:
    for stream in (io.StringIO(), io.BytesIO(), (tmp_path / "t").open("w"), (tmp_path / "b").open("wb")):
        with stream:
            setup_json_logging("svc", stream=stream, announce=False).info("Zürich")
            if isinstance(stream, (io.StringIO, io.BytesIO)):
                assert json.loads(stream.getvalue())["msg"] == "Zürich"
    assert records(tmp_path / "t")[0]["msg"] == records(tmp_path / "b")[0]["msg"] == "Zürich"


def test_a_stream_whose_encoding_lacks_a_letter_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    stream.fileno = lambda: (_ for _ in ()).throw(OSError())  # type: ignore[method-assign]
    setup_json_logging("svc", stream=stream, announce=False).info("Zürich 🚀")
    assert json.loads(raw.getvalue())["msg"] == "Zürich 🚀"
    assert raw.getvalue().isascii()


def test_a_closed_stream_drops_lines_and_counts_them() -> None:
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, announce=False)
    stream.close()
    log.info("x")
    logging.getLogger("x").warning("x")
    assert log.dropped == 2


def test_a_stream_that_raises_or_logs_itself_does_no_harm() -> None:
    class Loops(io.StringIO):
        def write(self, text: str) -> int:
            get_logger().info("again")
            return super().write(text)

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError(text)

    log = setup_json_logging("svc", stream=(loops := Loops()), announce=False)
    log.info("x")
    log.info("y")
    assert [json.loads(line)["event"] for line in loops.getvalue().splitlines()].count("LOG") == 2
    log = setup_json_logging("svc", stream=Broken(), announce=False)
    log.info("x")
    assert log.dropped == 1


def test_closing_a_file_object_does_not_let_lines_into_whatever_gets_its_descriptor(tmp_path: Path) -> None:
    stream = (tmp_path / "log").open("w")
    log = setup_json_logging("svc", stream=stream, announce=False)
    log.info("before")
    stream.close()
    with (tmp_path / "other").open("w"):
        log.info("after")
    assert (tmp_path / "other").read_text() == ""


def test_a_full_disk_drops_lines_counts_them_and_recovers_on_a_fresh_line(
    tmp_path: Path, failing_write: Callable[..., None]
) -> None:
    log = setup_json_logging("svc", path=tmp_path / "a.jsonl", announce=False)
    log.info("before")
    real, calls = os.write, []

    def filling(fd: int, data: bytes) -> int:
        calls.append(data)
        return real(fd, data[:40]) if len(calls) == 1 else full(fd, data)

    failing_write(filling)
    for _ in range(3):
        log.info("lost")
    assert log.dropped == 3
    failing_write(None)
    log.info("after")
    log.info("and on")
    before, torn, *rest = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(before)["msg"] == "before"
    assert len(torn) == 40
    told, after, last = map(json.loads, rest)
    assert (told["event"], told["level"], told["dropped"], told["service"]) == (DROPPED, "WARNING", 3, "svc")
    assert (after["msg"], last["msg"]) == ("after", "and on")


def test_what_was_dropped_last_is_told_of_at_the_end(tmp_path: Path, failing_write: Callable[..., None]) -> None:
    log = setup_json_logging("svc", path=tmp_path / "a.jsonl", announce=False)
    failing_write(full)
    log.info("lost")
    flush_logging()
    failing_write(None)
    flush_logging()
    flush_logging()
    [told] = records(tmp_path / "a.jsonl")
    assert (told["event"], told["dropped"]) == (DROPPED, 1)


def test_an_interrupted_write_is_completed(tmp_path: Path, failing_write: Callable[..., None]) -> None:
    log = setup_json_logging("svc", path=tmp_path / "a.jsonl", announce=False)
    real = os.write
    failing_write(lambda fd, data: real(fd, data[:100]))
    for _ in range(3):
        log.info("x", text="a" * 1000)
    assert [len(record["text"]) for record in records(tmp_path / "a.jsonl")] == [1000] * 3
    assert log.dropped == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("option", ["path", "stream"])
def test_a_device_without_space_never_raises(option: str) -> None:
    with open("/dev/full", "wb", buffering=0) as device:  # noqa: PTH123
        log = setup_json_logging("svc", **{option: device if option == "stream" else "/dev/full"}, announce=False)  # type: ignore[arg-type]
        for _ in range(5):
            log.info("x")
        logging.getLogger("x").warning("x")
        assert log.dropped == 6
        close_logging()


def test_a_descriptor_closed_behind_our_back_never_raises() -> None:
    done = run(
        "import os, sys\n"
        "from quantum_bus.jsonlog import setup_json_logging\n"
        "log = setup_json_logging('svc')\n"
        "os.close(1)\n"
        "log.info('x'); log.info('y')\n"
        "print(log.dropped, file=sys.stderr)\n"
    )
    assert done.stderr.splitlines()[0] == "2"


@pytest.mark.timeout(30)  # one wait for each line would take 200 s
def test_a_pipe_whose_reader_stalls_costs_one_wait_then_lines_not_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "WRITE_TIMEOUT", 0.2)
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as stream, open(reader, "rb", buffering=0) as source:  # noqa: PTH123
        log = setup_json_logging("svc", stream=stream, announce=False)
        sent = 0
        while not log.dropped:
            log.info("x", text="a" * 900)
            sent += 1
        for _ in range(1000):
            log.info("x", text="a" * 900)
        assert log.dropped == 1001
        got = b""
        while got.count(b"\n") < sent - 1:
            got += os.read(source.fileno(), 65536)
        log.info("again")
        got += os.read(source.fileno(), 65536)
        lines = [json.loads(line) for line in got.splitlines() if line]
        assert [line["event"] for line in lines[-2:]] == [DROPPED, "LOG"]
        assert lines[-2]["dropped"] == 1001


def test_a_long_line_through_a_pipe_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "WRITE_TIMEOUT", 20.0)
    reader, writer = os.pipe()
    received = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            received.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "wb", buffering=0) as stream:  # noqa: PTH123
        log = setup_json_logging("svc", stream=stream, announce=False)

        def work() -> None:
            for _ in range(20):
                log.info("x", text="a" * 50_000)

        writers = [threading.Thread(target=work) for _ in range(4)]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
        close_logging()
    thread.join(10)
    assert not thread.is_alive(), "somebody still holds the pipe open"
    os.close(reader)
    lines = bytes(received).splitlines()
    assert len(lines) == 80
    assert all(len(json.loads(line)["text"]) == 50_000 for line in lines)


def test_a_reader_that_went_away_never_raises() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as stream:  # noqa: PTH123
        log = setup_json_logging("svc", stream=stream, announce=False)
        log.info("x")
        assert log.dropped == 1
        close_logging()


def test_a_non_blocking_stream_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "WRITE_TIMEOUT", 20.0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "wb", buffering=0) as stream, open(reader, "rb", buffering=0) as source:  # noqa: PTH123
        log = setup_json_logging("svc", stream=stream, announce=False)
        threading.Timer(0.1, lambda: os.read(source.fileno(), 1 << 20)).start()
        for _ in range(80):
            log.info("x", text="a" * 900)
        assert log.dropped == 0


@pytest.mark.timeout(30)
def test_a_write_that_would_block_is_tried_again_for_a_while(
    tmp_path: Path, failing_write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptor, "WRITE_TIMEOUT", 20.0)
    log = setup_json_logging("svc", path=tmp_path / "a.jsonl", announce=False)
    real, refused = os.write, []

    def busy(times: int) -> Callable[[int, bytes], int]:
        def write(fd: int, data: bytes) -> int:
            refused.append(data)
            if len(refused) <= times:
                raise BlockingIOError
            return real(fd, data)

        return write

    failing_write(busy(3))
    log.info("late")
    assert (log.dropped, len(refused)) == (0, 4)
    monkeypatch.setattr(descriptor, "WRITE_TIMEOUT", 0.2)
    log = setup_json_logging("svc", path=tmp_path / "b.jsonl", announce=False)
    failing_write(busy(1_000_000))
    log.info("lost")
    assert log.dropped == 1


def test_a_tee_counts_and_recovers_each_of_its_sinks_by_itself(
    tmp_path: Path, failing_write: Callable[..., None]
) -> None:
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, path=tmp_path / "a.jsonl", announce=False)
    failing_write(full)
    log.info("lost in one")
    failing_write(None)
    log.info("after")
    assert log.dropped == 1
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["lost in one", "after"]
    assert [record["event"] for record in records(tmp_path / "a.jsonl")] == [DROPPED, "LOG"]


def test_descriptors_are_given_back_when_a_setup_is_replaced(tmp_path: Path) -> None:
    def count() -> int:
        gc.collect()  # what earlier tests left behind
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    setup_json_logging("svc", path=tmp_path / "a.jsonl")
    before = count()
    for _ in range(20):
        setup_json_logging("svc", path=tmp_path / "a.jsonl").info("x")
    assert count() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_line_into_a_closed_sink_is_dropped_not_written_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as stream:
        sink = DescriptorSink.for_stream(stream)
        sink.close()
        sink.close()
        sink.write(b"x\n")
        sink.flush()
    assert sink.dropped == 1
    assert (tmp_path / "a").read_bytes() == b""


def test_a_closed_sink_gives_its_file_free_even_while_a_thread_still_knows_it(tmp_path: Path) -> None:
    def claim() -> DescriptorSink:
        return DescriptorSink.for_file(RotatingFile(tmp_path / "a.jsonl", max_bytes=100_000, backups=1))

    first = claim()
    first.close()
    second = claim()
    second.write(b"x\n")
    second.close()
    assert first.dropped == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_record_that_cannot_even_be_encoded_is_counted() -> None:
    def encode(record: Record, clock: Clock, limit: int) -> bytes:
        raise MemoryError(record, clock, limit)

    pipeline = RecordPipeline("svc", 0, StreamSink(io.StringIO()), encode, 4096)
    pipeline.emit(20, Context(), "x", (), {})
    pipeline.emit_stdlib(logging.makeLogRecord({"levelno": 20, "msg": "x"}))
    assert pipeline.dropped == 2


@pytest.mark.parametrize("kind", ["descriptor", "stream"])
def test_a_signal_handler_may_log_while_its_thread_is_logging(kind: str, tmp_path: Path) -> None:
    stream: Any = (tmp_path / "a").open("wb") if kind == "descriptor" else io.StringIO()
    log = setup_json_logging("svc", stream=stream, announce=False)
    former = signal.signal(signal.SIGALRM, lambda *_: log.info("from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            log.info("x", n=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    stream.flush()
    text = (tmp_path / "a").read_text() if kind == "descriptor" else stream.getvalue()
    stream.close()
    assert {json.loads(line)["msg"] for line in text.splitlines()} <= {
        "x",
        "from the handler",
        "Log records were dropped",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"service": ""},
        {"service": None},
        {"service": "x" * 200},
        {"level": "LOUD"},
        {"level": True},
        {"level": None},
        {"format": "xml"},
        {"stream": "a name"},
        {"path": "/proc/no/such/file"},
        {"path": "/"},
        {"path": "nul\0byte"},
        {"max_bytes": 100},
        {"max_bytes": 1.5},
        {"backups": -1},
        {"max_record_bytes": 10},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once_and_changes_nothing(options: dict[str, Any]) -> None:
    stream = io.StringIO()
    setup_json_logging("former", stream=stream, announce=False)
    with pytest.raises(ConfigurationError, match=r"give|name"):
        setup_json_logging(**{"service": "svc", **options})
    get_logger().info("x")
    logging.getLogger("x").info("x")
    assert [json.loads(line)["service"] for line in stream.getvalue().splitlines()] == ["former"] * 2


def test_a_wrong_format_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTUM_BUS_LOG_FORMAT", "xml")
    with pytest.raises(ConfigurationError, match="QUANTUM_BUS_LOG_FORMAT"):
        setup_json_logging("svc")


def test_all_sinks_follow_one_protocol() -> None:
    for sink in (StreamSink(io.StringIO()), Tee([StreamSink(io.StringIO())])):
        sink.write(b"x\n")
        sink.flush()
        sink.release()
        sink.after_fork()
        sink.close()
        assert sink.dropped == 0
