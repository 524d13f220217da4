"""Alerts on the live stack, with their waiting times cut short: see tests/stack/alerting.py for what is cut."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from scripts.notified import Mail
from scripts.stack import Program, Stack, collector, exporter, redis
from tests.stack.alerting import LOKI_RULES, Watch, quick_loki, quick_prometheus, rules_of
from tests.stack.asking import get_good, wait_until
from tests.stack.running import Running

MINUTE = 60.0


def line(service: str, event: str, *, ago: float = 0.0, level: str = "INFO", **fields: object) -> str:
    ts = datetime.fromtimestamp(time.time() - ago, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    known = {"ts": ts, "level": level, "service": service, "event": event, "correlation_id": "c", "msg": "said"}
    return json.dumps(known | fields) + "\n"


def write(stack: Stack, service: str, *lines: str) -> None:
    with (stack.logs / f"{service}.jsonl").open("a") as file:
        file.writelines(lines)


@contextmanager
def logging(stack: Stack, service: str, *, errors_a_second: int) -> Iterator[None]:
    """A service that logs errors at this pace."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(1 / errors_a_second):
            write(stack, service, line(service, "ORDER_ERROR", level="ERROR"))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_twenty_errors_a_second_are_told_by_webhook_and_mail_and_so_is_their_end(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    def mails(status: str) -> list[Mail]:
        return [
            mail for mail in watch.notified.mails if mail.message["Subject"].startswith(f"[{status}] HighErrorRate")
        ]

    start(collector(stack))
    start(quick_prometheus(stack))
    with logging(stack, "auto_executor", errors_a_second=20), logging(stack, "portfolio", errors_a_second=5):
        told = watch.wait_posted("HighErrorRate", "firing")
        assert told["labels"]["service"] == "auto_executor"
        assert told["annotations"]["runbook_url"].endswith("/runbooks/HighErrorRate.md")
        watch.wait(lambda: mails("FIRING"), "a mail")
    # The link opens the runbook.
    path = told["annotations"]["runbook_url"].partition("127.0.0.1:9090")[2]
    assert "# HighErrorRate" in get_good(stack.prometheus_url + path).text
    watch.wait_posted("HighErrorRate", "resolved")
    watch.wait(lambda: mails("RESOLVED"), "a mail that it is over")
    assert {alert["labels"]["service"] for alert in watch.posted("HighErrorRate", "firing")} == {"auto_executor"}
    [mail, *_] = mails("FIRING")
    assert mail.login == ("quantum-bus", "a secret of a file")
    assert mail.message["To"] == "on-call@localhost"
    assert told["annotations"]["runbook_url"] in mail.text
    assert told["annotations"]["description"] in mail.text


def ask(stack: Stack, expr: str) -> list[float]:
    """The values that the rule's expression has now, asked as the ruler asks."""
    answer = get_good(f"{stack.loki_url}/loki/api/v1/query", query=expr)
    return [float(sample["value"][1]) for sample in answer.json()["data"]["result"]]


def submitted(number: int, minutes_ago: float) -> str:
    return line("auto_executor", "ORDER_SUBMIT", ago=minutes_ago * MINUTE, order_id=f"order_{number}")


def test_six_orders_without_a_response_are_told_and_answered_or_young_ones_are_not(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    start(quick_loki(stack))
    start(collector(stack))
    expr = rules_of(LOKI_RULES)["OrderSubmitWithoutResponse"]["expr"]
    without_threshold = expr.rpartition(" > ")[0]
    answered = [submitted(number, 10) for number in range(100, 120)]
    answered += [line("portfolio", "ORDER_RESPONSE", ago=9 * MINUTE, order_id=f"order_{n}") for n in range(100, 110)]
    # Ten of them are answered late, by when they would have counted.
    answered += [line("portfolio", "ORDER_RESPONSE", order_id=f"order_{number}") for number in range(110, 120)]
    young = [submitted(number, 1) for number in range(200, 220)]
    old = [submitted(number, 36) for number in range(300, 320)]
    nameless = [line("auto_executor", "ORDER_SUBMIT", ago=10 * MINUTE) for _ in range(20)]
    write(stack, "auto_executor", *old, *answered, *nameless, *(submitted(n, 10) for n in range(5)), *young)
    wait_until(lambda: ask(stack, without_threshold) == [5.0], timeout=60, what="five orders without a response")
    assert ask(stack, expr) == []
    assert not watch.posted("OrderSubmitWithoutResponse", "firing")

    write(stack, "auto_executor", submitted(5, 10))
    told = watch.wait_posted("OrderSubmitWithoutResponse", "firing")
    assert told["annotations"]["description"].startswith("6 orders")
    write(stack, "portfolio", line("portfolio", "ORDER_RESPONSE", order_id="order_5"))
    watch.wait_posted("OrderSubmitWithoutResponse", "resolved")


def failures(stack: Stack) -> float:
    """How many of the ruler's evaluations have failed."""
    text = get_good(f"{stack.loki_url}/metrics").text
    return sum(
        float(row.rpartition(" ")[2])
        for row in text.splitlines()
        if row.startswith("loki_prometheus_rule_evaluation_failures_total")
    )


def test_five_thousand_open_orders_are_still_counted(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    """With Loki's default of 500 series to a query the rule failed, and nothing was told."""
    start(quick_loki(stack))
    start(collector(stack))
    write(stack, "auto_executor", *(submitted(number, 10) for number in range(5_000)))
    watch.wait(
        lambda: any(alert["annotations"]["description"].startswith("5000 orders")
                    for alert in watch.posted("OrderSubmitWithoutResponse", "firing"))
        or ask(stack, rules_of(LOKI_RULES)["OrderSubmitWithoutResponse"]["expr"]) == [5000.0],
        "5,000 orders counted",
    )  # fmt: skip
    watch.wait_posted("OrderSubmitWithoutResponse", "firing")
    assert failures(stack) == 0


def test_a_service_that_logged_an_hour_ago_and_no_more_is_told_of(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    start(quick_loki(stack))
    start(collector(stack))
    write(stack, "portfolio", line("portfolio", "LOG", ago=75 * MINUTE), line("portfolio", "LOG"))
    write(stack, "ai_engine", line("ai_engine", "LOG", ago=100 * MINUTE))
    write(stack, "auto_executor", line("auto_executor", "LOG", ago=75 * MINUTE))
    told = watch.wait_posted("ServiceLogsMissing", "firing")
    assert told["labels"]["service"] == "auto_executor"
    write(stack, "auto_executor", line("auto_executor", "LOG"))
    watch.wait_posted("ServiceLogsMissing", "resolved")
    assert {alert["labels"]["service"] for alert in watch.posted("ServiceLogsMissing", "firing")} == {"auto_executor"}


def test_a_queue_on_disk_that_fills_while_loki_is_away_is_told_of(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    """The queue is made small; its size and its capacity are both in bytes."""
    program = collector(stack)
    capacity = 4_000_000
    start(replace(program, env={**program.env, "QUANTUM_QUEUE_BYTES": str(capacity)}))
    start(quick_prometheus(stack))
    write(stack, "auto_executor", *(line("auto_executor", "LOG", text="x" * 1000) for _ in range(1_000)))
    watch.wait(lambda: 0.2 < queued(stack) / capacity < 0.8, "a quarter of the queue used")
    assert "LogQueueNearlyFull" not in watch.firing()
    write(stack, "auto_executor", *(line("auto_executor", "LOG", text="x" * 1000) for _ in range(5_000)))
    told = watch.wait_posted("LogQueueNearlyFull", "firing")
    assert re.match(r"(8|9)\d(\.\d+)?% |100% ", told["annotations"]["description"])
    start(quick_loki(stack))
    watch.wait_posted("LogQueueNearlyFull", "resolved")


def queued(stack: Stack) -> float:
    """What the collector's queue to Loki holds."""
    text = get_good(f"http://127.0.0.1:{stack.ports.self_metrics}/metrics").text
    [size] = re.findall(
        r'^otelcol_exporter_queue_size\{[^}]*exporter="otlp_http/loki"[^}]*\} (\S+)$', text, re.MULTILINE
    )
    return float(size)


INFRASTRUCTURE = {"RedisConnectionLoss", "LokiDown", "CollectorDown", "ExporterDown", "AlertmanagerDown"}


def test_a_killed_redis_loki_or_collector_is_told_of_and_hides_what_follows_from_it(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    killed = {"RedisConnectionLoss": start(redis(stack))}
    killed["LokiDown"] = start(quick_loki(stack))
    killed["CollectorDown"] = start(collector(stack))
    start(exporter(stack, interval=0.5))
    start(quick_prometheus(stack))
    watch.wait(lambda: "Watchdog" in watch.firing() and not INFRASTRUCTURE & watch.firing().keys(), "all well")
    assert not watch.suppressed()
    # What would follow: here the alerts are posted, their own rules not being what is tested.
    follows = {
        "RedisConnectionLoss": {"ConsumerLagHigh", "HighErrorRate", "NoOrdersSubmitted"},
        "LokiDown": {"ServiceLogsMissing"},
        "CollectorDown": {"ServiceLogsMissing", "NoOrdersSubmitted"},
    }
    for cause, hidden in follows.items():
        watch.notified.posted.clear()  # Prometheus may have begun before what it fetches from
        killed[cause].kill()
        told = watch.wait_posted(cause, "firing")
        assert told["labels"]["severity"] == "critical"
        watch.post(*({"alertname": name, "severity": "warning", "of": cause} for name in sorted(hidden)))
        watch.post({"alertname": "DeadLettersArriving", "severity": "warning", "of": cause})
        watch.wait(lambda hidden=hidden: hidden <= watch.suppressed(), f"{cause} hides what follows")  # type: ignore[misc]
        watch.wait(
            lambda cause=cause: any(  # type: ignore[misc]
                alert["labels"]["of"] == cause for alert in watch.posted("DeadLettersArriving", "firing")
            ),
            f"what does not follow from {cause} is told",
        )
        for name in hidden:
            assert not [alert for alert in watch.posted(name, "firing") if alert["labels"]["of"] == cause], name
        killed[cause].start()
        watch.wait_posted(cause, "resolved")


def test_of_one_service_the_critical_alert_hides_the_warning_and_of_none_it_hides_nothing(watch: Watch) -> None:
    """Without a service named in the inhibition, LokiDown hid every warning that names no service either."""
    watch.post(
        {"alertname": "HighErrorRate", "severity": "critical", "service": "auto_executor"},
        {"alertname": "ContainerRestartLoop", "severity": "warning", "service": "auto_executor"},
        {"alertname": "ContainerRestartLoop", "severity": "warning", "service": "portfolio"},
        {"alertname": "LokiDown", "severity": "critical"},
        {"alertname": "ConsumerLagHigh", "severity": "warning"},
    )
    watch.wait_posted("ConsumerLagHigh", "firing")
    watch.wait(lambda: watch.posted("ContainerRestartLoop", "firing"), "the other service's restarts told")
    restarts = watch.posted("ContainerRestartLoop", "firing")
    assert {alert["labels"]["service"] for alert in restarts} == {"portfolio"}
    assert watch.suppressed() == {"ContainerRestartLoop"}


def test_warnings_are_not_mailed_and_the_watchdog_has_a_receiver_of_its_own(
    stack: Stack, start: Callable[[Program], Running], watch: Watch
) -> None:
    start(quick_prometheus(stack))
    watch.wait(lambda: any(path == "/watchdog" for path, _ in watch.notified.posted), "the watchdog")
    watch.post({"alertname": "ConsumerLagHigh", "severity": "warning"}, {"alertname": "Odd", "severity": "critical"})
    watch.wait_posted("ConsumerLagHigh", "firing")
    watch.wait(
        lambda: any("Odd" in mail.message["Subject"] for mail in watch.notified.mails), "the critical one's mail"
    )
    assert not [mail for mail in watch.notified.mails if "ConsumerLagHigh" in mail.text]
    assert not watch.posted("Watchdog", "firing")
