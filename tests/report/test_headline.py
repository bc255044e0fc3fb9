"""What every rendering says alike: that another order is the cure, and how large the artifact is."""

import io
import shlex
from typing import Any

import pytest
from rich.console import Console

from qcheck.cli.advise import _cells as cells
from qcheck.report import markdown, text
from qcheck.report.html import view
from qcheck.result import estimate
from qcheck.result.advice import Tried
from qcheck.result.report import Report
from qcheck.spec import command, order, target
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
        {"order": "as given", "quantized_layers": None},
    ],
    ids=lambda changed: next(iter(changed.values())),
)
def test_elsewhere_the_order_is_not_to_blame(changed: dict[str, str]) -> None:
    assert not any("before quantizing" in " ".join(one.split()) for one in _headlines(_report(**changed)))


def test_of_several_cases_the_headline_counts_those_that_the_order_loses() -> None:
    lost, healthy = reports.case(verdict="NEEDS-QAT", order="quantize-merge"), reports.case()
    assert "1 of 2 pass; 1 of them: the order loses it" in markdown.render(reports.report(lost, healthy))


def test_every_order_says_what_it_does_and_only_merging_into_rounded_weights_loses() -> None:
    assert [name for name in order.ORDERS if order.merge(name).rounds_change_alone] == ["quantize-merge"]


def test_everything_names_one_size_of_the_artifacts_file() -> None:
    """Beside it stand an engine, an estimate of memory and a forecast, each by its own name."""
    engine = {"builder": "B", "capability": "8.6", "proxy": True, "status": "built", "detail": "", "bytes": 37_900_000}
    empty: dict[str, int] = {}
    realised = {"layers": 0, "products": 0, "operands": empty, "fell_back": [], "unread": [], "bytes": empty}
    needed = estimate.estimate(target.find("jetson-agx-orin-64gb"), 8_249_000, 1_700_000, 900_000, {"int8": 1})
    file = {"path": "x.onnx", "arm": "adapted", "compute": "float16", "digest": "0" * 16, "bytes": 8_249_000}
    made = reports.report(
        reports.case(
            artifact=[file],
            estimate=needed.model_dump(),
            builds=[engine | {"realised": realised | {"promised": empty}}],
        )
    )
    console = Console(file=io.StringIO(), width=200)
    text.render(made, reports.PLACE, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    seen = view.overview(made.cases[0])
    assert "-> 8.2 MB" in shown
    assert "artifact 8.2 MB + other components 1.7 MB + activations 0.9 MB = 10.8 MB of its 64 GB memory" in shown
    assert "engine of 37.9 MB" in shown
    assert "→ 8.2 MB" in markdown.render(made)
    assert (seen.sizes.endswith("→ 8.2 MB"), seen.memory) == (True, "10.8 MB of 64 GB")
    tried = {"kind": "k", "title": "t", "why": "", "predicted_bytes": 7_500_000, "predicted_survival": None}
    assert cells(Tried.model_validate(tried))[1] == "forecast 7.5 MB"
    assert cells(Tried.model_validate(tried | {"bytes": 8_249_000}))[1] == "8.2 MB"


def test_a_report_says_what_was_drawn_and_how_to_repeat_it() -> None:
    made = reports.report()
    drawn = made.spec.probes.model_copy(update={"seed": 1, "drawn": True})
    for report, says in ((made, False), (made.model_copy(update={"spec": made.spec.changed(probes=drawn)}), True)):
        shown = _headlines(report)[-1]
        assert ("drawn: seed 1, timesteps 999; --seed random:1 repeats them" in shown) is says
        assert ("--seed random:1 " in shlex.join(command.words(report.spec))) is says
