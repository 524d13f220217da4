"""Reads Loki as a person would, but all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from tests.stack.asking import SECONDS, get_good

PAGE = 10_000  # max_entries_limit_per_query in observability/loki/loki.yaml
HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS


@dataclass(frozen=True, slots=True)
class Entry:
    """One line Loki holds. `labels` are the index labels and the structured metadata together."""

    time_ns: int
    line: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class LokiReader:
    url: str

    def query(self, logql: str, *, start_ns: int, end_ns: int, limit: int = PAGE) -> list[Entry]:
        """One page, oldest first."""
        answer = get_good(
            f"{self.url}/loki/api/v1/query_range",
            query=logql, start=start_ns, end=end_ns, limit=limit, direction="forward",
        )  # fmt: skip
        found = [
            Entry(int(time_ns), line, stream["stream"])
            for stream in answer.json()["data"]["result"]
            for time_ns, line in stream["values"]
        ]
        return sorted(found, key=lambda entry: entry.time_ns)

    def read_all(self, logql: str, *, start_ns: int, end_ns: int) -> Iterator[Entry]:
        """Every entry, a line stored twice being found twice."""
        while True:
            page = self.query(logql, start_ns=start_ns, end_ns=end_ns)
            if len(page) < PAGE:
                yield from page
                return
            # The last moment of a full page may go on in the next: it is left to that one.
            last = page[-1].time_ns
            assert page[0].time_ns < last, "a whole page of one moment"
            yield from (entry for entry in page if entry.time_ns < last)
            start_ns = last

    def count(self, selector: str, *, over: str = "1h") -> int:
        """How many lines Loki holds, those stored twice counted twice; 0 also while Loki is away."""
        try:
            answer = httpx.get(
                f"{self.url}/loki/api/v1/query",
                params={"query": f"sum(count_over_time({selector}[{over}]))"},
                timeout=SECONDS,
            )
        except httpx.TransportError:
            return 0
        if answer.status_code != httpx.codes.OK:
            return 0
        result = answer.json()["data"]["result"]
        return int(result[0]["value"][1]) if result else 0
