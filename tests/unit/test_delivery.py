"""What becomes of a message, decided without any Redis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus import Reject, Retry, delivery, names
from quantum_bus.delivery import Again, Bury, Failure
from quantum_bus.envelope import Entry, decode
from tests.unit.incoming import incoming

STEADY = Retry(initial=1.0, maximum=10.0, multiplier=2.0, jitter="none")


def test_what_decoded_may_run() -> None:
    assert delivery.before_run(incoming(), attempts=0, retry=Retry()) is None


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_what_used_up_its_attempts_without_an_outcome_never_runs_again(max_attempts: int) -> None:
    retry = Retry(max_attempts=max_attempts)
    assert delivery.before_run(incoming(), attempts=max_attempts - 1, retry=retry) is None
    for attempts in (max_attempts, max_attempts + 1):
        bury = delivery.before_run(incoming(), attempts=attempts, retry=retry)
        assert bury is not None
        assert (bury.reason, bury.failure.error_type) == (names.REASON_MAX_ATTEMPTS, "ProcessDied")
        assert f"begun {attempts} times" in bury.failure.message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([b"v", b"1", b"data", b"{"], names.REASON_UNDECODABLE),
        ([b"v", b"1"], names.REASON_UNDECODABLE),
        ([b"v", b"2", b"data", b"{}"], names.REASON_UNSUPPORTED_VERSION),
    ],
)
def test_what_cannot_be_decoded_never_runs(fields: list[bytes], reason: str) -> None:
    bury = delivery.before_run(decode(Entry("s", "1-0", fields)), attempts=0, retry=Retry())
    assert bury is not None
    assert bury.reason == bury.failure.error_type == reason
    assert bury.failure.message


def test_a_misfit_is_not_tried_again() -> None:
    bury = delivery.misfit(ValueError("no field"))
    assert (bury.reason, bury.failure.message) == (names.REASON_INVALID_PAYLOAD, "no field")


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (2000, 10.0)])
def test_the_delay_doubles_up_to_its_maximum(attempt: int, delay: float) -> None:
    assert delivery.backoff(attempt, STEADY) == delay


@given(attempt=st.integers(1, 5000), initial=st.floats(0, 1e6), maximum=st.floats(0, 1e9), multiplier=st.floats(1, 1e9))
def test_a_delay_is_never_longer_than_its_maximum_nor_negative(
    attempt: int, initial: float, maximum: float, multiplier: float
) -> None:
    retry = Retry(initial=initial, maximum=maximum, multiplier=multiplier)
    assert 0 <= delivery.backoff(attempt, retry) <= maximum


def test_full_jitter_draws_from_zero_to_the_whole_delay() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.25

    assert delivery.backoff(2, Retry(initial=1.0), uniform) == 0.25
    assert drawn == [(0.0, 2.0)]


def test_a_failed_run_is_tried_again_until_the_last() -> None:
    retry = Retry(max_attempts=3, initial=1.0, jitter="none")
    error = ValueError("no")
    assert [delivery.after_error(error, attempt=n, retry=retry) for n in (1, 2)] == [
        Again(1.0, Failure.of(error)),
        Again(2.0, Failure.of(error)),
    ]
    last = delivery.after_error(error, attempt=3, retry=retry)
    assert last == Bury(names.REASON_MAX_ATTEMPTS, Failure.of(error))


@pytest.mark.parametrize(
    ("retry", "error", "reason"),
    [
        (Retry(), Reject("no"), names.REASON_REJECTED),
        (Retry(retry_on=Reject), Reject("no"), names.REASON_REJECTED),
        (Retry(give_up_on=KeyError), KeyError("k"), names.REASON_GAVE_UP),
        (Retry(give_up_on=LookupError), KeyError("k"), names.REASON_GAVE_UP),
        (Retry(retry_on=OSError), ValueError("v"), names.REASON_GAVE_UP),
        (Retry(retry_on=LookupError, give_up_on=KeyError), KeyError("k"), names.REASON_GAVE_UP),
        (Retry(retry_on=LookupError, give_up_on=KeyError), IndexError("i"), None),
        (Retry(), KeyboardInterrupt(), names.REASON_GAVE_UP),
        (Retry(retry_on=BaseException), KeyboardInterrupt(), None),
    ],
)
def test_which_errors_are_tried_again(retry: Retry, error: BaseException, reason: str | None) -> None:
    outcome = delivery.after_error(error, attempt=1, retry=retry)
    assert isinstance(outcome, Again) if reason is None else isinstance(outcome, Bury) and outcome.reason == reason


def test_nack_takes_the_delay_it_is_given_and_counts_as_an_attempt() -> None:
    retry = Retry(max_attempts=2, initial=1.0, jitter="none")
    given_delay, own_delay = (delivery.after_nack(delay, attempt=1, retry=retry) for delay in (0.0, None))
    assert isinstance(given_delay, Again)
    assert isinstance(own_delay, Again)
    assert (given_delay.delay, own_delay.delay) == (0.0, 1.0)
    last = delivery.after_nack(0.0, attempt=2, retry=retry)
    assert isinstance(last, Bury)
    assert last.reason == names.REASON_MAX_ATTEMPTS


def test_term_masks_and_bounds_its_reason() -> None:
    bury = delivery.after_term("redis://user:hunter2@db " + "x" * 5_000)
    assert "hunter2" not in bury.failure.message
    assert len(bury.failure.message) == delivery.MAX_MESSAGE_LENGTH


def test_a_failure_names_errors_of_modules_in_full_and_builtins_by_name() -> None:
    assert Failure.of(ValueError()).error_type == "ValueError"
    assert Failure.of(Reject()).error_type == "quantum_bus.errors.Reject"


def test_a_failure_keeps_the_frames_nearest_to_the_error() -> None:
    def deep(level: int) -> None:
        if not level:
            raise ValueError("at the bottom")
        deep(level - 1)

    with pytest.raises(ValueError, match="bottom") as raised:
        deep(900)
    try:
        raise RuntimeError("x" * 20_000) from raised.value
    except RuntimeError as error:
        failure = Failure.of(error)
    assert len(failure.stack) <= delivery.MAX_STACK_LENGTH
    assert len(failure.message) == delivery.MAX_MESSAGE_LENGTH
    assert failure.stack.rstrip().endswith("x" * 100)


def test_a_failure_can_be_made_of_any_error() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    failure = Failure.of(Broken())
    assert failure.error_type.endswith("Broken")
    assert "cannot be shown" in failure.message


def test_an_error_with_its_secrets_is_masked_in_text_and_stack() -> None:
    try:
        raise ValueError("password=hunter2 at redis://u:hunter2@db/0")
    except ValueError as error:
        failure = Failure.of(error)
    assert "hunter2" not in failure.message


def test_dead_letter_fields_come_in_their_order_and_all_are_known() -> None:
    fields = delivery.dead_letter_fields(
        Bury("rejected", Failure("E", "m", "st")),
        stream="s", entry_id="1-0", group="g", consumer="c", attempts=3, first_failed_at="t1", now="t2", span="tp",
    )  # fmt: skip
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    assert set(pairs) == names.DLQ_FIELDS - {names.DLQ_PACKED}
    assert list(pairs.values()) == ["s", "1-0", "g", "c", "3", "rejected", "E", "m", "st", "t1", "t2", "tp"]
