"""Where a URL comes from that nobody gave: the environment, or a file that it names."""

import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantum_bus.address import url_of
from quantum_bus.cli.app import app
from quantum_bus.config import BusConfig
from quantum_bus.errors import ConfigurationError

URL = "redis://executor:s3cret@cache.example.com:6379/0"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "redis_url"
    path.write_text(f"{URL}\n")
    return path


def test_a_file_holds_the_url_and_no_line_end_of_it(file: Path) -> None:
    assert url_of({"QUANTUM_BUS_URL_FILE": str(file)}) == URL
    config = BusConfig.resolve(None, "s", has_client=False, env={"QUANTUM_BUS_URL_FILE": str(file)})
    assert config.url == URL


def test_a_url_of_the_environment_goes_before_the_file_and_the_file_is_not_read() -> None:
    assert url_of({"QUANTUM_BUS_URL": URL, "QUANTUM_BUS_URL_FILE": "/no/such"}) == URL


def test_without_either_there_is_none() -> None:
    assert url_of({}) is None
    assert url_of({"QUANTUM_BUS_URL": "", "QUANTUM_BUS_URL_FILE": ""}) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"s3cret\xff", "holds no text"),
        (b"redis://localhost s3cret", "holds more than one word"),
    ],
)
def test_a_file_without_a_url_says_what_is_wrong_and_nothing_of_what_is_in_it(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "redis_url"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as raised:
        url_of({"QUANTUM_BUS_URL_FILE": str(path)})
    shown = "".join(traceback.format_exception(raised.value))
    assert str(path) in shown
    assert "name a file with nothing but the URL in it" in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize("command", ["lag", "doctor", "exporter", "dlq list orders"])
def test_commands_read_the_file_too(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUANTUM_BUS_URL", raising=False)
    path = tmp_path / "redis_url"
    path.write_text("http://u:s3cret@host")
    monkeypatch.setenv("QUANTUM_BUS_URL_FILE", str(path))
    ended = CliRunner().invoke(app, command.split())
    assert ended.exit_code == 2
    assert "url='http://u:***@host' does not begin with one of redis://" in ended.stderr
    path.unlink()
    ended = CliRunner().invoke(app, command.split())
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1)
    assert "redis_url' cannot be read: No such file" in ended.stderr
    assert (
        f"{' '.join(command.split()[:2]) if command.startswith('dlq') else command}: QUANTUM_BUS_URL_FILE"
        in ended.stderr
    )
