"""A file of its own for each process, rotated by rename, below a number of bytes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quantum_bus import names
from quantum_bus.errors import ConfigurationError
from quantum_bus.jsonlog import files, setup_json_logging


def lines(*paths: Path) -> list[dict[str, Any]]:
    """What was logged: without the lines that close a file."""
    return [line for line in all_lines(*paths) if line["event"] != names.EVENT_LOG_FILE_CLOSED]


def all_lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def closings(*paths: Path) -> list[dict[str, Any]]:
    return [line for line in all_lines(*paths) if line["event"] == names.EVENT_LOG_FILE_CLOSED]


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    return {"path": tmp_path / "svc.jsonl", "max_bytes": 40_000, "backups": 3, "announce": False}


def test_a_full_file_is_renamed_and_the_oldest_removed(small: dict[str, Any], tmp_path: Path) -> None:
    log = setup_json_logging("svc", **small)
    for number in range(1000):
        log.info("x", number=number)
        assert total(tmp_path) <= 40_000
    kept = ["svc.jsonl.3", "svc.jsonl.2", "svc.jsonl.1", "svc.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    numbers = [record["number"] for record in lines(*(tmp_path / name for name in kept))]
    assert numbers == list(range(1000 - len(numbers), 1000))
    assert total(tmp_path) > 30_000


def test_a_renamed_file_is_complete_and_keeps_its_inode(small: dict[str, Any], tmp_path: Path) -> None:
    log = setup_json_logging("svc", **small)
    log.info("first")
    inode = (tmp_path / "svc.jsonl").stat().st_ino
    while not (tmp_path / "svc.jsonl.1").exists():
        log.info("x", text="a" * 500)
    assert (tmp_path / "svc.jsonl.1").stat().st_ino == inode
    assert (tmp_path / "svc.jsonl.1").read_bytes().endswith(b"}\n")


def test_a_full_file_ends_with_how_many_lines_it_and_those_before_it_hold(
    small: dict[str, Any], tmp_path: Path
) -> None:
    written = 0
    for _ in range(3):  # three processes one after the other, as far as the files can tell
        log = setup_json_logging("svc", **small)
        for _ in range(200):
            log.info("x", number=(written := written + 1))
    kept = [tmp_path / f"svc.jsonl.{number}" for number in (3, 2, 1)]
    closed = closings(*kept)
    assert [all_lines(path)[-1] for path in kept] == closed
    assert {line["file"] for line in closed} == {"svc.jsonl"}
    assert len({line["chain"] for line in closed}) == 1
    assert [line["lines"] for line in closed] == [len(lines(path)) for path in kept]
    for path, line in zip(kept, closed, strict=True):
        assert (lines(path)[0]["number"] - 1, lines(path)[-1]["number"]) == (line["lines_before"], line["lines_total"])
    assert closed[0]["lines_before"] > 0, "nothing was deleted"


def test_files_whose_past_is_gone_are_a_chain_of_their_own(small: dict[str, Any], tmp_path: Path) -> None:
    first: list[dict[str, Any]] = []
    for _ in range(2):
        log = setup_json_logging("svc", **small)
        while not (tmp_path / "svc.jsonl.1").exists():
            log.info("x")
        [closed] = closings(tmp_path / "svc.jsonl.1")
        assert closed["lines_before"] == 0
        first.append(closed)
        (tmp_path / "svc.jsonl.1").write_bytes(b'{"event":"LOG_FILE_CLOSED","chain":7}\n\xff')
        log = setup_json_logging("svc", **small)
        (tmp_path / "svc.jsonl.1").unlink()
    assert first[0]["chain"] != first[1]["chain"]


def test_without_backups_the_file_begins_anew(small: dict[str, Any], tmp_path: Path) -> None:
    log = setup_json_logging("svc", **{**small, "backups": 0, "max_bytes": 5000})
    for number in range(100):
        log.info("x", number=number)
    assert [path.name for path in tmp_path.iterdir()] == ["svc.jsonl"]
    assert lines(tmp_path / "svc.jsonl")[-1]["number"] == 99


def test_no_record_is_longer_than_its_file(small: dict[str, Any], tmp_path: Path) -> None:
    log = setup_json_logging("svc", **small)
    for _ in range(10):
        log.info("x", text="a" * 100_000)
        assert total(tmp_path) <= 40_000


def test_threads_lose_no_line_over_rotations(small: dict[str, Any], tmp_path: Path) -> None:
    log = setup_json_logging("svc", **{**small, "max_bytes": 2_000_000, "backups": 19})

    def work(number: int) -> None:
        for step in range(500):
            log.info("x", number=number, step=step, text="a" * 100)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = lines(*tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) > 5
    assert sorted((line["number"], line["step"]) for line in written) == [(n, s) for n in range(6) for s in range(500)]


def test_a_restart_appends_and_a_smaller_limit_removes_what_is_too_much(small: dict[str, Any], tmp_path: Path) -> None:
    for number in range(3):
        setup_json_logging("svc", **small).info("x", number=number)
    assert [record["number"] for record in lines(tmp_path / "svc.jsonl")] == [0, 1, 2]
    for number in range(1, 6):
        (tmp_path / f"svc.jsonl.{number}").write_bytes(b"x" * 9000)
    setup_json_logging("svc", **{**small, "max_bytes": 20_000, "backups": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["svc.jsonl", "svc.jsonl.1"]


def test_a_line_torn_by_a_former_process_stays_alone(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "svc.jsonl").write_bytes(b'{"ts":"2026')
    setup_json_logging("svc", **small).info("x")
    torn, line = (tmp_path / "svc.jsonl").read_bytes().splitlines()
    assert torn == b'{"ts":"2026'
    assert json.loads(line)["msg"] == "x"


def test_a_file_that_was_removed_or_renamed_comes_back(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHECK_EVERY", 0)
    log = setup_json_logging("svc", **small)
    log.info("one")
    (tmp_path / "svc.jsonl").rename(tmp_path / "moved")
    log.info("two")
    (tmp_path / "svc.jsonl").unlink()
    log.info("three")
    assert [record["msg"] for record in lines(tmp_path / "moved", tmp_path / "svc.jsonl")] == ["one", "three"]


def test_a_folder_that_refuses_renaming_costs_the_limit_not_the_lines(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(self, target)

    log = setup_json_logging("svc", **small)
    monkeypatch.setattr(Path, "replace", refuse)
    for number in range(300):
        log.info("x", number=number)
    assert len(lines(tmp_path / "svc.jsonl")) == 300
    assert closings(tmp_path / "svc.jsonl") == []
    assert log.dropped == 0


WRITER = """
import sys
from quantum_bus.jsonlog import setup_json_logging
log = setup_json_logging("svc", path=sys.argv[1], announce=False)
log.info("x", process=int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for step in range(200):
    log.info("x", process=int(sys.argv[2]), step=step)
"""


def test_each_process_writes_its_own_file_and_names_are_used_again(small: dict[str, Any], tmp_path: Path) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(small["path"]), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    for _ in range(2):
        processes = [start(number) for number in range(3)]
        for process in processes:
            process.communicate("go\n", timeout=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["svc.2.jsonl", "svc.3.jsonl", "svc.jsonl"]
    for path in tmp_path.iterdir():
        assert len({record["process"] for record in lines(path)}) == 1
        assert len(lines(path)) == 402


FORKER = """
import os, sys
from quantum_bus.jsonlog import setup_json_logging, get_logger
log = setup_json_logging("svc", path=sys.argv[1], announce=False)
log.info("parent")
child = os.fork()
if child == 0:
    log.info("child")
    get_logger().info("child")
    os._exit(0)
os.waitpid(child, 0)
silent = os.fork()
if silent == 0:
    os._exit(0)
os.waitpid(silent, 0)
log.info("parent")
"""


def test_after_a_fork_the_child_writes_a_file_of_its_own(small: dict[str, Any], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKER, str(small["path"])], check=True, timeout=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["svc.2.jsonl", "svc.jsonl"]
    assert {record["msg"] for record in lines(tmp_path / "svc.jsonl")} == {"parent"}
    assert {record["msg"] for record in lines(tmp_path / "svc.2.jsonl")} == {"child"}


def test_a_fork_while_another_thread_logs_does_not_hang_the_child(tmp_path: Path) -> None:
    script = """
import io, os, sys, threading
from quantum_bus.jsonlog import setup_json_logging
log = setup_json_logging("svc", stream=io.StringIO(), path=sys.argv[1], announce=False)
stop = threading.Event()
def work():
    while not stop.is_set():
        log.info("x")
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        log.info("child")
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "svc.jsonl")], timeout=30, check=False
    )
    assert done.returncode == 0


def test_where_the_file_system_has_no_locks_the_process_id_is_in_the_name(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, operation: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    setup_json_logging("svc", **small).info("x")
    monkeypatch.undo()
    assert len(lines(tmp_path / f"svc.{os.getpid()}.jsonl")) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="folder"):
        setup_json_logging("svc", path=tmp_path / "file" / "svc.jsonl")


def test_a_really_full_disk_loses_only_what_has_no_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"mount -t tmpfs -o size=128k none {disk} && exec {sys.executable} -c '{ON_DISK}' {disk}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "mount" in mounted.stderr or "unshare" in mounted.stderr:
        return  # needs root and namespaces; the same is tested above with a failing write
    assert mounted.returncode == 0, mounted.stderr
    assert mounted.stdout == "ok\n"


ON_DISK = """
import json, os, sys
from pathlib import Path
from quantum_bus.jsonlog import setup_json_logging
disk = Path(sys.argv[1])
log = setup_json_logging("svc", path=disk / "svc.jsonl", announce=False)
(disk / "other").write_bytes(bytes(80_000))
written = 0
while not log.dropped:
    log.info("x", number=written, text="a" * 777)
    written += 1
for _ in range(10):
    log.info("lost", text="a" * 777)
(disk / "other").unlink()
log.info("after")
good, torn = [], 0
for line in (disk / "svc.jsonl").read_bytes().splitlines():
    try:
        good.append(json.loads(line))
    except ValueError:
        torn += 1
assert torn <= 1, torn
assert [line["number"] for line in good[:-2]] == list(range(written - 1))
assert good[-2]["dropped"] == log.dropped == 11, good[-2]
assert good[-1]["msg"] == "after"
print("ok")
"""
