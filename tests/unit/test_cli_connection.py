from collections.abc import Iterator

import pytest
import redis

from quantum_bus.cli.connection import connected, full_name, open_client
from quantum_bus.errors import ConfigurationError

NOBODY = "redis://someone:secret@127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def no_redis_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTUM_BUS_URL", raising=False)


def ended(capsys: pytest.CaptureFixture[str], url: str | None, *, debug: bool = False) -> tuple[object, list[str]]:
    with pytest.raises(SystemExit) as end, connected("lag", url, debug=debug):
        raise AssertionError("there is no connection")
    return end.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        (None, 2, "give --url redis://localhost:6379/0, or set QUANTUM_BUS_URL"),
        ("", 2, "give --url"),
        ("localhost:6379", 2, "does not begin with one of redis://"),
        ("redis://u:secret@h:6379/first", 2, "the database behind the slash is a number"),
        ("redis://u:secret@h:6379/0?no_such=1", 2, "options of redis-py's connections"),
        (NOBODY, 1, "redis://someone:***@127.0.0.1:1/0 cannot be reached"),
    ],
)
def test_without_a_redis_a_command_ends_with_one_line_that_shows_no_password(
    capsys: pytest.CaptureFixture[str], url: str | None, code: int, says: str
) -> None:
    ended_with, [line] = ended(capsys, url)
    assert ended_with == code
    assert line.startswith("quantum-bus: lag: ")
    assert says in line
    assert "secret" not in line


def test_the_traceback_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended(capsys, NOBODY, debug=True)
    assert code == 1
    assert "Traceback (most recent call last):" in lines
    assert "cannot be reached" in lines[-1]


class Broken:
    def close(self) -> None:
        self.closed = True


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    made = Broken()
    monkeypatch.setattr("quantum_bus.cli.connection.open_client", lambda url: made)
    yield made
    assert made.closed


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (redis.ConnectionError("Connection reset"), 1, "redis://u:***@h broke: Connection reset"),
        (redis.ResponseError("WRONGTYPE Operation against"), 1, "WRONGTYPE Operation against"),
        (ConfigurationError("stream='{': give another"), 2, "give another"),
    ],
)
def test_an_error_in_the_midst_of_a_command_is_one_line_too(
    broken: Broken, capsys: pytest.CaptureFixture[str], error: Exception, code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as end, connected("lag", "redis://u:secret@h"):
        raise error
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == code
    assert says in line


def test_an_error_of_the_programs_own_is_not_hidden(broken: Broken) -> None:
    with pytest.raises(ZeroDivisionError), connected("lag", "redis://h"):
        _ = 1 / 0


def test_a_stream_is_named_as_in_the_services_and_its_key_has_their_prefix() -> None:
    assert full_name("orders", "staging:") == "staging:orders"
    for stream in ("", "a{b"):
        with pytest.raises(ConfigurationError):
            full_name(stream, "staging:")


def test_no_url_is_no_client() -> None:
    with pytest.raises(ConfigurationError):
        open_client(None)
