"""Names of streams are checked once, and those that a program makes up do not fill the memory."""

from typing import Any

import pytest

from quantum_bus import stream_names
from quantum_bus.errors import ConfigurationError
from quantum_bus.stream_names import StreamNames


def test_a_name_is_given_its_prefix() -> None:
    streams = StreamNames("test:")
    assert [streams.full(name) for name in ("orders", "orders", "intents")] == [
        "test:orders", "test:orders", "test:intents",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", None, 7, ["orders"], "a{}b"])
def test_what_cannot_be_a_name_is_refused_each_time(name: Any) -> None:
    streams = StreamNames("")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="stream="):
            streams.full(name)


@pytest.mark.parametrize(("prefix", "name"), [("{}", "orders"), ("a{", "b")])
def test_what_cannot_be_a_name_with_its_prefix_is_refused(prefix: str, name: str) -> None:
    # fails without: a look at both together; their side keys were in another slot
    with pytest.raises(ConfigurationError, match="hash tag"):
        StreamNames(prefix).full(name)


def test_so_many_are_kept_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_names, "_KEPT", 10)
    streams = StreamNames("p:")
    assert [streams.full(f"s{number}") for number in range(25)] == [f"p:s{number}" for number in range(25)]
    assert len(streams._known) <= 10
