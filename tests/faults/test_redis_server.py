"""The demo's and the tests' own Redis: it comes back as told, and never outlives its user."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from quantum_bus.demo import redis_server as module
from quantum_bus.demo.redis_server import RedisProcess, RedisServer, RedisServerError, start_redis


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def test_answers_and_is_gone_afterwards(redis_binary: RedisServer) -> None:
    with start_redis(redis_binary) as process:
        with Redis.from_url(process.url) as client:
            assert client.info("server")["redis_version"] == redis_binary.version
        pid = process.pid
        assert pid is not None
    assert process.pid is None
    assert not is_running(pid)
    assert not process.folder.exists()


def test_forgets_everything_when_it_is_killed(own_redis: RedisProcess) -> None:
    with Redis.from_url(own_redis.url) as client:
        client.set("key", "value")
    own_redis.kill()
    own_redis.start()
    with Redis.from_url(own_redis.url) as client:
        assert client.get("key") is None


def test_keeps_its_data_where_it_is_told_to(redis_binary: RedisServer) -> None:
    with start_redis(redis_binary, options={"appendonly": "yes", "appendfsync": "always"}) as process:
        with Redis.from_url(process.url) as client:
            client.set("key", "value")
        process.kill()
        process.start()
        with Redis.from_url(process.url) as client:
            assert client.get("key") == b"value"


def test_stops_while_it_is_suspended(own_redis: RedisProcess) -> None:
    pid = own_redis.pid
    assert pid is not None
    own_redis.suspend()
    own_redis.stop()
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_ends_with_its_parent_even_when_that_is_killed(redis_binary: RedisServer, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from quantum_bus.demo.redis_server import RedisServer, start_redis\n"
        "with start_redis(RedisServer(Path(sys.argv[1]), '0.0.0'), folder=Path(sys.argv[2])) as redis:\n"
        "    print(redis.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(redis_binary.path), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        redis_pid = int(parent.stdout.readline())
        assert is_running(redis_pid)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(redis_pid)


def test_says_so_when_its_port_is_taken(redis_binary: RedisServer) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(RedisServerError, match="Address already in use"),
            start_redis(redis_binary, port=other.getsockname()[1]),
        ):
            pass


def test_says_what_a_bad_option_does(redis_binary: RedisServer) -> None:
    with pytest.raises(RedisServerError, match="ended with 1"), start_redis(redis_binary, options={"nonsense": "1"}):
        pass


def test_without_any_server_one_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_on_path", lambda: iter(()))
    server = module.find_redis_server()
    assert server.series == "6.2"
    assert server.path.is_relative_to(tmp_path)
    fetched_at = server.path.stat().st_mtime_ns
    assert module.find_redis_server().path.stat().st_mtime_ns == fetched_at
    assert [path.name for path in server.path.parent.iterdir()] == ["redis-server"], "the download is cleared away"


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "quantum-bus").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_on_path", lambda: iter(()))
    with pytest.raises(RedisServerError, match=str(tmp_path)):
        module.find_redis_server()
