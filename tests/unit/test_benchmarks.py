"""What the benchmarks make of figures: ratios, verdicts, tables, the picture, and the pages that show them."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import budgets, places, plot, published, report, runner
from benchmarks.budgets import Budget, judge
from benchmarks.catalogue import ROWS, Case, Row, chosen
from benchmarks.report import Run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/performance.md"]
KEPT = budgets.read((ROOT / "benchmarks/budgets.toml").read_text(encoding="utf-8"))
RATES = {"publish": {"ours": [{"rate": 12.0}, {"rate": 20.0}, {"rate": 30.0}], "raw": [{"rate": 10.0}, {"rate": 10.0}]}}
ABOUT = {"date": "2026-01-03", "rounds": 2, "machine": "a machine", "versions": {"Redis": "7.0"}}


def whole_run() -> Run:
    """Every contestant of every row, with made-up figures."""
    return Run(
        ABOUT,
        {
            row.name: {
                case.name: [dict.fromkeys(row.figures, 100.0 + number + part) for part in range(2)]
                for number, case in enumerate(row.cases)
            }
            for row in ROWS
        },
    )


def test_a_ratio_is_of_one_round_and_the_verdict_the_median_of_them() -> None:
    verdict = judge(Budget("publish", "ours", "raw", at_least=1.5), RATES)
    assert (verdict.value, verdict.lowest, verdict.highest, verdict.best) == (1.6, 1.2, 2.0, 3.0)
    assert not verdict.missed


@pytest.mark.parametrize(
    ("bounds", "missed"),
    [
        ({"at_least": 1.6}, False),
        ({"at_least": 1.61}, True),
        ({"at_most": 1.6}, False),
        ({"at_most": 1.59}, True),
        ({"towards": 9.0}, False),
        ({"at_least": 1.0, "towards": 9.0}, False),
    ],
)
def test_a_budget_is_missed_on_its_own_side_only(bounds: dict[str, float], missed: bool) -> None:
    assert judge(Budget("publish", "ours", "raw", **bounds), RATES).missed is missed


def test_a_budget_without_another_contestant_bounds_the_figure_itself() -> None:
    assert judge(Budget("publish", "ours", at_most=20.0), RATES).value == 20.0


def test_a_budget_that_was_not_measured_is_missed() -> None:
    verdict = judge(Budget("publish", "theirs", "raw", at_least=0.1), RATES)
    assert verdict.missed
    assert "not measured" in verdict.text


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 2.0}])
def test_a_budget_has_one_bound_or_a_wish(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give at_least"):
        Budget("publish", "ours", "raw", **bounds)


def test_every_budget_is_about_contestants_and_figures_that_there_are() -> None:
    for budget in KEPT:
        (row,) = (row for row in ROWS if row.name == budget.row)
        names = [case.name for case in row.cases]
        assert budget.contestant in names, budget
        assert budget.against is None or budget.against in names, budget
        assert budget.figure in row.figures, budget
        better = row.figures[budget.figure][1]
        assert (budget.at_most if better == "more" else budget.at_least) is None, budget
        assert (budget.figure in budgets.MORE_IS_BETTER) == (better == "more"), budget


def test_a_quick_run_measures_budgets_in_pairs() -> None:
    quick = {(row.name, case.name) for row, case in chosen(quick=True)}
    for budget in KEPT:
        if (budget.row, budget.contestant) in quick and budget.at_least:
            assert (budget.row, budget.against) in quick, budget


def test_rounds_are_interleaved_and_what_runs_once_runs_in_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def run_once(case: Case, url: str, *, count: int, **_: object) -> dict[str, Any]:
        ran.append((case.name, count))
        return {"figures": {"rate": float(len(ran))}}

    monkeypatch.setattr(runner, "run_once", run_once)
    cases = (Case("a", ("x",), 100), Case("b", ("x",), 10), Case("c", ("x",), 10, once=True))
    row = Row("r", "r", cases)
    measured = runner.run_all([(row, case) for case in cases], "redis://nowhere", rounds=2, share=0.5)
    assert ran == [("a", 50), ("b", 5), ("c", 10), ("a", 50), ("b", 5)]
    assert measured == {
        "r": {"a": [{"rate": 1.0}, {"rate": 4.0}], "b": [{"rate": 2.0}, {"rate": 5.0}], "c": [{"rate": 3.0}]}
    }


def test_names_are_unique_within_a_row_and_rungs_on_the_ladder() -> None:
    for row in ROWS:
        assert len({case.name for case in row.cases}) == len(row.cases)
    rungs = [case.ladder for row in ROWS for case in row.cases if case.ladder]
    assert sorted(rungs) == list(range(1, 9))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"),
        (4.806, "4.81"),
        (15.96, "16.0"),
        (212.4, "212"),
        (999.6, "1.0 k"),
        (10_720, "10.7 k"),
        (237_400, "237 k"),
    ],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_report_names_what_was_missed_and_shows_every_contestant() -> None:
    run = whole_run()
    text = report.markdown(run, [judge(budget, run.measured) for budget in KEPT])
    assert "**missed**" in text  # a hundred of everything keeps no budget of megabytes
    for row in ROWS:
        for case in row.cases:
            assert f"| {case.name} |" in text
    assert text.count("µs a message") >= 1


def test_a_figure_of_nothing_is_shown_where_figures_are_not_compared() -> None:
    figures = {"lines_per_second": 30_000.0, "missing": 0.0, "collector_cpu": 0.021, "loki_cpu": 0.013}
    row = next(row for row in ROWS if row.name == "pipeline")
    assert "| all of it | 30.0 k | 0.00 | 0.02 | 0.01 |" in report.row_table(
        row, {"pipeline": {"all of it": [figures]}}
    )


def test_each_rung_of_the_ladder_tells_what_it_adds() -> None:
    row = ROWS[0]
    rungs = sorted((case for case in row.cases if case.ladder), key=lambda case: case.ladder)
    measured = {row.name: {case.name: [{"rate": 1e6 / (10 + 5 * case.ladder)}] for case in rungs}}
    lines = report.ladder_table(measured).splitlines()[2:]
    assert len(lines) == 8
    assert lines[0].endswith("| 15.0 |  |")
    assert all(line.endswith("| +5.0 |") for line in lines[1:])


def test_a_run_is_read_as_it_was_kept() -> None:
    run = whole_run()
    again = published.load(published.dump(run))
    assert again == run


def test_the_picture_is_svg_with_a_bar_for_each_contestant_it_shows() -> None:
    root = ET.fromstring(plot.svg(whole_run()))
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("fill") != "#fff"]
    assert len(bars) == sum(len(row.cases) for row in ROWS if row.name in plot.SHOWN)
    assert max(float(bar.get("width", 0)) for bar in bars) <= plot.WIDTH - plot.LABEL


@pytest.mark.parametrize(
    ("stack", "place"),
    [
        (["/x/benchmarks/contestants/bus.py", "/x/quantum_bus/link.py"], "quantum_bus: link"),
        (["/x/quantum_bus/link.py", "/lib/redis/asyncio/connection.py", "/lib/python3.11/ssl.py"], "redis-py"),
        (["/x/quantum_bus/telemetry.py", "/lib/opentelemetry/sdk/trace/__init__.py"], "OpenTelemetry SDK: spans"),
        (["/lib/opentelemetry/sdk/metrics/_internal/x.py", "/lib/python3.11/random.py"], "OpenTelemetry SDK: metrics"),
        (["/x/quantum_bus/jsonlog/__init__.py"], "quantum_bus: jsonlog"),
        (["/x/quantum_bus/sync/bus.py"], "quantum_bus: sync.bus"),
        (["/lib/python3.11/runpy.py"], places.STARTING),
    ],
)
def test_time_counts_where_the_innermost_known_frame_stands(stack: list[str], place: str) -> None:
    assert places.place(stack) == place


def test_microseconds_by_place_add_up_to_the_whole() -> None:
    seen = [(["/x/quantum_bus/link.py"], 3.0), (["/lib/redis/client.py"], 1.0)]
    profile = {"ours": {"micros": 8.0, "shares": places.shares(seen)}}
    lines = places.place_table(profile).splitlines()[2:]
    assert lines == [
        "| quantum_bus: link | 6.0 |",
        "| redis-py | 2.0 |",
        "| all else |  |",
        "| **together** | **8.0** |",
    ]


def test_a_section_of_a_page_is_written_between_its_markers() -> None:
    page = "a\n<!-- benchmarks: x -->\nold\n<!-- end -->\nb\n"
    assert published.filled(page, {"x": "new"}) == "a\n<!-- benchmarks: x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(KeyError):
        published.filled(page, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_show_the_figures_of_the_committed_results(page: Path) -> None:
    run = published.load((ROOT / "benchmarks/results/published.json").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    assert "<!-- benchmarks: " in text
    profile = json.loads((ROOT / "benchmarks/results/profile.json").read_text(encoding="utf-8"))
    assert published.filled(text, published.sections(run, KEPT, profile)) == text, (
        "make bench ARGS=--pages writes them anew"
    )


@pytest.mark.parametrize(("name", "suffix"), [("published", "md"), ("published", "svg")])
def test_table_and_picture_are_those_of_the_committed_results(name: str, suffix: str) -> None:
    folder = ROOT / "benchmarks/results"
    run = published.load((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert not run.about["quick"]
    made = {
        "md": lambda: report.markdown(run, [judge(budget, run.measured) for budget in KEPT]),
        "svg": lambda: plot.svg(run),
    }[suffix]()
    assert (folder / f"{name}.{suffix}").read_text(encoding="utf-8") == made


def test_results_name_no_path() -> None:
    for path in (ROOT / "benchmarks/results").glob("published.*"):
        assert "/home" not in path.read_text(encoding="utf-8")
        assert "/root" not in path.read_text(encoding="utf-8")
