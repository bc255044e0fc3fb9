"""Where another order is the cure, every headline says so; elsewhere none does."""

import io
from typing import Any

import pytest
from rich.console import Console

from qcheck.report import markdown, text
from qcheck.report.html import view
from qcheck.result.report import Report
from qcheck.spec import order
from tests import reports


def _headlines(report: Report) -> list[str]:
    """Of the page, of the Markdown, of the terminal's brief and of its table."""
    console = Console(file=io.StringIO(), width=200)
    text.brief(report, console)
    brief = console.file.getvalue()  # type: ignore[attr-defined]
    text.render(report, reports.PLACE, console)
    table = console.file.getvalue().removeprefix(brief)  # type: ignore[attr-defined]
    return [view.headline(report), markdown.render(report).partition("\n")[0], brief, table]


def _report(**changed: Any) -> Report:
    return reports.report(reports.case(**({"verdict": "NEEDS-QAT", "order": "quantize-merge"} | changed)))


def test_a_lost_adapter_is_told_to_be_merged_before_quantizing() -> None:
    said = _headlines(_report())
    assert all("order" in one for one in said)
    assert all("before quantizing" in " ".join(one.split()) for one in said), said


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "PASS"},
        {"verdict": "FAIL-RECIPE"},
        {"order": "merge-quantize"},
        {"order": "unmerged"},
        {"order": "-"},
    ],
    ids=lambda changed: next(iter(changed.values())),
)
def test_elsewhere_the_order_is_not_to_blame(changed: dict[str, str]) -> None:
    assert not any("before quantizing" in " ".join(one.split()) for one in _headlines(_report(**changed)))


def test_of_several_cases_the_headline_counts_those_that_the_order_loses() -> None:
    lost, healthy = reports.case(verdict="NEEDS-QAT", order="quantize-merge"), reports.case()
    assert "1 of 2 pass; 1 of them: the order loses it" in markdown.render(reports.report(lost, healthy))


def test_every_order_says_what_it_does_and_only_merging_into_rounded_weights_loses() -> None:
    assert set(order.OF) == set(order.ORDERS)
    assert [name for name, merge in order.OF.items() if merge.loses] == ["quantize-merge"]
