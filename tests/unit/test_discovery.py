import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoPermissionError

from quantum_bus.config import check_stream
from quantum_bus.discovery import SideKey, discover, side_key_of
from quantum_bus.errors import ConfigurationError
from quantum_bus.inquiry import answered
from quantum_bus.streams import Keys, side_key


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("{orders}:dlq", SideKey("orders", "dlq")),
        ("{orders}:completed", SideKey("orders", "completed")),
        ("{orders}:due", SideKey("orders", "due")),
        ("{orders}:due:g", SideKey("orders", "due", "g")),
        ("{a:b}:retry:g:h", SideKey("a:b", "retry", "g:h")),
        ("orders{eu}:dlq", SideKey("orders{eu}", "dlq")),
        ("orders{eu}:retry:g", SideKey("orders{eu}", "retry", "g")),
        ("{orders}:retry:a:due:b", SideKey("orders", "retry", "a:due:b")),
        ("orders:dlq", None),
        ("dlq", None),
        ("{orders}:retry", None),
        ("{orders}:retry:", None),
        ("{orders}:other", None),
        ("{}:dlq", None),
        ("orders{eu}", None),
    ],
)
def test_a_side_key_is_told_by_its_form(key: str, expected: SideKey | None) -> None:
    assert side_key_of(key) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_every_key_that_is_made_for_a_stream_is_recognised(name: str) -> None:
    try:
        check_stream(name)
    except ConfigurationError:
        return
    for kind in ("dlq", "completed", "due"):
        found = side_key_of(side_key(name, kind))
        assert found is not None
        assert side_key(found.stream, kind) == side_key(name, kind)
    found = side_key_of(Keys.of(name, "g").retry)
    assert found is not None
    assert Keys.of(found.stream, "g") == Keys.of(name, "g") or side_key(found.stream, "x") == side_key(name, "x")


def test_a_refused_scan_finds_nothing_and_says_why() -> None:
    found = answered(discover(), lambda *_: [NoPermissionError("no SCAN")])
    assert (list(found.streams), found.complete, found.refused) == ([], False, "no SCAN")


def test_the_cursor_is_followed_until_it_has_been_around() -> None:
    pages = {b"0": [b"7", [b"a", b"{a}:dlq"]], b"7": [b"0", [b"b", b"\xff"]]}
    found = answered(discover(), lambda command: [pages[command[1]]])
    assert (list(found.streams), found.complete) == (["a", "b"], True)
