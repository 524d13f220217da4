"""``str()`` and ``repr()`` of anything at all, without an exception."""

from __future__ import annotations


def text_of(value: object) -> str:
    """``str(value)``; its repr where that fails; its class's name where both do."""
    if type(value) is str:
        return value
    try:
        return _exact(str(value))
    except Exception:  # noqa: BLE001 - whatever a foreign __str__ raises, there is still its repr
        return repr_of(value)


def repr_of(value: object) -> str:
    """``repr(value)``, or its class's name where that fails."""
    try:
        return _exact(repr(value))
    except Exception:  # noqa: BLE001 - whatever a foreign __repr__ raises, the class has a name
        return f"<unprintable {type(value).__qualname__}>"


def _exact(text: str) -> str:
    # A subclass of str could bring methods of its own along.
    return text if type(text) is str else str.__str__(text)
