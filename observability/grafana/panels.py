"""What the dashboards are made of: questions, panels and pages, all in one style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import logs, loki, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common, dashboard, units

# The uids of provisioning/datasources/quantum-bus.yaml.
LOKI: Final = common.DataSourceRef("loki", "loki")
PROMETHEUS: Final = common.DataSourceRef("prometheus", "prometheus")
TAG: Final = "quantum-bus"

STREAM: Final = "messaging_destination_name"
GROUP: Final = "messaging_consumer_group_name"
OF_GROUP: Final = f"{{{{{GROUP}}}}} of {{{{{STREAM}}}}}"
BY_ERROR: Final = f"{{{{error_type}}}} {{{{{GROUP}}}}}"

# Between a question and what is shown where it has no answer: tests ask the question alone.
OR_NONE: Final = " or on () label_replace"

Query = loki.Dataquery | prometheus.Dataquery
Panel = timeseries.Panel | logs.Panel | stat.Panel | statetimeline.Panel


def promql(expr: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def logql(expr: str, legend: str) -> loki.Dataquery:
    return loki.Dataquery().expr(expr).legend_format(legend).query_type("range")


def rate(counter: str, by: str) -> str:
    """A second, of what happens all the time."""
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


def newly(counter: str, by: str, *, job: str) -> str:
    """In 5 minutes, of what seldom happens: a counter begins with its first count, which no rate would see.

    0 where it never happened, as long as Prometheus reaches what would count it: `job`.
    """
    counted = f"sum by ({by}) (({counter} unless {counter} offset 5m) or increase({counter}[5m]))"
    first = by.partition(",")[0]
    return f'{counted}{OR_NONE}(0 * (up{{job="{job}"}} == 1), "{first}", "none", "", "")'


def quantile(share: float, histogram: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({histogram}_bucket[$__rate_interval])))"


def graph(title: str, *queries: Query, about: str, unit: str = units.Short, bars: bool = False) -> timeseries.Panel:
    """Lines over time from 0, or stacked bars."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .no_value("none")
        .tooltip(common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .legend(
            common_builder.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .fill_opacity(80 if bars else 10)
        .draw_style(common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE)
        .show_points(common.VisibilityMode.NEVER)
        .span(8)
        .height(8)
    )
    if bars:
        panel.stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(named(query, letter))
    return panel.datasource(source(queries[0]))


def source(query: Query) -> common.DataSourceRef:
    return LOKI if isinstance(query, loki.Dataquery) else PROMETHEUS


def named(query: Query, letter: str) -> Query:
    return query.ref_id(letter).datasource(source(query))


def states(shown: dict[str, tuple[str, str]]) -> list[dashboard.ValueMapping]:
    """Numbers as words, each with a colour."""
    return [dashboard.ValueMap({value: dashboard.ValueMappingResult(*how) for value, how in shown.items()})]


def page(uid: str, title: str, about: str) -> dashboard_builder.Dashboard:
    return (
        dashboard_builder.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard_builder.DashboardLink(TAG)
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
        )
    )


def with_panels(
    made: dashboard_builder.Dashboard, rows: Sequence[tuple[str, Sequence[Panel]]]
) -> dashboard_builder.Dashboard:
    """With its rows of panels, numbered in their order."""
    number = 0
    for title, panels in rows:
        if title:
            number += 1
            made.with_row(dashboard_builder.Row(title).id(number))
        for panel in panels:
            number += 1
            made.with_panel(panel.id(number))
    return made
