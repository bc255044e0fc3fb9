"""One measurement decided, and every rendering names that one: none of them chooses for itself."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from qcheck.judge import compare
from qcheck.report import comparison, junit, markdown, text
from qcheck.report.html import view
from qcheck.result.report import Report
from tests import reports

NAMES = ("effect_survival", "stratum_survival", "endpoint_error")


def _told(shown: str) -> str:
    return next(line for line in shown.splitlines() if "closest to its limit" in line or "decided by" in line)


def _terminal(report: Report) -> str:
    stream = io.StringIO()
    text.render(report, Path("out"), Console(file=stream, width=200))
    return _told(stream.getvalue())


def _page(report: Report) -> str:
    found = view.overview(report.cases[0]).decided
    return "" if found is None else found.name


def _markdown(report: Report) -> str:
    return next(line for line in markdown.render(report).splitlines() if line.startswith("| int8 |")).replace("\\", "")


def _junit(report: Report) -> str:
    return _told(junit.render(report))


def _compared(report: Report) -> str:
    lines = comparison.matrix_markdown(compare.matrix([("a", report)])).splitlines()
    return next(line for line in lines if line.startswith("| 1 ")).replace("\\", "")


@pytest.mark.parametrize("verdict", ["PASS", "NEEDS-QAT"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shown", [_terminal, _page, _markdown, _junit, _compared], ids=lambda f: f.__name__[1:])
def test_every_rendering_names_the_one_that_the_verdict_chose(
    shown: Callable[[Report], str], name: str, verdict: str
) -> None:
    by = {"name": name, "arm": "adapted"}
    told = shown(reports.report(reports.case(verdict=verdict, deciding=by, reasons=[f"{name} (adapted) decided"])))
    assert [other for other in NAMES if other in told] == [name]
