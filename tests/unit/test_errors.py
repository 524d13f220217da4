"""The error tree: what is caught by what, and what the texts say."""

import copy
import inspect
import pickle

import pytest

from quantum_bus import errors
from quantum_bus.errors import (
    BackPressure,
    BusClosed,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    MessageAlreadySettled,
    NotDurable,
    PayloadTooLarge,
    PublishError,
    PublishTimeout,
    QuantumBusError,
    Reject,
    SerializationError,
)
from quantum_bus.receipt import Receipt

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]


def test_everything_is_one_tree() -> None:
    assert all(issubclass(error, QuantumBusError) for error in ALL)


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = {line.strip("│├└─ ").split()[0] for line in (errors.__doc__ or "").splitlines() if "─" in line}
    assert drawn | {"QuantumBusError"} == {error.__name__ for error in ALL}


@pytest.mark.parametrize("error", [PublishTimeout, BackPressure, NotDurable])
def test_a_failed_publish_is_caught_as_one(error: type[Exception]) -> None:
    assert issubclass(error, PublishError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigurationError, ValueError),
        (SerializationError, TypeError),
        (PayloadTooLarge, ValueError),
        (PublishTimeout, TimeoutError),
        (ConnectionLost, ConnectionError),
    ],
)
def test_who_does_not_know_us_catches_the_builtin(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


def test_a_payload_too_large_says_by_how_much_and_what_to_do() -> None:
    error = PayloadTooLarge(2_000_000, 1_048_576)
    assert (error.size, error.limit) == (2_000_000, 1_048_576)
    assert "2,000,000 bytes" in str(error)
    assert "limit of 1,048,576" in str(error)
    assert "publish a reference, or raise max_payload_bytes" in str(error)


def test_what_is_not_durable_says_what_is_stored_and_who_has_it() -> None:
    error = NotDurable(Receipt("1-0", "m-1", "c", "orders"), 2, 1)
    assert (error.receipt.id, error.wanted, error.confirmed) == ("1-0", 2, 1)
    assert "message m-1 is stored for 'orders', and confirmed by 1 of the 2 replicas" in str(error)


def test_reject_has_a_reason() -> None:
    assert Reject("unknown symbol").reason == str(Reject("unknown symbol")) == "unknown symbol"
    assert Reject().reason == "rejected by the handler"


@pytest.mark.parametrize(
    "error",
    [PayloadTooLarge(2, 1), Reject("no"), NotDurable(Receipt("1-0", "m", "c", "s"), 2, 1),
     *(kind("text") for kind in (ConfigurationError, BusClosed, SerializationError,
     PublishError, PublishTimeout, BackPressure, ConnectionLost, MessageAlreadySettled, LeaseLost))],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_comes_back_whole_from_a_worker_process(error: Exception) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
