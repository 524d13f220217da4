"""What a command line's connection to a real Redis does."""

import pytest
import redis

from quantum_bus.cli.connection import connected
from tests.servers import RedisPool, series_to_test


@pytest.fixture(params=series_to_test())
def url(request: pytest.FixtureRequest, redis_pool: RedisPool) -> str:
    return redis_pool.of(request.param).url


def test_a_command_reads_bytes_over_the_older_protocol(url: str, stream: str) -> None:
    with connected("lag", url) as client:
        client.set(stream, b"\xff")
        assert client.get(stream) == b"\xff"
        assert client.connection_pool.connection_kwargs["protocol"] == 2


def test_refused_credentials_are_a_wrong_call(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, connected("lag", url.replace("://", "://nobody:secret@")):
        raise AssertionError("let in")
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "refused the credentials" in line
    assert "secret" not in line


def test_a_user_that_may_do_nothing_but_its_command_is_let_in(url: str, stream: str) -> None:
    name = stream.replace(":", "-")
    with redis.Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", name, "on", ">secret", "~*", "-@all", "+xlen")
        try:
            with connected("lag", url.replace("://", f"://{name}:secret@")) as client:
                assert client.xlen(stream) == 0
        finally:
            admin.acl_deluser(name)
