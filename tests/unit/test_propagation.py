"""The flow a piece of code belongs to: through tasks, threads, forks; and ids that nobody repeats."""

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from threading import Thread
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.trace import NonRecordingSpan, SpanContext

from quantum_bus import names, propagation
from quantum_bus.propagation import (
    MAX_CORRELATION_ID_LENGTH,
    carry_context,
    child_of,
    clear_correlation_id,
    correlation_scope,
    derived_context,
    format_traceparent,
    get_causation_id,
    get_correlation_id,
    mint,
    new_trace_id,
    parse_context,
    set_correlation_id,
    valid_correlation_id,
)
from tests.unit.handlers import in_message
from tests.unit.hostile import hostile_text
from tests.unit.w3c import is_correlation_id, is_traceparent


@pytest.fixture(autouse=True)
def outside_of_a_flow() -> Iterator[None]:
    clear_correlation_id()
    propagation._log_replaced.cache_clear()
    yield
    clear_correlation_id()


@contextmanager
def current_trace(trace_id: int) -> Iterator[None]:
    span = NonRecordingSpan(SpanContext(trace_id, 1, is_remote=False))
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        context.detach(token)


# --- set, get, clear, scope ----------------------------------------------------------------------


def test_outside_of_a_flow_there_is_no_id() -> None:
    assert get_correlation_id() is None
    assert get_causation_id() is None


def test_set_get_and_clear() -> None:
    assert set_correlation_id("order-7") == "order-7"
    assert get_correlation_id() == "order-7"
    clear_correlation_id()
    assert get_correlation_id() is None


def test_an_id_of_ones_own_making_is_a_trace_id() -> None:
    made = set_correlation_id()
    assert made == get_correlation_id()
    assert len(made) == 32
    assert int(made, 16)
    assert set_correlation_id() != made


def test_inside_of_a_trace_the_id_is_the_traces() -> None:
    with current_trace(0xABC):
        assert set_correlation_id() == f"{0xABC:032x}"
        with correlation_scope() as scoped:
            assert scoped == f"{0xABC:032x}"


def test_uuids_stay_as_they_are() -> None:
    for value in (uuid4(), UUID(int=0)):
        assert set_correlation_id(value) == str(value)
        assert set_correlation_id(str(value)) == str(value)
        with correlation_scope(value) as scoped:
            assert scoped == str(value)


def test_scopes_nest_and_give_back_what_was_before() -> None:
    with correlation_scope("outer") as outer:
        assert outer == get_correlation_id() == "outer"
        with correlation_scope("inner"):
            assert get_correlation_id() == "inner"
            with correlation_scope():
                assert get_correlation_id() not in ("inner", "outer", None)
            assert get_correlation_id() == "inner"
        assert get_correlation_id() == "outer"
    assert get_correlation_id() is None


def test_a_scope_ends_with_an_exception_too() -> None:
    set_correlation_id("before")
    with pytest.raises(KeyError), correlation_scope("inside"):
        raise KeyError
    assert get_correlation_id() == "before"


def test_a_scope_undoes_what_was_set_and_cleared_inside() -> None:
    with correlation_scope("outer"):
        with correlation_scope("inner"):
            set_correlation_id("other")
        assert get_correlation_id() == "outer"
        with correlation_scope("inner"):
            clear_correlation_id()
        assert get_correlation_id() == "outer"


def test_a_handlers_scope_holds_both_ids_and_ends_with_an_exception_too() -> None:
    with in_message("flow", "cause"):
        with in_message("flow-2", None):
            assert (get_correlation_id(), get_causation_id()) == ("flow-2", None)
        assert (get_correlation_id(), get_causation_id()) == ("flow", "cause")
        with pytest.raises(KeyError), in_message("flow-3", "cause-3"):
            raise KeyError
        assert (get_correlation_id(), get_causation_id()) == ("flow", "cause")
    assert (get_correlation_id(), get_causation_id()) == (None, None)


def test_a_scope_left_in_another_context_neither_raises_nor_touches_that_context() -> None:
    # As web frameworks run the two halves of a `def` dependency: each in a worker thread, in a copy of its own.
    def dependency() -> Iterator[str]:
        with correlation_scope("request") as scoped:
            yield scoped

    for scope in (partial(correlation_scope, "request"), partial(in_message, "request", "cause")):
        entered = scope()
        copy_context().run(entered.__enter__)
        with correlation_scope("elsewhere"):
            assert not entered.__exit__(None, None, None)
            assert get_correlation_id() == "elsewhere"

    generator = dependency()
    assert copy_context().run(next, generator) == "request"
    with pytest.raises(StopIteration):
        copy_context().run(next, generator)


async def test_a_forgotten_async_generator_does_not_change_the_flow_of_who_closes_it() -> None:
    async def numbers() -> AsyncIterator[int]:
        with correlation_scope("theirs"):
            yield 1

    generator = numbers()
    await asyncio.create_task(anext(generator))
    with correlation_scope("mine"):
        await generator.aclose()  # type: ignore[attr-defined]
        assert get_correlation_id() == "mine"


# --- what an id may be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\n", "a\r\nX: y", "a" * 129, "ä", "a/b", "{a}", "\x00", "\ud800", "\uff11", "a\u202e"]
)
def test_a_malformed_id_is_replaced_and_the_sender_told_once(value: str, caplog: pytest.LogCaptureFixture) -> None:
    made = set_correlation_id(value)
    with correlation_scope(value) as scoped:
        assert is_correlation_id(scoped)
    assert is_correlation_id(made)
    assert value not in (made, scoped)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.__dict__["event"] == names.EVENT_BUS_CORRELATION_ID_REPLACED
    assert "1 to 128 characters of A-Z a-z 0-9 . _ : -" in record.getMessage()
    assert not value.strip() or value not in record.getMessage()


@pytest.mark.parametrize("value", [5, b"abc", 1.5, ["a"], object()])
def test_what_is_no_text_is_replaced_too(value: object) -> None:
    assert is_correlation_id(set_correlation_id(value))  # type: ignore[arg-type]


def test_a_missing_id_is_nothing_to_complain_of(caplog: pytest.LogCaptureFixture) -> None:
    set_correlation_id(None)
    set_correlation_id("fine")
    assert caplog.records == []


@given(hostile_text(140) | st.from_regex(r"[A-Za-z0-9._:-]{1,130}\n?", fullmatch=True))
def test_valid_is_what_the_letter_by_letter_check_says(value: str) -> None:
    assert valid_correlation_id(value) is is_correlation_id(value)


def test_the_longest_id() -> None:
    assert valid_correlation_id("a" * MAX_CORRELATION_ID_LENGTH)
    assert not valid_correlation_id("a" * (MAX_CORRELATION_ID_LENGTH + 1))


# --- tasks, threads, executors -------------------------------------------------------------------


async def test_a_task_inherits_the_id_and_keeps_its_own_changes_to_itself() -> None:
    async def work(value: str) -> tuple[str | None, str | None]:
        inherited = get_correlation_id()
        set_correlation_id(value)
        await asyncio.sleep(0)
        return inherited, get_correlation_id()

    with correlation_scope("outer"):
        results = await asyncio.gather(*(work(f"task-{number}") for number in range(50)))
        assert results == [("outer", f"task-{number}") for number in range(50)]
        assert get_correlation_id() == "outer"


async def test_concurrent_scopes_do_not_mix() -> None:
    async def work(number: int) -> None:
        with in_message(f"flow-{number}", f"cause-{number}"):
            for _ in range(10):
                await asyncio.sleep(0)
                assert get_correlation_id() == f"flow-{number}"
                assert get_causation_id() == f"cause-{number}"
                with correlation_scope(f"inner-{number}"):
                    await asyncio.sleep(0)
                    assert get_correlation_id() == f"inner-{number}"

    await asyncio.gather(*(work(number) for number in range(100)))


async def test_to_thread_carries_it_by_itself() -> None:
    with correlation_scope("outer"):
        assert await asyncio.to_thread(get_correlation_id) == "outer"


def test_the_current_context_is_read_as_opentelemetry_says() -> None:
    assert propagation.read_context() is context.get_current()
    token = context.attach(baggage.set_baggage("tenant", "eu-1"))
    try:
        assert propagation.read_context() is context.get_current()
        assert baggage.get_baggage("tenant", propagation.read_context()) == "eu-1"
    finally:
        context.detach(token)


def test_of_another_runtime_of_contexts_its_own_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime(ContextVarsRuntimeContext):
        def get_current(self) -> context.Context:
            return baggage.set_baggage("from", "the runtime", super().get_current())

    monkeypatch.setattr(context, "_RUNTIME_CONTEXT", Runtime())
    read, enter, leave = propagation._context_access()
    assert baggage.get_baggage("from", read()) == "the runtime"
    token = enter(baggage.set_baggage("tenant", "eu-1"))
    assert baggage.get_baggage("tenant") == "eu-1"
    leave(token)
    assert baggage.get_baggage("tenant") is None
    assert baggage.get_baggage("from", read()) == "the runtime"


def test_a_context_is_entered_and_left_as_opentelemetry_does() -> None:
    before = context.get_current()
    inner = baggage.set_baggage("tenant", "eu-1")
    token = propagation.enter_context(inner)
    assert context.get_current() is inner
    propagation.leave_context(token)
    assert context.get_current() is before


def test_a_context_that_is_left_in_another_one_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    token = copy_context().run(propagation.enter_context, baggage.set_baggage("tenant", "eu-1"))
    propagation.leave_context(token)
    assert baggage.get_baggage("tenant") is None
    assert not caplog.records


def test_a_plain_thread_starts_without_a_flow() -> None:
    seen: list[str | None] = []
    with correlation_scope("outer"):
        thread = Thread(target=lambda: seen.append(get_correlation_id()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_carry_context_takes_the_flow_the_trace_and_the_baggage_into_a_thread() -> None:
    seen: list[object] = []

    def work() -> None:
        span = trace.get_current_span().get_span_context()
        seen.extend((get_correlation_id(), get_causation_id(), span.trace_id, baggage.get_baggage("a")))

    with current_trace(0xABC), in_message("flow", "cause"):
        token = context.attach(baggage.set_baggage("a", "1"))
        thread = Thread(target=carry_context(work))
        context.detach(token)
    thread.start()  # after the scope: what counts is where carry_context was called
    thread.join()
    assert seen == ["flow", "cause", 0xABC, "1"]


async def test_carry_context_takes_it_into_executors() -> None:
    with ThreadPoolExecutor(2) as pool:
        with correlation_scope("outer"):
            assert pool.submit(carry_context(get_correlation_id)).result() == "outer"
            assert list(pool.map(carry_context(lambda _: get_correlation_id()), range(8))) == ["outer"] * 8
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(pool, carry_context(get_correlation_id)) == "outer"
        assert pool.submit(get_correlation_id).result() is None


def test_carried_calls_run_at_once_and_do_not_see_each_others_changes() -> None:
    def work(number: int) -> tuple[str | None, str]:
        return get_correlation_id(), set_correlation_id(f"mine-{number}")

    with ThreadPoolExecutor(8) as pool, correlation_scope("outer"):
        results = list(pool.map(carry_context(work), range(200)))
        assert results == [("outer", f"mine-{number}") for number in range(200)]
        assert get_correlation_id() == "outer"


def test_a_carried_function_takes_arguments_raises_and_keeps_its_name() -> None:
    def add(a: int, *, b: int) -> int:
        """Sums."""
        return a + b

    assert carry_context(add)(1, b=2) == 3
    assert (carry_context(add).__name__, carry_context(add).__doc__) == ("add", "Sums.")
    assert carry_context(partial(add, 1))(b=4) == 5
    with pytest.raises(ZeroDivisionError):
        carry_context(lambda: 1 // 0)()


# --- ids -----------------------------------------------------------------------------------------

IDS = "[new_trace_id(), new_message_id(), format_traceparent(mint()), f'{child_of(mint()).span_id:x}']"


def run_python(program: str) -> list[list[str]]:
    prelude = f"""
        import json, os, random
        from quantum_bus.envelope import new_message_id
        from quantum_bus.propagation import child_of, format_traceparent, mint, new_trace_id
        def ids(): return {IDS}
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=20)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_fork_does_not_repeat_its_parents_ids() -> None:
    lists = run_python(
        """
        ids()
        read, write = os.pipe()
        children = []
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                os.write(write, (json.dumps(ids()) + "\\n").encode())
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        print(json.dumps(ids()))
        print(os.read(read, 65536).decode(), end="")
        """
    )
    assert len(lists) == 3
    for kind in zip(*lists, strict=True):
        assert len(set(kind)) == 3
    random_parts = {text.split("-", 3)[3] for text in (ids[1] for ids in lists)}
    assert len(random_parts) == 3, "a message id's random part must differ too, the time may be the same"


def test_a_users_seed_does_not_repeat_ids() -> None:
    lists = run_python(
        """
        for _ in range(3):
            random.seed(1)
            print(json.dumps(ids()))
        """
    )
    for kind in zip(*lists, strict=True):
        assert len(set(kind)) == 3


def test_ids_leave_a_users_seeded_numbers_alone() -> None:
    assert len(set(map(tuple, run_python(
        """
        for make in (list, ids, list):
            random.seed(1)
            make()
            print(json.dumps([random.random() for _ in range(3)]))
        """
    )))) == 1  # fmt: skip


def test_ids_do_not_repeat_across_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [made for many in pool.map(lambda _: [new_trace_id() for _ in range(500)], range(8)) for made in many]
    assert len(set(made)) == 4000


def test_ids_are_never_all_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlucky:
        def getrandbits(self, count: int) -> int:
            return 0

    monkeypatch.setattr(propagation, "_random", Unlucky())
    assert int(new_trace_id(), 16) == 1
    assert is_traceparent(format_traceparent(mint()))
    assert child_of(mint()).span_id == 1


def test_a_minted_context_is_in_the_trace_that_is_named_and_sampled() -> None:
    trace_id = new_trace_id()
    minted = mint(trace_id)
    assert f"{minted.trace_id:032x}" == trace_id
    assert minted.trace_flags == 1
    assert not minted.is_remote
    assert mint(sampled=False).trace_flags == 0


@pytest.mark.parametrize(
    "value", [None, "", "0" * 32, "A" * 32, "a" * 31, "a" * 33, str(UUID(int=7)), "order-7", "a\n"]
)
def test_what_is_no_trace_id_is_passed_over(value: str | None) -> None:
    minted = mint(value)
    assert is_traceparent(format_traceparent(minted))
    assert f"{minted.trace_id:032x}" != value


def test_a_child_keeps_trace_flags_and_state() -> None:
    parent = parse_context(f"00-{'a' * 32}-{'b' * 16}-02", "k=v")
    assert parent is not None
    child = child_of(parent)
    assert (child.trace_id, child.trace_flags) == (parent.trace_id, 2)
    assert child.trace_state == parent.trace_state
    assert child.span_id != parent.span_id


def test_a_derived_context_is_remote_and_sampled_as_told() -> None:
    assert derived_context("orders", "1-0").is_remote
    assert derived_context("orders", "1-0").trace_flags == 1
    assert derived_context("orders", "1-0", sampled=False).trace_flags == 0


@given(hostile_text(30), hostile_text(30))
def test_a_derived_context_is_always_valid_and_always_the_same(stream: str, entry_id: str) -> None:
    first, second = derived_context(stream, entry_id), derived_context(stream, entry_id)
    assert first == second
    assert is_traceparent(format_traceparent(first))


def test_derived_contexts_of_other_entries_differ() -> None:
    keys = [(stream, f"{ms}-{seq}") for stream in ("a", "b") for ms in range(20) for seq in range(20)]
    assert len({derived_context(*key).trace_id for key in keys}) == len(keys)
    assert len({derived_context(*key).span_id for key in keys}) == len(keys)
