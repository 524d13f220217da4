"""Every question in a dashboard or a rule has an answer while the demo's services run, and the exchange is in trouble.

One stack for all of it. What only goes wrong elsewhere is made to go wrong, too: a consumer that died holding two
messages, one of which was deleted since, a log record that Loki does not take, and log files of which one is missing.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis as redis_py
import yaml

from observability.grafana.generate import ORDER_EVENTS
from quantum_bus.names import EVENT_LOG_FILE_CLOSED
from scripts.stack import (
    ROOT,
    SERVICES,
    Ports,
    Stack,
    StackError,
    alertmanager,
    collector,
    demo_services,
    exporter,
    prometheus,
    redis,
)
from tests.dashboards import Question, dashboards, questions
from tests.stack.alerting import FETCHING, LOKI_RULES, PROMETHEUS_RULES, quick_loki, rules_of
from tests.stack.asking import SECONDS, get_good, wait_until
from tests.stack.loki_reader import DAY_NS, HOUR_NS, Entry, LokiReader
from tests.stack.running import Running
from tests.unit.test_alert_rules import OF_PROGRAMS, metrics_of

INTENT = "quantum:stream:intent"
GROUP = "auto_executor"
LEFT_ORDER = "order_left_0"  # of the intent that the dead consumer left
LONG_AGO = 3_600_000  # ms


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole pipeline with the demo's services, every fifth order of which goes wrong."""
    ports = Ports.free()
    stack = Stack(tmp_path_factory.mktemp("live"), ports, f"redis://127.0.0.1:{ports.redis}/0")
    stack.make_folders()
    with ExitStack() as running:
        for program in (
            redis(stack), quick_loki(stack), collector(stack), alertmanager(stack), prometheus(stack, changes=FETCHING)
        ):  # fmt: skip
            running.enter_context(Running(program, stack.folder / f"{program.name}.log"))
        leave_two_messages_with_the_dead(stack.redis_url)
        for program in (exporter(stack, interval=1), *demo_services(stack, metrics_every=1, trouble_every=5)):
            running.enter_context(Running(program, stack.folder / f"{program.name}.log"))
        have_a_record_refused(stack)
        leave_a_gap_between_files(stack)
        yield stack


def leave_two_messages_with_the_dead(url: str) -> None:
    """A consumer of the executor's that read two messages long ago; the first of them was deleted since."""
    with redis_py.Redis.from_url(url, decode_responses=True) as client:
        wait_until(lambda: answers_ping(client), timeout=60, what="redis")
        payload = '{"intent_id":"intent_left_0","symbol":"BTCUSDT","side":"BUY","qty":1,"price":1,"confidence":1}'
        ids = [client.xadd(INTENT, {"data": payload}) for _ in range(2)]
        client.xgroup_create(INTENT, GROUP, id="0")
        client.xreadgroup(GROUP, "dead", {INTENT: ">"})
        client.xclaim(INTENT, GROUP, "dead", 0, ids, idle=LONG_AGO, justid=True)
        assert client.xdel(INTENT, ids[0]) == 1


def answers_ping(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis_py.ConnectionError:
        return False


def have_a_record_refused(stack: Stack) -> None:
    """By OTLP, with more metadata than Loki keeps of a line: it answers 400, and the collector gives up on it."""
    texts = {"service.name": "talker", "big": "x" * 100_000}
    record = {"timeUnixNano": str(time.time_ns()), "body": {"stringValue": "much"}}
    resource = {"attributes": [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()]}
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}
    httpx.post(f"{stack.otlp_url}/v1/logs", json=body, timeout=SECONDS).raise_for_status()


def leave_a_gap_between_files(stack: Stack) -> None:
    """What closes a service's first and third file; the second was deleted before anyone read it."""
    for lines_before in (0, 200):
        line = {"ts": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": "INFO", "service": "talker",
                "event": EVENT_LOG_FILE_CLOSED, "correlation_id": None, "msg": "Log file closed", "chain": "a",
                "lines": 100, "lines_before": lines_before, "lines_total": lines_before + 100}  # fmt: skip
        with (stack.logs / "talker.jsonl").open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


@pytest.fixture(scope="module")
def flow(live: Stack) -> Entry:
    """The last stage of one order that ai_engine thought of, all of whose lines have arrived."""
    found: list[Entry] = []

    def arrived() -> bool:
        ends = entries(live, f'{{event="POSITION_UPDATED"}} | order_id != "{LEFT_ORDER}"')
        found[:] = [end for end in ends if whole(end)]
        return bool(found)

    def whole(end: Entry) -> bool:
        lines = entries(live, f'{{service_name=~".+"}} | correlation_id="{end.labels["correlation_id"]}"')
        return {line.labels["service"] for line in lines} == set(SERVICES)

    wait_until(arrived, timeout=60, what="an order from its beginning to its end")
    return found[0]


def entries(stack: Stack, logql: str) -> list[Entry]:
    now = time.time_ns()
    return LokiReader(stack.loki_url).query(logql, start_ns=now - DAY_NS, end_ns=now + HOUR_NS, limit=500)


def of_prometheus(stack: Stack, query: str) -> list[Any]:
    result: list[Any] = get_good(f"{stack.prometheus_url}/api/v1/query", query=query).json()["data"]["result"]
    return result


def of_loki(stack: Stack, query: str) -> list[Any]:
    answer = get_good(f"{stack.loki_url}/loki/api/v1/query_range", query=query, since="1h", step="60", limit="100")
    result: list[Any] = answer.json()["data"]["result"]
    return result


def wait_for_answers(asked: set[str], ask: Callable[[str], list[Any]]) -> dict[str, list[Any]]:
    """The first answer to each of `asked`, once all have one."""
    answers: dict[str, list[Any]] = {}

    def all_answered() -> bool:
        for each in asked - answers.keys():
            if answer := ask(each):
                answers[each] = answer
        return answers.keys() == asked

    try:
        wait_until(all_answered, timeout=90, what="an answer to each question", interval=1)
    except StackError as error:
        raise AssertionError("no answer to\n" + "\n".join(sorted(asked - answers.keys()))) from error
    return answers


def chosen(question: Question, **values: str) -> str:
    """The query with what a dashboard has chosen when it is opened, or `values`."""
    current = {}
    for variable in dashboards()[question.dashboard].get("templating", {}).get("list", []):
        current[variable["name"]] = variable.get("allValue") or variable.get("current", {}).get("value", "")
    return question.alone.asked(**{**current, **values})


def test_every_question_of_a_dashboard_to_prometheus_has_an_answer(live: Stack) -> None:
    asked = {chosen(question) for question in questions() if question.datasource == "prometheus"}
    assert len(asked) > 25
    wait_for_answers(asked, lambda query: of_prometheus(live, query))


def test_what_is_shown_where_there_is_no_answer_is_0_and_only_while_the_program_is_reached(live: Stack) -> None:
    [question] = [each for each in questions() if each.panel == "Discarded by Loki, in 5 minutes"]
    never = question.expr.replace("loki_discarded_samples_total", "loki_that_never_happened_total")
    [shown] = wait_for_answers({never}, lambda query: of_prometheus(live, query))[never]
    assert (shown["value"][1], shown["metric"]["reason"]) == ("0", "none")
    assert of_prometheus(live, never.replace('job="loki"', 'job="nobody"')) == []


def test_every_question_of_a_dashboard_to_loki_has_an_answer(live: Stack, flow: Entry) -> None:
    to_loki = [question for question in questions() if question.datasource == "loki"]
    asked = {chosen(question) for question in to_loki}
    asked |= {chosen(question, correlation_id=flow.labels["correlation_id"]) for question in to_loki}
    assert len(asked) == 5, "four panels, one of which has the box"
    wait_for_answers(asked, lambda query: of_loki(live, query))


def test_every_event_of_an_order_in_a_dashboard_has_lines(live: Stack) -> None:
    asked = {f'sum(count_over_time({{event="{event}"}}[1h]))' for event in ORDER_EVENTS}
    wait_for_answers(asked, lambda query: of_loki(live, query))


def test_the_order_flow_of_a_correlation_id_is_its_lines_from_every_service_and_no_others(
    live: Stack, flow: Entry
) -> None:
    [question] = [each for each in questions() if each.panel == "Order flow"]
    correlation_id = flow.labels["correlation_id"]
    for typed in (correlation_id, correlation_id[:12]):
        found = entries(live, chosen(question, correlation_id=typed))
        assert {entry.labels["service"] for entry in found} == set(SERVICES)
        assert {entry.labels["correlation_id"] for entry in found} == {correlation_id}
        assert found[0].line.startswith("ai_engine INTENT_CREATED Intent created: ")
    every_line = entries(live, chosen(question, events=".+"))
    assert {"BUS_STARTED", "ORDER_SUBMIT"} <= {entry.labels["event"] for entry in every_line}


def test_the_services_to_choose_from_are_those_that_log(live: Stack, flow: Entry) -> None:
    [variable] = [each for each in dashboards()["p1b-log-aggregation"]["templating"]["list"] if each["type"] == "query"]
    assert variable["query"]["type"] == 1, "the values of a label"
    answer = get_good(f"{live.loki_url}/loki/api/v1/label/{variable['query']['label']}/values")
    assert set(SERVICES) <= set(answer.json()["data"])


def test_an_id_in_a_lines_details_leads_to_every_line_that_has_it(live: Stack, flow: Entry) -> None:
    provisioned = yaml.safe_load((ROOT / "observability/grafana/provisioning/datasources/quantum-bus.yaml").read_text())
    [source] = [each for each in provisioned["datasources"] if each["uid"] == "loki"]
    led = {}
    for field in source["jsonData"]["derivedFields"]:
        [label] = [name for name in flow.labels if re.search(field["matcherRegex"], name)]
        query = field["url"].replace("$$", "$").replace("${__value.raw}", flow.labels[label])
        found = entries(live, query)
        assert {entry.labels[label] for entry in found} == {flow.labels[label]}
        led[label] = {entry.labels["service"] for entry in found}
    assert led["correlation_id"] == led["trace_id"] == set(SERVICES)
    assert led["order_id"] == {"auto_executor", "portfolio"}


# --- rules -------------------------------------------------------------------------------------------


def selectors(expr: str) -> set[str]:
    """The series that a PromQL expression asks for, as it asks for them."""
    found = re.findall(r"\b(\w+)(\{[^}]*\})?", re.sub(r'"[^"]*"', lambda text: text[0].replace(" ", ""), expr))
    return {name + braces for name, braces in found if name in metrics_of(expr)}


def pipelines(expr: str) -> set[str]:
    """The log queries in a LogQL expression."""
    return set(re.findall(r"count_over_time\((\{[^[]+)\[", expr))


def test_every_question_in_a_rule_of_prometheus_has_an_answer(live: Stack) -> None:
    asked = {asked for rule in rules_of(PROMETHEUS_RULES).values() for asked in selectors(rule["expr"])}
    assert len(asked) > 20
    wait_for_answers(asked, lambda query: of_prometheus(live, query))


def test_every_question_in_a_rule_of_loki_has_an_answer(live: Stack) -> None:
    """Without an order_id on the demo's ORDER_SUBMIT, OrderSubmitWithoutResponse asked for lines that nobody wrote."""
    asked = {asked for rule in rules_of(LOKI_RULES).values() for asked in pipelines(rule["expr"])}
    assert len(asked) == 3
    wait_for_answers({f"sum(count_over_time({each}[1h]))" for each in asked}, lambda query: of_loki(live, query))


def test_every_series_of_a_program_in_a_rule_is_one_that_it_emits(live: Stack) -> None:
    def missing() -> set[str]:
        answer = get_good(f"{live.prometheus_url}/api/v1/label/__name__/values")
        return OF_PROGRAMS - set(answer.json()["data"])

    wait_until(lambda: not missing(), timeout=60, what=f"the series {OF_PROGRAMS}", interval=0.5)
