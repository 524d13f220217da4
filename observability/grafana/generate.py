"""Grafana's dashboards, as code: `make dashboards` writes dashboards/*.json from here, `--check` only compares.

Made with Grafana's Foundation SDK, which knows the schema of dashboards, panels and queries. Queries are written as one
types them; tests hold each metric, label and event in them to what is emitted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import logs, stat, statetimeline
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard, units

from observability.grafana.panels import (
    BY_ERROR,
    GROUP,
    LOKI,
    OF_GROUP,
    PROMETHEUS,
    STREAM,
    Panel,
    graph,
    logql,
    named,
    newly,
    page,
    promql,
    quantile,
    rate,
    states,
    with_panels,
)
from quantum_bus import names

FOLDER: Final = Path(__file__).parent / "dashboards"
ERRORS: Final = 'level=~"ERROR|CRITICAL"'
# The way of an order, as services log it.
ORDER_EVENTS: Final = (
    names.EVENT_INTENT_CREATED,
    names.EVENT_INTENT_RECEIVED,
    names.EVENT_ORDER_SUBMIT,
    names.EVENT_ORDER_RESPONSE,
    names.EVENT_ORDER_ERROR,
    names.EVENT_POSITION_UPDATED,
)
ORDER_FLOW: Final = "|".join(ORDER_EVENTS)


def log_aggregation() -> dashboard_builder.Dashboard:
    service = (
        dashboard_builder.QueryVariable("service")
        .label("Service")
        .datasource(LOKI)
        .query({"refId": "service", "type": 1, "label": "service", "stream": ""})  # type 1: the values of a label
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(dashboard.VariableOption(True, ["All"], ["$__all"]))
    )
    events = (
        dashboard_builder.CustomVariable("events")
        .label("Lines")
        .description("What the log panel shows: the stages of an order, or every line.")
        .values(f"of orders : {ORDER_FLOW}, all : .+")
        .current(dashboard.VariableOption(True, "of orders", ORDER_FLOW))
        .options(
            [
                dashboard.VariableOption(True, "of orders", ORDER_FLOW),
                dashboard.VariableOption(False, "all", ".+"),
            ]
        )
    )
    correlation_id = (
        dashboard_builder.TextBoxVariable("correlation_id")
        .label("Correlation id")
        .description("Of one flow, or how it begins; empty for every flow.")
        .default_value("")
    )
    flow = logql(
        '{service=~"$service", event=~"$events"} | correlation_id=~"${correlation_id}.*" '
        '| json msg="msg" | drop __error__, __error_details__ '
        "| line_format `{{.service}} {{.event}} {{if .msg}}{{.msg}}{{else}}{{__line__}}{{end}}`",
        "",
    )
    panels: list[Panel] = [
        graph(
            "Errors by level, over 15 minutes",
            logql(f'sum by (level) (count_over_time({{{ERRORS}, service=~"$service"}}[15m]))', "{{level}}"),
            about="Error lines of the last 15 minutes, at each moment.",
        ).span(12),
        graph(
            "Errors by service",
            logql(f'sum by (service) (count_over_time({{{ERRORS}, service=~"$service"}}[$__auto]))', "{{service}}"),
            about="HighErrorRate fires above 10 a second for 2 minutes.",
            bars=True,
        ).span(12),
        graph(
            "Order events",
            logql(
                f'sum by (event) (count_over_time({{event=~"{ORDER_FLOW}", service=~"$service"}}[$__auto]))',
                "{{event}}",
            ),
            about="Where all is well, as many ORDER_RESPONSE as ORDER_SUBMIT.",
            bars=True,
        ).span(24),
        logs.Panel()
        .title("Order flow")
        .description("With a correlation id above: one flow, from every service. Ids in a line's details lead on.")
        .datasource(LOKI)
        .with_target(named(flow.max_lines(500), "A"))
        .show_time(True)
        .enable_log_details(True)
        .wrap_log_message(True)
        .sort_order(common.LogsSortOrder.ASCENDING)
        .height(16)
        .span(24),
    ]
    made = page("p1b-log-aggregation", "Log aggregation", "What the services log: errors, and the way of each order.")
    return with_panels(made.variables([service, events, correlation_id]), [("", panels)])


def quantum_bus() -> dashboard_builder.Dashboard:
    messages: list[Panel] = [
        graph(
            "Published",
            promql(rate("messaging_client_sent_messages_total", STREAM), f"{{{{{STREAM}}}}}"),
            about="Messages a second, by stream.",
            unit="mps",
        ),
        graph(
            "Handled",
            promql(rate("messaging_client_consumed_messages_total", f"{GROUP}, {STREAM}"), OF_GROUP),
            about="Messages a second, by group; those that are tried again count each time.",
            unit="mps",
        ),
        graph(
            "Time in the handler",
            promql(quantile(0.5, "messaging_process_duration_seconds", GROUP), f"half of {{{{{GROUP}}}}}"),
            promql(quantile(0.95, "messaging_process_duration_seconds", GROUP), f"95 % of {{{{{GROUP}}}}}"),
            about="How long half, and 95 of 100, handler runs took at most.",
            unit=units.Seconds,
        ),
        graph(
            "Time to publish",
            promql(quantile(0.95, "messaging_client_operation_duration_seconds", STREAM), f"95 % to {{{{{STREAM}}}}}"),
            about="How long 95 of 100 publishes took at most, Redis's answer included.",
            unit=units.Seconds,
        ),
        graph(
            "The exchange's answers",
            promql(quantile(0.95, "quantum_bus_log_order_latency_seconds", "service"), "95 % of {{service}}"),
            about="latency_ms of ORDER_RESPONSE. ExecutionLatencyHigh fires above 5 s.",
            unit=units.Seconds,
        ),
    ]
    groups: list[Panel] = [
        graph(
            "Lag, in messages",
            promql("quantum_bus_lag", OF_GROUP),
            about="Could be read, and no consumer has them. Absent where Redis cannot tell.",
        ),
        graph(
            "Lag, in seconds",
            promql("quantum_bus_lag_age_seconds", OF_GROUP),
            about="How long the oldest of those has waited. ConsumerLagHigh fires above 60 s.",
            unit=units.Seconds,
        ),
        graph(
            "Pending",
            promql("quantum_bus_pending", OF_GROUP),
            about="Given to consumers and not settled.",
        ),
        graph(
            "Oldest pending",
            promql("quantum_bus_pending_age_seconds", OF_GROUP),
            about="How long the oldest of those has been there. PendingTooOld fires above 15 minutes.",
            unit=units.Seconds,
        ),
        graph(
            "Scheduled",
            promql("quantum_bus_scheduled", f"{{{{{GROUP}}}}} {{{{{STREAM}}}}}"),
            promql("quantum_bus_scheduled_due", f"overdue: {{{{{GROUP}}}}} {{{{{STREAM}}}}}"),
            about="Wait for their next attempt, or were published with a delay. Overdue: their time has come.",
        ),
        graph(
            "Consumers alive",
            promql("quantum_bus_consumers_alive", OF_GROUP),
            about="Seen by Redis within the last minute.",
        ),
        graph(
            "Length of streams",
            promql("quantum_bus_stream_length", f"{{{{{STREAM}}}}}"),
            about="Entries, handled or not. StreamTooLong fires above a million.",
        ),
    ]
    breakers = f"max by ({GROUP}, service_instance_id) (quantum_bus_breaker_state)"
    trouble: list[Panel] = [
        graph(
            "Retries, in 5 minutes",
            promql(newly("quantum_bus_retries_total", f"error_type, {GROUP}", job="services"), BY_ERROR),
            about="Runs that failed and will be tried again, by the error's class.",
        ),
        graph(
            "Dead letters",
            promql("quantum_bus_dead_letter_size", f"of {{{{{STREAM}}}}}"),
            about="Kept beside each stream: quantum-bus dlq list shows them. DeadLettersArriving fires when they grow.",
        ),
        graph(
            "Dead-lettered, in 5 minutes",
            promql(newly("quantum_bus_dead_letters_total", f"error_type, {GROUP}", job="services"), BY_ERROR),
            about="By reason.",
        ),
        statetimeline.Panel()
        .title("Breakers")
        .description("Open: handlers fail, and the group takes no messages. A process that ended is shown for a day.")
        .datasource(PROMETHEUS)
        .with_target(named(promql(breakers, f"{{{{{GROUP}}}}}"), "A"))
        .mappings(states({"0": ("closed", "green"), "1": ("trying", "yellow"), "2": ("open", "red")}))
        .show_value(common.VisibilityMode.NEVER)
        .span(8)
        .height(8),
        graph(
            "Lost and taken over, in 5 minutes",
            promql(newly("quantum_bus_lost_total", GROUP, job="services"), f"lost: {{{{{GROUP}}}}}"),
            promql(newly("quantum_bus_recovered_total", GROUP, job="services"), f"taken over: {{{{{GROUP}}}}}"),
            about="Lost: deleted before they were handled (MessagesLost). Taken over: from consumers that died.",
        ),
        graph(
            "Services started, in 5 minutes",
            promql(
                newly('quantum_bus_log_records_total{event="SERVICE_STARTED"}', "service", job="services"),
                "{{service}}",
            ),
            about="ContainerRestartLoop fires above 3 in 15 minutes.",
        ),
    ]
    pipeline: list[Panel] = [
        stat.Panel()
        .title("Up")
        .description("Whether Prometheus reaches each program, and the exporter Redis.")
        .datasource(PROMETHEUS)
        .with_target(named(promql("up", "{{job}}").instant(), "A"))
        .with_target(named(promql("quantum_bus_exporter_up", "redis").instant(), "B"))
        .mappings(states({"0": ("down", "red"), "1": ("up", "green")}))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builder.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(8)
        .height(8),
        graph(
            "Log lines",
            promql(rate("quantum_bus_log_records_total", "service"), "{{service}}"),
            about="A second, as the collector counts them. ServiceLogsMissing fires an hour after the last one.",
        ),
        graph(
            "Queue of log lines",
            promql(
                'otelcol_exporter_queue_size{exporter="otlp_http/loki"}'
                ' / otelcol_exporter_queue_capacity{exporter="otlp_http/loki"}',
                "used",
            ),
            about="The collector's, on disk: it fills while Loki is away. LogQueueNearlyFull fires above 80 %.",
            unit=units.PercentUnit,
        ),
        graph(
            "Refused or dropped by the collector, in 5 minutes",
            promql(
                newly("otelcol_receiver_refused_log_records_total", "receiver", job="collector"),
                "refused: {{receiver}}",
            ),
            promql(
                newly("otelcol_receiver_failed_log_records_total", "receiver", job="collector"), "failed: {{receiver}}"
            ),
            promql(
                newly("otelcol_exporter_send_failed_log_records_total", "exporter", job="collector"),
                "dropped: {{exporter}}",
            ),
            about="Refused and failed lines of files are read again. Dropped ones are lost to Loki: LogRecordsDropped.",
        ),
        graph(
            "Discarded by Loki, in 5 minutes",
            promql(newly("loki_discarded_samples_total", "reason", job="loki"), "{{reason}}"),
            about="By reason; lost: LogRecordsDiscarded.",
        ),
        graph(
            "Deleted unread, in 12 hours",
            promql(names.RECORDED_LOST_LINES, "{{service}}"),
            about="Lines in files that rotation deleted before their end was read: LogLinesLostToRotation.",
        ),
        graph(
            "Alerting's own failures, in 5 minutes",
            promql("sum(increase(prometheus_rule_evaluation_failures_total[5m]))", "rules in Prometheus"),
            promql("sum(increase(loki_prometheus_rule_evaluation_failures_total[5m]))", "rules in Loki"),
            promql("sum(increase(alertmanager_notifications_failed_total[5m]))", "notifications"),
            about="Rules that could not be evaluated, and notifications that did not arrive.",
        ),
    ]
    return with_panels(
        page("quantum-bus", "quantum-bus", "The bus: throughput, lag and trouble; and whether its logs arrive."),
        [("Messages", messages), ("Groups", groups), ("Trouble", trouble), ("Pipeline", pipeline)],
    )


def texts() -> dict[Path, str]:
    """Each file and what belongs into it."""
    files = {"p1b_log_aggregation.json": log_aggregation, "quantum_bus.json": quantum_bus}
    return {
        FOLDER / name: json.dumps(make().build(), cls=JSONEncoder, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        for name, make in files.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args(arguments).check
    for path, text in texts().items():
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path}: not what generate.py makes; run `make dashboards`", file=sys.stderr)
            return 1
        print(f"{path.name}: {'as generated' if check else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
