"""What the committed dashboards ask, as Grafana would ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from observability.grafana.panels import OR_NONE

FOLDER = Path(__file__).resolve().parent.parent / "observability/grafana/dashboards"
# Grafana's own variables; the window of a panel and the time between two of its points.
OF_GRAFANA = {"__rate_interval": "1m", "__auto": "1m"}


@dataclass(frozen=True, slots=True)
class Question:
    """One query of one panel, its variables not yet replaced."""

    dashboard: str
    panel: str
    datasource: str
    expr: str

    def asked(self, **variables: str) -> str:
        """The query with the values of `variables` in it; one without a value is a KeyError."""
        values = {**OF_GRAFANA, **variables}
        return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda found: values[found[1] or found[2]], self.expr)

    @property
    def alone(self) -> Question:
        """Without the 0 that is shown where the question has no answer."""
        return replace(self, expr=self.expr.partition(OR_NONE)[0])

    @property
    def variables(self) -> set[str]:
        return {one or other for one, other in re.findall(r"\$\{(\w+)\}|\$(\w+)", self.expr)}


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by their uids."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return {each["uid"]: each for each in found}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, rows left out."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel


def questions() -> list[Question]:
    return [
        Question(uid, panel["title"], target["datasource"]["uid"], target["expr"])
        for uid, dashboard in dashboards().items()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
