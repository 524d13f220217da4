"""Every vector in tests/vectors holds for this implementation."""

import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from quantum_bus import envelope, propagation
from quantum_bus.envelope import Entry, Event
from tests.unit.handlers import in_message

VECTORS = Path(__file__).parents[1] / "vectors"
Case = dict[str, Any]


def as_bytes(text: str | dict[str, str]) -> bytes:
    return text.encode() if isinstance(text, str) else b64decode(text["base64"], validate=True)


def as_flat(fields: list[list[Any]]) -> list[bytes]:
    return [as_bytes(item) for pair in fields for item in pair]


def run_encode(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "timestamp", lambda: case["ts"])
    event = dict(case["event"])
    event["headers"] = dict(event.pop("headers", ()))
    given, flow = case["context"], case["flow"]
    state = TraceState([tuple(member.split("=")) for member in given["tracestate"].split(",") if member])
    context = SpanContext(
        int(given["trace_id"], 16), int(given["span_id"], 16), is_remote=False,
        trace_flags=TraceFlags(given["flags"]), trace_state=state,
    )  # fmt: skip
    with in_message(flow["correlation_id"], flow["causation_id"]):
        outgoing = envelope.prepare(Event(**event), max_payload_bytes=1_000_000)
    assert outgoing.correlation_id is not None
    fields = envelope.encode(
        outgoing,
        correlation_id=outgoing.correlation_id,
        carried=envelope.carried(context, case["baggage"]),
        service=case["service"],
    )
    assert [f.encode() if isinstance(f, str) else f for f in fields] == as_flat(case["fields"])


def run_decode(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = envelope.decode(Entry(case["stream"], case["id"], as_flat(case["fields"])))
    found = {name: getattr(incoming, name) for name in case["message"] if hasattr(incoming, name)}
    found["headers"], found["extra"] = dict(incoming.headers), dict(incoming.extra)
    found["traceparent"] = propagation.format_traceparent(incoming.context)
    found["tracestate"] = incoming.context.trace_state.to_header()
    found["baggage"] = propagation.baggage_header(incoming.baggage)
    assert found == case["message"]
    assert bool(incoming.detail) == bool(incoming.reason)
    assert (incoming.stream, incoming.id) == (case["stream"], case["id"])


def run_derive(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    context = propagation.derived_context(case["stream"], case["id"])
    assert f"{context.trace_id:032x}" == case["trace_id"]
    assert f"{context.span_id:016x}" == case["span_id"]
    incoming = envelope.decode(Entry(case["stream"], case["id"], [b"data", b"{}"]))
    assert incoming.context == context
    assert incoming.correlation_id == case["correlation_id"]


def run_trace_context(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    context = propagation.parse_context(case["traceparent"] or None, case["tracestate"] or None)
    found = context and {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "flags": int(context.trace_flags),
        "tracestate": context.trace_state.to_header(),
    }
    assert found == case["context"]


def run_baggage(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    context = propagation.with_baggage(case["header"])
    assert dict(baggage.get_all(context)) == case["entries"]
    assert propagation.baggage_header(context) == case["sent_on"]


def run_correlation_id(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert propagation.valid_correlation_id(case["value"]) is case["valid"]


RUNNERS: dict[str, Callable[[Case, pytest.MonkeyPatch], None]] = {
    "encode": run_encode,
    "decode": run_decode,
    "derive": run_derive,
    "trace_context": run_trace_context,
    "baggage": run_baggage,
    "correlation_id": run_correlation_id,
}


def vectors() -> list[Any]:
    return [
        pytest.param(content.get("kind"), case, id=f"{path.stem}-{case.get('name', number)}")
        for path in sorted(VECTORS.glob("*.json"))
        for content in [json.loads(path.read_text(encoding="utf-8"))]
        for number, case in enumerate(content["cases"])
    ]


@pytest.mark.timeout(10, method="signal")  # a regular expression at work is stopped by a signal, not by a thread
@pytest.mark.parametrize(("kind", "case"), vectors())
def test_vector(kind: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind in RUNNERS, "a kind of vector that nothing here runs"
    RUNNERS[kind](case, monkeypatch)


def test_there_are_vectors_of_every_kind() -> None:
    files = [json.loads(path.read_text(encoding="utf-8")) for path in VECTORS.glob("*.json")]
    assert {file["kind"] for file in files} == set(RUNNERS)
    assert all(file["cases"] for file in files)


def test_names_are_unique_and_every_file_is_read() -> None:
    for path in VECTORS.iterdir():
        if path.name != "README.md":
            assert path.suffix == ".json", f"{path.name} would not be run"
            listed = [case["name"] for case in json.loads(path.read_text(encoding="utf-8"))["cases"]]
            assert len(listed) == len(set(listed)), path.name


def test_the_readme_explains_every_kind() -> None:
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert {kind for kind in RUNNERS if f"| `{kind}` |" in readme} == set(RUNNERS)
