"""Weights and checkpoints side by side, and which of them to ship."""

import pytest

from qcheck.judge import fleet
from qcheck.judge.matrix import MOST, matrix
from qcheck.report import fleet as summaries
from qcheck.report.matrix import compared
from qcheck.result.fleet import Row
from tests.sweep.test_fleet import row


def _at(weight: float, verdict: str, p: float | None, **more: object) -> Row:
    case = f"{weight}{more.get('scheme', '')}"
    return row(case, verdict, p, adapter="/x/style.safetensors", weight=weight, survival=0.9, **more)


ROWS = [
    _at(0.4, "FAIL-RECIPE", 1e-12, scheme="int4-g128"),
    _at(0.4, "PASS", 1e-9, scheme="int8"),
    _at(0.8, "PASS", 1e-3, scheme="int4-g128"),
    _at(0.8, "PASS", 1e-4, scheme="int8"),
    _at(1.0, "PASS", 1e-2, scheme="int4-g128"),
    _at(1.0, "PASS", 1e-6, scheme="int8"),
]


def test_weights_are_columns_schemes_are_lines_and_the_surest_pass_of_a_line_is_marked() -> None:
    found = matrix(ROWS)
    assert found is not None
    titles, lines = compared(found)
    assert titles == ["scheme, order", "weight 0.4", "weight 0.8", "weight 1"]
    assert lines == [
        ["int4-g128, merge-quantize", "FAIL-RECIPE 0.90", "PASS 0.90 *", "PASS 0.90"],
        ["int8, merge-quantize", "PASS 0.90 *", "PASS 0.90", "PASS 0.90"],
    ]


def test_the_advice_passes_most_lines_and_is_the_surest_of_those() -> None:
    found = matrix(ROWS)
    assert found is not None
    assert found.advice().startswith("Take weight 0.8: it passes 2 of 2")
    lost = matrix([_at(weight, "NEEDS-QAT", 0.9) for weight in (0.4, 0.8)])
    assert lost is not None
    assert lost.best() is None
    assert lost.advice().startswith("None of them passes")


def test_checkpoints_are_in_the_order_of_their_numbers_and_a_missing_case_is_a_dash() -> None:
    names = ("/x/step-1000.safetensors", "/x/step-900.safetensors")
    found = matrix([row("a", adapter=names[0]), row("b", adapter=names[1]), row("c", adapter=names[1], target="other")])
    assert found is not None
    titles, lines = compared(found)
    assert titles == ["scheme, order", "step-900", "step-1000"]
    assert lines == [["int8, merge-quantize, other", "PASS *", "-"], ["int8, merge-quantize, t", "PASS *", "PASS"]]
    assert found.best() == 0


@pytest.mark.parametrize("count", [1, MOST + 1])
def test_one_column_or_too_many_are_no_matrix(count: int) -> None:
    assert matrix([row(str(number)) for number in range(count)]) is None


def test_the_page_and_the_markdown_hold_the_matrix_as_text() -> None:
    rows = [row("a", adapter="/x/<b>|a.safetensors"), row("b", adapter="/x/b.safetensors")]
    summary = fleet.summary(rows)
    page, text = summaries.page(summary), summaries.markdown(summary)
    assert "&lt;b&gt;|a" in page
    assert "<caption>Verdict and survival side by side" in page
    assert "| scheme, order | \\<b\\>\\|a | b |" in text
    assert "side by side" not in summaries.page(fleet.summary(rows[:1]))
