"""What the answers that `log_status.sh` has gathered mean: ten verdicts, each PASS or FAIL with its reason.

Only the standard library, and Python from 3.9 on: it runs on whatever server it is brought to.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence  # noqa: UP035  Python 3.9 has no other way to say it at run time

PASS, FAIL = "PASS", "FAIL"
EXECUTOR = "auto_executor"
LOKI_EXPORTER = "otlp_http/loki"
FIRST_KEYS = ("ts", "level", "service", "event", "correlation_id", "msg")
COLOURS = {PASS: "\033[32m", FAIL: "\033[31m"}
WHAT = {
    "loki_ready": "Loki is up and ready",
    "collector_running": "the collector is running",
    "collector_to_loki": "the collector's lines get to Loki",
    "grafana_datasource": "Grafana has Loki as a data source",
    "executor_json": f"{EXECUTOR} logs JSON",
    "correlation_id": "lines have a correlation_id",
    "loki_ingesting": "Loki has lines of every service",
    "prometheus_rules": "Prometheus has the rules",
    "alertmanager_critical": "critical alerts go to webhook and e-mail",
    "runbooks": "every runbook that a rule names is there",
}
NUMBERS = {name: number for number, name in enumerate(WHAT, 1)}


class Verdict(NamedTuple):
    """Whether a check holds, and why; `after` are the checks that this one's failure may follow from."""

    holds: bool
    reason: str
    after: Sequence[str] = ()


class Answer(NamedTuple):
    """What was got from an address: the body, or what went wrong."""

    body: str
    fault: str | None

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Gathered(NamedTuple):
    """The folder with the answers, and the environment that says what was asked."""

    folder: Path
    env: Mapping[str, str]

    def answer(self, name: str) -> Answer:
        """What came of a request; a status that is no success is a fault, with the first of what was said."""

        def text(kind: str) -> str:
            path = self.folder / f"{name}.{kind}"
            return path.read_text(errors="replace") if path.exists() else ""

        status, body = text("status").strip(), text("body")
        if status in ("", "000"):
            said = re.sub(r"^curl: \(\d+\) ", "", text("error").strip().partition("\n")[0])
            return Answer("", said or "no answer")
        if not status.startswith("2"):
            return Answer(body, f"HTTP {status}: {shortened(body) or 'no reason given'}")
        return Answer(body, None)

    def url(self, name: str) -> str:
        """An address that was asked, without a password in it."""
        return re.sub(r"//[^/@]*@", "//***@", self.env[name])

    @property
    def services(self) -> list[str]:
        return self.env["QUANTUM_SERVICES"].split()

    @property
    def window(self) -> int:
        return int(self.env["QUANTUM_STATUS_WINDOW"])


class Rule(NamedTuple):
    group: str
    alert: str
    severity: str
    runbook: str | None


def shortened(text: str, most: int = 160) -> str:
    line = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


# --- the checks ------------------------------------------------------------------------------------------------------


def loki_ready(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_LOKI_URL"), gathered.answer("loki_ready")
    return Verdict(answer.fault is None, url if answer.fault is None else f"{url}/ready: {answer.fault}")


def collector_running(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_COLLECTOR_HEALTH_URL"), gathered.answer("collector_health")
    return Verdict(answer.fault is None, url if answer.fault is None else f"{url}: {answer.fault}")


def counters(metrics: str) -> dict[str, float]:
    """Of the exporter to Loki, each of its counters without prefix and suffix."""
    found: dict[str, float] = {}
    pattern = r"^otelcol_exporter_(\w+?)(?:_log_records)?(?:_total)?\{([^}]*)\} (\S+)"
    for name, labels, value in re.findall(pattern, metrics, re.MULTILINE):
        if f'exporter="{LOKI_EXPORTER}"' in labels and name in ("sent", "send_failed", "queue_size"):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def collector_to_loki(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_COLLECTOR_METRICS_URL"), gathered.answer("collector_metrics")
    if answer.fault is not None:
        return Verdict(False, f"{url}: {answer.fault}", ("collector_running",))
    again = gathered.answer("collector_metrics_again")
    if again.fault is not None:
        return Verdict(False, f"{url}, asked again: {again.fault}", ("collector_running",))
    before, after = counters(answer.body), counters(again.body)
    if not after:
        return Verdict(False, f"{url} has no counters of the exporter {LOKI_EXPORTER}")
    sent, failed, waiting = (int(after.get(name, 0)) for name in ("sent", "send_failed", "queue_size"))
    told = f"{sent} lines sent, {failed} failed, {waiting} bytes wait"
    if failed > before.get("send_failed", 0):
        return Verdict(False, f"lines fail right now: {told}", ("loki_ready",))
    if not sent and failed:
        return Verdict(False, f"Loki has taken none: {told}", ("loki_ready",))
    if waiting and sent == before.get("sent", 0) and (before.get("queue_size") or not sent):
        return Verdict(False, f"what waits is not taken: {told}; is its QUANTUM_LOKI_URL right?", ("loki_ready",))
    if not sent:
        return Verdict(False, f"there was nothing to send yet: {told}")
    return Verdict(True, told)


def grafana_datasource(gathered: Gathered) -> Verdict:
    url = gathered.url("QUANTUM_GRAFANA_URL")
    health, sources = gathered.answer("grafana_health"), gathered.answer("grafana_datasources")
    if health.fault is not None:
        return Verdict(False, f"{url}/api/health: {health.fault}")
    state = health.json()
    if not isinstance(state, dict) or state.get("database") != "ok":
        return Verdict(False, f"{url}/api/health: its database is not ok: {shortened(health.body)}")
    if sources.fault is not None:
        refused = re.match("HTTP 40[13]", sources.fault)
        advice = "; give QUANTUM_GRAFANA_TOKEN_FILE or QUANTUM_GRAFANA_LOGIN_FILE, see --help" if refused else ""
        return Verdict(False, f"{url}/api/datasources: {sources.fault}{advice}")
    found = sources.json()
    if not isinstance(found, list):
        return Verdict(False, f"{url}/api/datasources: no list of data sources: {shortened(sources.body)}")
    known = [source for source in found if isinstance(source, dict)]
    loki = [source for source in known if source.get("type") == "loki" and source.get("url")]
    if not loki:
        names = sorted(f"{source.get('name')} ({source.get('type')})" for source in known)
        return Verdict(
            False, f"{url} has no data source of type loki with an address; it has {listed(names) or 'none'}"
        )
    shown = re.sub(r"//[^/@]*@", "//***@", str(loki[0]["url"]))
    return Verdict(True, f"{loki[0].get('name')} at {shown}")


class Lines(NamedTuple):
    """A service's newest lines, the oldest first, and where they are from; or why there are none."""

    lines: list[str]
    source: str
    fault: str | None = None
    after: Sequence[str] = ()

    def fresh(self, window: int) -> list[dict[str, Any]]:
        """Those that are JSON and were written within the window."""
        since = dt.datetime.now(dt.timezone.utc).timestamp() - window  # noqa: UP017  Python 3.9
        parsed = (json_line(line) for line in self.lines)
        return [line for line in parsed if line is not None and (written_at(line) or 0.0) >= since]


def lines_of(gathered: Gathered, service: str) -> Lines:
    file = gathered.folder / f"lines_{service}.file"
    path = f"{gathered.env['QUANTUM_LOG_DIR']}/{service}.jsonl"
    if file.exists():
        lines = [line for line in file.read_text(errors="replace").split("\n") if line.strip()]
        return Lines(lines, path, None if lines else f"{path} is empty")
    url, answer = gathered.url("QUANTUM_LOKI_URL"), gathered.answer(f"lines_{service}")
    if answer.fault is not None:
        return Lines([], url, f"there is no {path} to read, and {url}: {answer.fault}", ("loki_ready",))
    found = answer.json()
    try:
        streams = found["data"]["result"]
        entries = sorted((int(value[0]), str(value[1])) for stream in streams for value in stream["values"])
    except (TypeError, KeyError, ValueError, IndexError):
        return Lines([], url, f"{url} answers what is no lines: {shortened(answer.body)}", ("loki_ready",))
    if not entries:
        return Lines([], url, f"there is no {path} to read, and Loki has no lines of {service}", ("loki_ingesting",))
    return Lines([line for _, line in entries], url)


def json_line(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def written_at(line: Mapping[str, Any]) -> float | None:
    """When, in seconds since 1970; None where it does not say."""
    try:
        return dt.datetime.fromisoformat(re.sub("Z$", "+00:00", str(line["ts"]))).timestamp()  # 3.9 knows no Z
    except (KeyError, ValueError):
        return None


def executor_json(gathered: Gathered) -> Verdict:
    found = lines_of(gathered, EXECUTOR)
    if found.fault is not None:
        return Verdict(False, found.fault, found.after)
    newest = json_line(found.lines[-1])
    if newest is None:
        return Verdict(False, f"{found.source}: the newest line is no JSON: {shortened(found.lines[-1])}")
    missing = [key for key in FIRST_KEYS if key not in newest and key != "correlation_id"]
    if missing:
        return Verdict(False, f"{found.source}: the newest line has no {listed(missing)}")
    if newest["service"] != EXECUTOR:
        return Verdict(False, f"{found.source}: the newest line is of {shortened(str(newest['service']))}")
    if not found.fresh(gathered.window):
        return Verdict(False, f"{found.source}: nothing since {newest['ts']}")
    return Verdict(True, f"{found.source}: {newest['event']} at {newest['ts']}")


def correlation_id(gathered: Gathered) -> Verdict:
    of = {service: lines_of(gathered, service) for service in gathered.services}
    lines = {service: found.fresh(gathered.window) for service, found in of.items()}
    every = [line for those in lines.values() for line in those]
    if not every:
        faults = [found for found in of.values() if found.fault is not None]
        reason = faults[0].fault if faults else f"no JSON line was written in the last {gathered.window} s"
        return Verdict(False, str(reason), faults[0].after if faults else ())
    for service, those in lines.items():
        without = sum("correlation_id" not in line for line in those)
        if without:
            return Verdict(False, f"{without} of {len(those)} lines of {service} have no correlation_id")
    within = sum(bool(line["correlation_id"]) for line in every)
    if not within:
        return Verdict(False, f"none of {len(every)} lines belongs to a flow: each has the correlation_id null")
    return Verdict(True, f"in all of {len(every)} lines, {within} of them within a flow")


def loki_ingesting(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_LOKI_URL"), gathered.answer("loki_counts")
    if answer.fault is not None:
        return Verdict(False, f"{url}: {answer.fault}", ("loki_ready",))
    try:
        result = answer.json()["data"]["result"]
        counts = {sample["metric"]["service"]: int(float(sample["value"][1])) for sample in result}
    except (TypeError, KeyError, ValueError, IndexError):
        return Verdict(False, f"{url} answers what is no count: {shortened(answer.body)}", ("loki_ready",))
    silent = [service for service in gathered.services if not counts.get(service)]
    if silent:
        reason = f"no lines of {listed(silent)} in the last {gathered.window} s"
        return Verdict(False, reason, ("collector_running", "collector_to_loki", "executor_json"))
    return Verdict(True, ", ".join(f"{service} {counts[service]}" for service in gathered.services))


def rules_in(folder: Path) -> list[Rule]:
    """The alerts of a folder's rule files. They are canonically formatted, so that no YAML parser is needed."""
    found = []
    for file in sorted(folder.rglob("*.yml")):
        text = file.read_text()
        for group, body in re.findall(r"^  - name: (\S+)\n(.*?)(?=^  - name: |\Z)", text, re.MULTILINE | re.DOTALL):
            for alert, rule in re.findall(
                r"^      - alert: (\S+)\n(.*?)(?=^      - |\Z)", body, re.MULTILINE | re.DOTALL
            ):
                severity = re.search(r"\bseverity: (\w+)", rule)
                runbook = re.search(r"^ +runbook_url: (\S+)", rule, re.MULTILINE)
                found.append(Rule(group, alert, severity[1] if severity else "", runbook[1] if runbook else None))
    return found


def committed(gathered: Gathered, *variables: str) -> list[Rule]:
    return [rule for variable in variables for rule in rules_in(Path(gathered.env[variable]))]


def prometheus_rules(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_PROMETHEUS_URL"), gathered.answer("prometheus_rules")
    wanted = {(rule.group, rule.alert) for rule in committed(gathered, "QUANTUM_PROMETHEUS_RULES")}
    if not wanted:
        return Verdict(False, f"there are no rules in {gathered.env['QUANTUM_PROMETHEUS_RULES']} to compare with")
    if answer.fault is not None:
        return Verdict(False, f"{url}: {answer.fault}")
    try:
        rules = [(group["name"], rule) for group in answer.json()["data"]["groups"] for rule in group["rules"]]
        loaded = {(group, rule["name"]): rule for group, rule in rules}
    except (TypeError, KeyError):
        return Verdict(False, f"{url} answers what is no rules: {shortened(answer.body)}")
    groups = {group for group, _ in wanted}
    missing = sorted(f"{group}/{alert}" for group, alert in wanted - set(loaded))
    strange = sorted(f"{group}/{alert}" for group, alert in set(loaded) - wanted if group in groups)
    failing = [
        alert for (group, alert), rule in sorted(loaded.items()) if group in groups and rule.get("health") == "err"
    ]
    if missing or strange:
        told = [f"not loaded: {listed(missing)}"] * bool(missing) + [f"not in the file: {listed(strange)}"] * bool(
            strange
        )
        return Verdict(False, "; ".join(told))
    if failing:
        return Verdict(False, f"cannot be evaluated: {listed(failing)}")
    return Verdict(True, f"{len(wanted)} alerts in {len(groups)} groups")


# --- Alertmanager's configuration ------------------------------------------------------------------------------------


def block(text: str) -> Any:
    """Mappings, lists and plain values of the YAML that Alertmanager writes of its own configuration.

    Go's marshaller writes blocks only, one key a line. Long texts are passed over: nothing here asks for them.
    """
    rows = [(len(row) - len(row.lstrip()), row.strip()) for row in text.splitlines() if row.strip()]
    return _node(rows, 0)[0] if rows else None


def _node(rows: list[tuple[int, str]], at: int) -> tuple[Any, int]:
    depth = rows[at][0]
    if rows[at][1].startswith("- ") or rows[at][1] == "-":
        return _sequence(rows, at, depth)
    return _mapping(rows, at, depth)


def _sequence(rows: list[tuple[int, str]], at: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while at < len(rows) and rows[at][0] == depth and rows[at][1].startswith("-"):
        inside = rows[at][1][1:].lstrip()
        if re.match(r"[\w.]+:( |$)", inside):
            rows[at] = (depth + len(rows[at][1]) - len(inside), inside)
            item, at = _mapping(rows, at, rows[at][0])
        else:
            item, at = _value(inside, rows, at + 1, depth)
        items.append(item)
    return items, at


def _mapping(rows: list[tuple[int, str]], at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while at < len(rows) and rows[at][0] == depth and not rows[at][1].startswith("- "):
        key, _, value = rows[at][1].partition(":")
        at += 1
        nested = at < len(rows) and (rows[at][0] > depth or (rows[at][0] == depth and rows[at][1].startswith("- ")))
        if not value.strip() and nested:
            found[key], at = _node(rows, at)
        else:
            found[key], at = _value(value.strip(), rows, at, depth)
    return found, at


def _value(text: str, rows: list[tuple[int, str]], at: int, depth: int) -> tuple[str, int]:
    """A plain value, with the lines further in that it is folded into."""
    while at < len(rows) and rows[at][0] > depth:
        text += " " + rows[at][1]
        at += 1
    return _scalar(text), at


def _scalar(text: str) -> str:
    if text.startswith("'") and text.endswith("'"):
        return text[1:-1].replace("''", "'")
    if text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return text


def receivers_of(route: Mapping[str, Any], labels: Mapping[str, str], inherited: str = "") -> list[str]:
    """Who is told of an alert with these labels: as Alertmanager walks its routes, the first that matches, and further
    ones behind a `continue`."""
    receiver = str(route.get("receiver") or inherited)
    found: list[str] = []
    for child in route.get("routes") or ():
        if _matches(child, labels):
            found += receivers_of(child, labels, receiver)
            if str(child.get("continue", "false")) != "true":
                break
    return found or [receiver]


def _matches(route: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    matchers = [
        re.fullmatch(r"\s*([\w.]+)\s*(=~|!~|!=|=)\s*(.*?)\s*", each, re.DOTALL) for each in route.get("matchers") or ()
    ]
    wanted = [(found[1], found[2], _scalar(found[3])) for found in matchers if found is not None]
    wanted += [(name, "=", str(value)) for name, value in (route.get("match") or {}).items()]
    wanted += [(name, "=~", str(value)) for name, value in (route.get("match_re") or {}).items()]
    return all(_is(labels.get(name, ""), how, value) for name, how, value in wanted)


def _is(value: str, how: str, wanted: str) -> bool:
    equal = value == wanted if how in ("=", "!=") else re.fullmatch(wanted, value) is not None
    return equal is not how.startswith("!")


def alertmanager_critical(gathered: Gathered) -> Verdict:
    url, answer = gathered.url("QUANTUM_ALERTMANAGER_URL"), gathered.answer("alertmanager_status")
    if answer.fault is not None:
        return Verdict(False, f"{url}: {answer.fault}")
    critical = [
        rule.alert for rule in committed(gathered, "QUANTUM_PROMETHEUS_RULES", "QUANTUM_LOKI_RULES")
        if rule.severity == "critical"
    ]  # fmt: skip
    if not critical:
        return Verdict(False, "no rule here is critical: are QUANTUM_PROMETHEUS_RULES and QUANTUM_LOKI_RULES right?")
    try:
        config = block(answer.json()["config"]["original"])
        ways = {each["name"]: {way for way, to in each.items() if to} for each in config["receivers"]}
        told = {
            alert: receivers_of(config["route"], {"alertname": alert, "severity": "critical"}) for alert in critical
        }
    except (TypeError, KeyError, AttributeError, re.error):
        return Verdict(False, f"{url}: no configuration that can be read: {shortened(answer.body)}")
    for way, named in (("webhook_configs", "webhook"), ("email_configs", "e-mail")):
        lacking = [alert for alert, those in told.items() if not any(way in ways.get(name, ()) for name in those)]
        if lacking:
            reached = sorted({name for alert in lacking for name in told[alert]})
            return Verdict(False, f"no {named} for {listed(lacking)}: the receiver is {listed(reached)}")
    reached = sorted({name for those in told.values() for name in those})
    return Verdict(True, f"{len(critical)} critical alerts go to {listed(reached)}")


def runbooks(gathered: Gathered) -> Verdict:
    rules = committed(gathered, "QUANTUM_PROMETHEUS_RULES", "QUANTUM_LOKI_RULES")
    if not rules:
        return Verdict(False, "there are no rules: are QUANTUM_PROMETHEUS_RULES and QUANTUM_LOKI_RULES right?")
    nameless = [rule.alert for rule in rules if rule.runbook is None]
    if nameless:
        return Verdict(False, f"no runbook_url in {listed(nameless)}")
    folder = Path(gathered.env["QUANTUM_RUNBOOKS"]).resolve()
    files = sorted({str(rule.runbook).rpartition("/")[2] for rule in rules})
    missing = [name for name in files if not (folder / name).is_file() or not (folder / name).stat().st_size]
    if missing:
        return Verdict(False, f"missing or empty in {folder}: {listed(missing)}")
    return Verdict(True, f"{len(files)} in {folder}")


CHECKS = (
    loki_ready, collector_running, collector_to_loki, grafana_datasource, executor_json, correlation_id, loki_ingesting,
    prometheus_rules, alertmanager_critical, runbooks,
)  # fmt: skip


# --- telling ---------------------------------------------------------------------------------------------------------


def verdicts(gathered: Gathered) -> list[dict[str, Any]]:
    """All ten, in order, as `--json` prints them."""
    found = {check.__name__: check(gathered) for check in CHECKS}
    failed = {name for name, verdict in found.items() if not verdict.holds}
    return [
        {
            "number": NUMBERS[name],
            "name": name,
            "what": WHAT[name],
            "status": PASS if verdict.holds else FAIL,
            "reason": shortened(verdict.reason, 400),
            "follows_from": [] if verdict.holds else sorted(NUMBERS[each] for each in verdict.after if each in failed),
        }
        for name, verdict in found.items()
    ]


def shown(checks: Sequence[Mapping[str, Any]], *, coloured: bool) -> str:
    rows = []
    for check in checks:
        status = f"{COLOURS[check['status']]}{check['status']}\033[0m" if coloured else check["status"]
        behind = f" (follows from {', '.join(map(str, check['follows_from']))})" if check["follows_from"] else ""
        rows.append(f"{status}  {check['number']:>2}  {check['what']:<42}{check['reason']}{behind}")
    failed = [check for check in checks if check["status"] == FAIL]
    if failed:
        first = [str(check["number"]) for check in failed if not check["follows_from"]]
        rows.append(f"{len(failed)} of {len(checks)} checks fail; begin with {', '.join(first)}.")
    else:
        rows.append(f"All {len(checks)} checks hold.")
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    checks = verdicts(Gathered(Path(arguments[-1]), os.environ))
    ok = all(check["status"] == PASS for check in checks)
    if "--json" in arguments:
        print(json.dumps({"ok": ok, "checks": checks}, indent=2, ensure_ascii=False))
    else:
        print(shown(checks, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
