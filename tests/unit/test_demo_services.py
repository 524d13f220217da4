from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from quantum_bus import EventBus, Retry, get_logger
from quantum_bus.demo import ai_engine, auto_executor, portfolio
from quantum_bus.demo.trading import EXECUTION_STREAM, INTENT_STREAM, Execution, Intent
from quantum_bus.testing import TestBus

INTENT = Intent("intent_7_1", "BTCUSDT", "BUY", 0.5, 90_000.0, 0.82)


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTUM_BUS_URL", "redis://127.0.0.1:1/0")  # TestBus stands in for it


def events(bus: TestBus) -> list[dict[str, Any]]:
    return [line for line in bus.logs if not line["event"].startswith("BUS_")]


def test_the_same_seed_makes_the_same_intents() -> None:
    first, again, other = (list(islice(ai_engine.think(seed), 20)) for seed in (7, 7, 8))
    assert first == again != other
    assert len({intent.intent_id for intent in first}) == 20
    assert all(0 < intent.confidence < 1 and intent.qty > 0 for intent in first)


async def test_ai_engine_begins_a_flow_with_each_intent() -> None:
    async with TestBus(service="ai_engine") as bus:
        for intent in islice(ai_engine.think(7), 3):
            await ai_engine.publish_intent(bus.bus, get_logger(), intent)
        entries = await bus.entries(INTENT_STREAM)
        created = events(bus)
    flows = [entry.fields["correlation_id"] for entry in entries]
    assert len(set(flows)) == 3
    assert [line["correlation_id"] for line in created] == flows
    assert [line["event"] for line in created] == ["INTENT_CREATED"] * 3
    for entry in entries:
        assert entry.fields["key"] in ai_engine.PRICES


async def test_auto_executor_answers_an_intent_with_an_execution_in_the_same_flow() -> None:
    async with TestBus(auto_executor.make_bus(get_logger())) as bus:
        await bus.publish(INTENT_STREAM, INTENT, correlation_id="a-1")
        await bus.drained()
        (entry,) = await bus.entries(EXECUTION_STREAM)
        lines = events(bus)
    assert entry.fields["correlation_id"] == "a-1"
    assert entry.fields["event"] == "ORDER_FILLED"
    assert [line["event"] for line in lines] == ["INTENT_RECEIVED", "ORDER_SUBMIT", "ORDER_RESPONSE"]
    assert {line["correlation_id"] for line in lines} == {"a-1"}
    assert [line.get("order_id") for line in lines] == [None, "order_7_1", "order_7_1"]
    assert lines[2]["latency_ms"] >= 5


async def test_an_exchange_in_trouble_leaves_one_order_without_an_answer_and_refuses_the_next() -> None:
    late, refused = (replace(INTENT, intent_id=f"intent_7_{number}") for number in (1, 2))
    bus_under_test = auto_executor.make_bus(get_logger(), trouble_every=1, retry=Retry(initial=0.01))
    async with TestBus(bus_under_test) as bus:
        await bus.publish(INTENT_STREAM, late)
        await bus.drained()
        await bus.publish(INTENT_STREAM, refused)
        await bus.drained()
        (letter,) = await bus.dead_letters(INTENT_STREAM)
        (filled,) = await bus.entries(EXECUTION_STREAM)
        lines = events(bus)
    assert '"order_7_1"' in filled.fields["data"], "asked again, it answered"
    assert letter.fields["dlq.reason"] == "rejected"
    assert [(line["event"], line["order_id"]) for line in lines if "order_id" in line] == [
        ("ORDER_SUBMIT", "order_7_1"),
        ("ORDER_SUBMIT", "order_7_1"),
        ("ORDER_RESPONSE", "order_7_1"),
        ("ORDER_SUBMIT", "order_7_2"),
        ("ORDER_RESPONSE", "order_7_2"),
        ("ORDER_ERROR", "order_7_2"),
    ]
    assert [line["status"] for line in lines if "status" in line] == ["FILLED", "REJECTED"]


async def test_portfolio_counts_an_execution_that_comes_twice_once() -> None:
    bought = Execution("order_1", "intent_1", "BTCUSDT", "BUY", 0.5, 90_000.0)
    sold = Execution("order_2", "intent_2", "BTCUSDT", "SELL", 0.2, 90_000.0)
    async with TestBus(portfolio.make_bus(get_logger(), concurrency=1)) as bus:
        for execution in (bought, bought, sold):
            await bus.publish(EXECUTION_STREAM, execution)
        await bus.drained()
        positions = [line["position"] for line in events(bus)]
    assert positions == [0.5, 0.5, 0.3]


def test_positions_remember_a_bounded_number_of_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "REMEMBERED_ORDERS", 10)
    positions = portfolio.Positions()
    for number in range(100):
        positions.apply(Execution(f"order_{number}", "", "BTCUSDT", "BUY", 1.0, 1.0))
    assert len(positions._counted) == 10
    assert positions.apply(Execution("order_99", "", "BTCUSDT", "BUY", 1.0, 1.0)) == 100


async def test_a_payload_that_is_no_intent_is_dead_lettered() -> None:
    async with TestBus(auto_executor.make_bus(get_logger())) as bus:
        await bus.publish(INTENT_STREAM, {"symbol": "BTCUSDT"})
        await bus.drained()
        (letter,) = await bus.dead_letters(INTENT_STREAM)
    assert letter.fields["dlq.reason"] == "invalid_payload"


def test_the_services_are_plain_buses() -> None:
    assert isinstance(auto_executor.make_bus(get_logger()), EventBus)
    assert isinstance(portfolio.make_bus(get_logger(), group="g", start="new"), EventBus)


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--intents", "-1"], ["--rate", "inf"]])
def test_ai_engine_refuses_a_pace_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ai_engine.main(arguments)
    assert ended.value.code == 2
    assert "--rate above 0" in capsys.readouterr().err


def test_auto_executor_refuses_trouble_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        auto_executor.main(["--trouble-every", "-1"])
    assert ended.value.code == 2
    assert "--trouble-every is 0 or more" in capsys.readouterr().err
