"""Prometheus, Loki's ruler and Alertmanager, made quick: the committed rules with their waiting times cut short.

What is cut, so that a test takes seconds: how often is fetched and evaluated (1 s), every `for` (2 s), the window of
HighErrorRate's rate, and how long Alertmanager collects what belongs together. Thresholds, expressions, routes,
inhibitions and receivers are the committed ones; that the uncut times are right, observability/prometheus/tests shows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from scripts.notified import Notified
from scripts.stack import ROOT, Program, Stack, alertmanager, loki, prometheus
from tests.stack.asking import SECONDS, get_good, wait_until

PROMETHEUS_RULES = ROOT / "observability/prometheus/rules/p1b_alerts.yml"
LOKI_RULES = ROOT / "observability/loki/rules/fake/p1b_alerts.yml"

FETCHING = {"scrape_interval: 15s": "scrape_interval: 1s", "scrape_timeout: 10s": "scrape_timeout: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s"}  # fmt: skip
COLLECTING = {f"{name}: {long}": f"{name}: 1s" for name, long in (
    ("group_wait", "30s"), ("group_wait", "10s"), ("group_interval", "5m"), ("group_interval", "1m"))}  # fmt: skip


def rules_of(file: Path) -> dict[str, dict[str, Any]]:
    """The committed rules by the names of their alerts."""
    rules = [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def quick_rules(source: Path, target: Path) -> Path:
    """A copy of a rule file with its times cut; the folder it is in."""
    text = re.sub(r"\bfor: \w+", "for: 2s", source.read_text())
    text = re.sub(r"\binterval: \w+", "interval: 1s", text).replace('CRITICAL"}[1m]', 'CRITICAL"}[10s]')
    target.mkdir(parents=True)
    (target / source.name).write_text(text)
    return target


def quick_prometheus(stack: Stack) -> Program:
    rules = quick_rules(PROMETHEUS_RULES, stack.folder / "quick" / "prometheus")
    # A value that is fetched too late is none until the next, and what Redis's loss hides would be told meanwhile.
    file = rules / PROMETHEUS_RULES.name
    text, rule = file.read_text(), "- alert: RedisConnectionLoss\n"
    assert text.count(rule) == 1
    file.write_text(text.replace(rule, f"{rule}        keep_firing_for: 10s\n"))
    return prometheus(stack, rules=rules, changes=FETCHING)


def quick_loki(stack: Stack) -> Program:
    quick_rules(LOKI_RULES, stack.folder / "quick" / "loki" / "fake")
    return loki(stack, rules=stack.folder / "quick" / "loki")


def quick_alertmanager(stack: Stack) -> Program:
    (stack.secrets / "smtp_password").write_text("a secret of a file")
    return alertmanager(stack, changes=COLLECTING)


@dataclass(frozen=True, slots=True)
class Watch:
    """What Prometheus and Alertmanager say, and what was sent."""

    stack: Stack
    notified: Notified

    def firing(self) -> dict[str, dict[str, Any]]:
        """Prometheus's firing alerts by name; of several the last."""
        alerts = get_good(f"{self.stack.prometheus_url}/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def suppressed(self) -> set[str]:
        """What Alertmanager has and does not tell of, because of an inhibition."""
        alerts = get_good(f"{self.stack.alertmanager_url}/api/v2/alerts").json()
        return {alert["labels"]["alertname"] for alert in alerts if alert["status"]["inhibitedBy"]}

    def posted(self, name: str, status: str) -> list[dict[str, Any]]:
        """The alerts of this name and status that came by webhook."""
        return [
            alert
            for path, body in self.notified.posted
            if path == "/alerts"
            for alert in body["alerts"]
            if (alert["labels"]["alertname"], alert["status"]) == (name, status)
        ]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        wait_until(lambda: bool(condition()), timeout=90, what=what, interval=0.2)

    def wait_posted(self, name: str, status: str) -> dict[str, Any]:
        self.wait(lambda: self.posted(name, status), f"{name} {status}, by webhook")
        return self.posted(name, status)[-1]

    def post(self, *labels: Mapping[str, str]) -> None:
        """Has alerts fire that no rule here makes."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        alerts = [{"labels": dict(each), "startsAt": now} for each in labels]
        answer = httpx.post(f"{self.stack.alertmanager_url}/api/v2/alerts", json=alerts, timeout=SECONDS)
        answer.raise_for_status()
