"""Reports beside each other and against a baseline: what counts as worse, and what does not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats
from typer.testing import CliRunner, Result

from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.judge import compare
from qcheck.report import comparison
from qcheck.result.measurement import Judged
from qcheck.result.report import Report
from qcheck.spec import limits
from qcheck.spec.measurement import Limit
from tests import reports
from tests.report.test_markdown import HOSTILE

FINITE = st.floats(-1e6, 1e6).map(lambda value: float(f"{value:g}"))


@given(FINITE, FINITE)
def test_a_limit_holds_its_own_ends_and_nothing_beyond(a: float, b: float) -> None:
    for low, high in ((a, None), (None, a), (min(a, b), max(a, b))):
        found = Limit(low=low, high=high)
        assert found.holds(low if low is not None else high, high if high is not None else low)
        assert low is None or not found.holds(math.nextafter(low, -math.inf), high or low)
        assert high is None or not found.holds(low or high, math.nextafter(high, math.inf))
        assert not found.holds(math.nan, math.nan)
        assert not found.holds(None, a)
        assert Limit.model_validate_json(found.model_dump_json()) == found


def _seen(value: float | None, width: float, limit: Limit, **changed: Any) -> Judged:
    made = {
        "name": "stratum_sqnr",
        "arm": "adapted",
        "unit": "dB",
        "status": "pass",
        "p": 0.5,
        "value": value,
        "limit": limit,
    }
    sides = {"low": None, "high": None} if value is None else {"low": value - width, "high": value + width}
    return Judged.model_validate(made | sides | changed)


@pytest.mark.parametrize(
    ("limit", "before", "after", "expected"),
    [
        (Limit(low=8), 15, 9, "worse"),
        (Limit(low=8), 9, 15, "better"),
        (Limit(high=3), 1, 9, "worse"),
        (Limit(high=3), 9, 1, "better"),
        (Limit(low=-8, high=8), 1, -9, "worse"),
        (Limit(low=-8, high=8), 1, 9, "worse"),
        (Limit(low=-8, high=8), -9, 1, "better"),
        (Limit(low=8), 15, 13.5, None),
        (Limit(low=8), 15, 13, None),  # they touch
    ],
)
def test_worse_is_what_leaves_its_interval_towards_the_limit(
    limit: Limit, before: float, after: float, expected: str | None
) -> None:
    assert compare.compare(_seen(before, 1, limit), _seen(after, 1, limit), limit) == expected


@given(
    st.floats(-50, 50),
    st.floats(-50, 50),
    st.floats(0, 5),
    st.sampled_from([Limit(low=8), Limit(high=3), Limit(low=-8, high=8)]),
)
def test_back_is_the_opposite_of_there(a: float, b: float, width: float, limit: str) -> None:
    there, back = (compare.compare(_seen(x, width, limit), _seen(y, width, limit), limit) for x, y in ((a, b), (b, a)))
    opposite = {"worse": "better", "better": "worse", None: None}
    tie = limit.low == -8 and math.isclose(abs(a), abs(b))
    assert tie or back == opposite[there]
    assert compare.compare(_seen(a, width, limit), _seen(a, width, limit), limit) is None


def test_what_was_lost_is_worse_and_what_is_new_is_not() -> None:
    here, gone = _seen(15, 1, Limit(low=8)), _seen(math.nan, math.nan, Limit(low=8), status="fail")
    absent = _seen(None, 0, Limit(low=8), status="not measured")
    for lost in gone, absent, None:
        assert compare.compare(here, lost, Limit(low=8)) == "worse"
        assert compare.compare(lost, here, Limit(low=8)) == "other"
        assert compare.compare(lost, lost, Limit(low=8)) is None


def test_what_was_not_sampled_changes_when_it_crosses_its_limit() -> None:
    before, near = _seen(114, 0, Limit(low=80), p=None), _seen(100, 0, Limit(low=80), p=None)
    below = _seen(70, 0, Limit(low=80), p=None, status="fail")
    assert compare.compare(before, near, Limit(low=80)) is None
    assert compare.compare(near, below, Limit(low=80)) == "worse"
    assert compare.compare(below, near, Limit(low=80)) == "better"


def _judged(samples: np.ndarray) -> list[Judged]:
    """Means of the rows of [n, probes] with the bounds that a look at that many probes gives."""
    mean, error = samples.mean(1), samples.std(1, ddof=1) / samples.shape[1] ** 0.5
    half = stats.t.ppf(1 - limits.find("default").alpha, samples.shape[1] - 1) * error
    return [_seen(float(m), float(h), Limit(low=0)) for m, h in zip(mean, half, strict=True)]


@pytest.mark.parametrize(("probes", "loss", "low", "high"), [(8, 0, 0, 0.004), (8, 2, 0.55, 0.70), (64, 1, 0.97, 1.0)])
def test_how_often_a_loss_of_so_many_sd_is_called_worse(probes: int, loss: float, low: float, high: float) -> None:
    rng, runs = np.random.default_rng(1), 3000
    before, after = (_judged(rng.standard_normal((runs, probes)) + shift) for shift in (9, 9 - loss))
    called = [compare.compare(was, now, Limit(low=0)) for was, now in zip(before, after, strict=True)]
    assert low <= called.count("worse") / runs <= high


def _against(before: Report, after: Report) -> compare.Comparison:
    return compare.against(("old", before), ("new", after))


def test_a_report_against_itself_changes_nothing() -> None:
    found = _against(reports.report(), reports.report())
    assert (found.changes, found.differences, found.regressed) == ([], [], False)
    assert found.compared == 3


@pytest.mark.parametrize(
    ("before", "after", "direction"),
    [
        ("PASS", "INCONCLUSIVE", "worse"),
        ("PASS", "NEEDS-QAT", "worse"),
        ("INVALID", "PASS", "better"),
        ("NEEDS-QAT", "FAIL-RECIPE", "other"),
    ],
)
def test_a_verdict_that_no_longer_passes_is_worse(before: str, after: str, direction: str) -> None:
    found = _against(reports.report(reports.case(verdict=before)), reports.report(reports.case(verdict=after)))
    assert [(c.name, c.direction, c.before, c.after) for c in found.changes] == [("verdict", direction, before, after)]
    assert found.regressed == (direction == "worse")


def test_a_case_that_is_no_longer_checked_is_worse_and_a_new_one_is_not() -> None:
    one, two = reports.report(reports.case()), reports.report(reports.case(), reports.case("fp8"))
    assert [(c.scheme, c.name, c.after) for c in _against(two, one).changes] == [("fp8", "case", "not checked")]
    assert _against(two, one).regressed
    assert not _against(one, two).regressed
    assert len(_against(one, two).changes) == 1


def test_a_build_that_no_longer_succeeds_is_worse() -> None:
    def built(status: str) -> Report:
        made = {"builder": "B", "capability": "8.6", "proxy": True, "status": status}
        return reports.report(reports.case(builds=[made]))

    found = _against(built("built"), built("not run")).changes
    assert [(c.name, c.direction, c.after) for c in found] == [("build by B", "worse", "not run")]
    assert not _against(built("refused"), built("built")).regressed


def test_a_measurement_without_a_limit_has_no_better_side() -> None:
    far = reports.case(measurements=[reports.measurement("psnr", value=1.0, low=0.9, high=1.1)])
    near = reports.case(measurements=[reports.measurement("psnr")])
    assert _against(reports.report(near), reports.report(far)).changes == []


def test_what_two_checks_differ_in_is_named() -> None:
    other = reports.report(target="jetson-thor-t5000", base={"source": "b/pipeline", "digest": "9" * 16})
    assert [d.name for d in _against(reports.report(), other).differences] == ["base", "target"]


def test_the_matrix_has_a_row_a_report_and_a_column_a_scheme_and_order() -> None:
    one = reports.report(reports.case(), reports.case("fp8"))
    two = reports.report(reports.case("int8", "unmerged", verdict="NEEDS-QAT", deciding=None))
    found = compare.matrix([("a", one), ("b", two)])
    assert found.columns == [("int8", "merge-quantize"), ("fp8", "merge-quantize"), ("int8", "unmerged")]
    assert [row.source for row in found.rows] == ["a", "b"]
    rows, told = comparison.matrix_markdown(found).splitlines(), "0.99, by stratum\\_sqnr (LoRA)"
    assert rows[2] == f"| flat | jetson-agx-orin-64gb | a | ✅ PASS {told} | ✅ PASS {told} | not checked |"
    assert rows[3] == "| flat | jetson-agx-orin-64gb | b | not checked | not checked | ⚠️ NEEDS-QAT 0.99 |"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def _stored(folder: Path, report: Report) -> str:
    folder.mkdir()
    (folder / "report.json").write_text(report.to_json())
    return str(folder)


def test_the_command_exits_1_on_a_regression_and_0_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _stored(tmp_path / "good", reports.report())
    low = reports.measurement("stratum_sqnr", value=9.0, low=8.5, high=9.5)
    bad = _stored(tmp_path / "bad", reports.report(reports.case(measurements=[low])))
    monkeypatch.setenv("COLUMNS", "120")
    worse = run("compare", good, bad)
    assert worse.exit_code == 1
    assert "3 got worse" in worse.output  # that one, and two that are gone
    assert "15 [13, 17]" in worse.output
    better = run("compare", bad, good)
    assert (better.exit_code, "nothing got worse" in better.output) == (0, True)
    assert json.loads(run("compare", good, bad, "--json").stdout)["changes"][0]["direction"] == "worse"
    assert (
        "| **worse** | int8 | merge-quantize | stratum\\_sqnr (adapted) |"
        in run("compare", good, bad, "--markdown").stdout
    )
    assert run("compare", good, bad, "--matrix").exit_code == run("compare", good, bad, bad).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "Invalid JSON"), ('{"schema": "other/1"}', "qcheck-report/1")],
)
def test_what_is_no_report_is_one_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    found = run("compare", str(tmp_path), str(tmp_path))
    assert isinstance(found.exception, UserError)
    assert message in found.exception.what


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_in_their_cells(text: str) -> None:
    odd = reports.report(reports.case(f"s{text}", verdict="INVALID"), target=text)
    found = compare.against((text, odd), (text, reports.report()))
    for shown, columns in (
        (comparison.changes_markdown(found), 7),
        (comparison.matrix_markdown(compare.matrix([(text, odd)])), 4),
    ):
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(shown)
        kinds = [child.type for token in tokens for child in token.children or []]
        assert not {"html_inline", "link_open", "image", "code_inline"} & set(kinds)
        assert not [token for token in tokens if token.type == "html_block"]
        assert sum(token.type == "th_open" for token in tokens) == columns
        rows = sum(token.type == "tr_open" for token in tokens) - 1
        assert sum(token.type == "td_open" for token in tokens) == rows * columns
