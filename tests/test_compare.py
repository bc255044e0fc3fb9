"""Reports beside each other and against a baseline: what counts as worse, and what does not."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
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


AT_LEAST, AT_MOST, BETWEEN = Limit(low=8), Limit(high=3), Limit(low=-8, high=8)


def _seen(value: float | None, width: float, limit: Limit, **changed: Any) -> Judged:
    made = {
        "name": "over_smoothing",
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
        (AT_LEAST, 15, 9, "worse"),
        (AT_LEAST, 9, 15, "better"),
        (AT_MOST, 1, 9, "worse"),
        (AT_MOST, 9, 1, "better"),
        (BETWEEN, 1, -9, "worse"),
        (BETWEEN, 1, 9, "worse"),
        (BETWEEN, -9, 1, "better"),
        (AT_LEAST, 10, 9.1, None),
        (AT_LEAST, 10, 9, None),  # they touch
        (AT_LEAST, 40, 33, None),  # apart, and most of the room is left
        (AT_LEAST, 33, 40, None),
        (AT_LEAST, 40, 31, "worse"),
        (BETWEEN, 0, -1.9, None),
        (BETWEEN, 0, -2.1, "worse"),
        (AT_LEAST, 4, 1, "worse"),
        (AT_LEAST, -40, -44, None),  # lost already
    ],
)
def test_worse_is_what_leaves_its_interval_towards_the_limit(
    limit: Limit, before: float, after: float, expected: str | None
) -> None:
    width = 0.5
    assert compare.compare(_seen(before, width, limit), _seen(after, width, limit), limit) == expected


def test_a_status_that_changed_counts_however_little_was_lost() -> None:
    before, after = _seen(40, 1, AT_LEAST), _seen(37, 1, AT_LEAST, status="undecided")
    assert compare.compare(before, after, AT_LEAST) == "worse"
    assert compare.compare(after, before, AT_LEAST) == "better"


@given(
    st.floats(-50, 50),
    st.floats(-50, 50),
    st.floats(0, 5),
    st.sampled_from([AT_LEAST, AT_MOST, BETWEEN]),
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
    before, after = (_judged(rng.standard_normal((runs, probes)) + shift) for shift in (2, 2 - loss))
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


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("base", "digest", "9" * 16, "base"),
        ("probes", "digest", "9" * 16, "probes"),
        ("probes", "seed", 2, "sampling"),
        ("probes", "steps", 4, "sampling"),
        ("probes", "guidance", 7.5, "sampling"),
        ("provenance", "recipe_digest", "9" * 16, "recipe"),
        ("provenance", "limits_digest", "9" * 16, "limits"),
        ("provenance", "qcheck", "0.3.0", "qcheck"),
        ("provenance", "commit", "abc", "qcheck"),
        ("provenance", "versions", {"torch": "3"}, "libraries"),
    ],
)
def test_one_changed_input_is_named_even_under_an_old_name(part: str, field: str, value: object, named: str) -> None:
    before = reports.report()
    whole = before.model_dump(by_alias=True)
    other = reports.report(**{part: whole[part] | {field: value}})
    assert [difference.name for difference in _against(before, other).differences] == [named]


@pytest.mark.parametrize(("field", "value"), [("digest", "9" * 16), ("weight", 0.5), ("source", "ink.safetensors")])
def test_another_adapter_or_weight_is_named(field: str, value: object) -> None:
    (used,) = reports.report().model_dump(by_alias=True)["adapters"]
    other = reports.report(adapters=[used | {field: value}])
    assert [difference.name for difference in _against(reports.report(), other).differences] == ["adapters"]


def _file(size: int) -> list[dict[str, Any]]:
    return [{"path": "x.onnx", "arm": "adapted", "compute": "float16", "digest": "0" * 16, "bytes": size}]


def _named(name: str, *cases: dict[str, Any], **changed: Any) -> Report:
    used = {"source": f"{name}.safetensors", "weight": 1.0, "arms": "adapted", "digest": name[:1] * 16}
    return reports.report(*cases, adapters=[used], **changed)


def test_the_matrix_has_every_scheme_and_order_of_every_report_with_size_and_reason() -> None:
    one = reports.report(reports.case(), reports.case("fp8", artifact=_file(7_300_000)))
    lost = reports.case("int8", "unmerged", verdict="NEEDS-QAT", reasons=["effect_survival (adapted) 0.4"])
    found = compare.matrix([("a", one), ("b", reports.report(lost))])
    assert found.columns == [("int8", "merge-quantize"), ("fp8", "merge-quantize"), ("int8", "unmerged")]
    assert [row.source for row in found.rows] == ["a", "b"]
    rows = [row for row in comparison.matrix_markdown(found).splitlines() if row.startswith("| ")][2:]
    near = "endpoint\\_error (adapted) 0.15 \\[0.13, 0.17\\], limit \\<= 0.5, is closest"
    assert rows[0] == f"| 1 flat | int8 | merge-quantize | **✅ PASS, ship this** | survival 0.99, 5.4 MB | {near} |"
    assert rows[1] == f"| 1 flat | fp8 | merge-quantize | ✅ PASS | survival 0.99, 7.3 MB | {near} |"
    assert rows[2] == "| 1 flat | int8 | unmerged | not checked |  |  |"
    assert rows[5].endswith("⚠️ NEEDS-QAT | survival 0.99, 5.4 MB | effect\\_survival (adapted) 0.4 |")


def test_the_smallest_file_that_passes_is_to_be_shipped() -> None:
    one = _named("one", reports.case(), reports.case("fp8", artifact=_file(4_000_000), verdict="NEEDS-QAT"))
    two = _named("two", reports.case(artifact=_file(5_000_000)), reports.case("bf16", artifact=_file(9), control=True))
    (pick,) = compare.matrix([("a", one), ("b", two)]).picks
    assert (pick.row, pick.scheme, pick.why) == (1, "int8", "the smallest of the 2 that pass")


def test_of_two_adapters_whose_files_are_as_small_the_one_with_more_room_is_to_be_shipped() -> None:
    def with_room(name: str, error: float) -> Report:
        seen = reports.measurement("endpoint_error", value=error, low=error - 0.03, high=error + 0.03)
        return _named(name, reports.case(measurements=[seen], artifact=_file(5_400_000 + len(name))))

    (pick,) = compare.matrix([("a", with_room("tight", 0.4)), ("b", with_room("easy", 0.1))]).picks
    assert (pick.row, "most room" in pick.why) == (1, True)


def _held(before: Report, after: Report) -> compare.Pick:
    (pick,) = compare.against(("old", before), ("new", after)).matrix.picks
    return pick


PASSES, LOST = reports.case(), reports.case(verdict="NEEDS-QAT", reasons=["lost"])
SMALL = reports.case("int4", artifact=_file(1_000_000))


@pytest.mark.parametrize(
    ("before", "after", "row", "why"),
    [
        pytest.param([PASSES], [PASSES], 1, "the only one that passes in the new report", id="as before"),
        pytest.param([LOST], [PASSES], 1, "the only one that passes in the new report", id="better"),
        pytest.param([PASSES], [LOST], None, "the baseline, which passes: keep", id="lost"),
        pytest.param([LOST], [LOST], None, "nothing that quantizes passes", id="still lost"),
        pytest.param([SMALL | {"verdict": "NEEDS-QAT"}], [LOST], None, "nothing of the baseline passes", id="gone"),
        pytest.param([SMALL, PASSES], [SMALL | {"verdict": "NEEDS-QAT"}, PASSES], 1, "only one", id="another passes"),
        pytest.param([SMALL], [PASSES], 1, "the only one", id="another case"),
        pytest.param(
            [PASSES], [reports.case("bf16", control=True)], None, "got worse", id="a control is no quantization"
        ),
        pytest.param([PASSES], [reports.case(verdict="INCONCLUSIVE")], None, "got worse", id="open"),
    ],
)
def test_what_to_ship_against_a_baseline_is_what_passes_and_did_not_get_worse(
    before: list[dict[str, Any]], after: list[dict[str, Any]], row: int | None, why: str
) -> None:
    pick = _held(reports.report(*before), reports.report(*after))
    assert pick.row == row, pick
    assert why in pick.why


def test_a_case_that_passes_and_got_worse_is_not_to_be_shipped() -> None:
    """It is the smallest, and inside its limits: but something took a part of its room."""
    worse = reports.measurement("endpoint_error", value=0.45, low=0.42, high=0.48)
    as_before = [reports.measurement(name) for name in reports.PASSING if name != "endpoint_error"]
    pick = _held(reports.report(SMALL, PASSES), reports.report(SMALL | {"measurements": [worse, *as_before]}, PASSES))
    assert (pick.row, pick.scheme, pick.why) == (
        1,
        "int8",
        "the only one that passes in the new report; 1 more got worse",
    )


def test_reports_that_contradict_each_other_recommend_nothing() -> None:
    for one, other in ((PASSES, LOST), (LOST, PASSES)):
        (pick,) = compare.matrix([("a", reports.report(one)), ("b", reports.report(other))]).picks
        assert (pick.row, "does not in another" in pick.why) == (None, True)
    (pick,) = compare.matrix([("a", _named("one", PASSES)), ("b", _named("two", LOST))]).picks
    assert pick.row == 0


def test_nothing_is_to_be_shipped_where_nothing_passes_and_targets_are_apart() -> None:
    lost = _named("lost", reports.case(verdict="NEEDS-QAT"))
    picks = compare.matrix([("a", lost), ("b", _named("fine", target="jetson-thor-t5000"))]).picks
    assert [(pick.target, pick.row) for pick in picks] == [("jetson-agx-orin-64gb", None), ("jetson-thor-t5000", 1)]
    assert "qcheck advise" in picks[0].why


def test_the_matrix_is_read_at_80_columns() -> None:
    """Every word of every cell is there, none cut."""
    long = "effect_survival (adapted) 0.412 ratio [0.398, 0.431] at timestep 951; limit 0.8 .. 1.2"
    cases = [
        reports.case(name, order, verdict="NEEDS-QAT", reasons=[long])
        for name in ("int8", "int4-g128-int8")
        for order in ("merge-quantize", "quantize-merge")
    ]
    made = compare.matrix(
        [(f"qcheck-out/{name}-20261124-080000", _named(name, *cases)) for name in ("flat", "watercolour")]
    )
    console = Console(file=io.StringIO(), width=80)
    comparison.matrix_text(made, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    table = shown.partition("report")[2].partition("1 flat on")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "…" not in shown
    words = " ".join(" ".join(table).split())
    for word in ("watercolour", "int4-g128-int8", "quantize-merge", "NEEDS-QAT", "5.4 MB", "effect_survival", "0.431]"):
        assert word in words, word


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def _stored(folder: Path, report: Report) -> str:
    folder.mkdir()
    (folder / "report.json").write_text(report.to_json())
    return str(folder)


def test_the_command_exits_1_on_a_regression_and_0_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _stored(tmp_path / "good", reports.report())
    far = reports.measurement("endpoint_error", value=0.45, low=0.42, high=0.48)
    bad = _stored(tmp_path / "bad", reports.report(reports.case(measurements=[far])))
    monkeypatch.setenv("COLUMNS", "120")
    worse = run("compare", good, bad)
    assert worse.exit_code == 1
    assert "3 got worse" in worse.output  # that one, and two that are gone
    assert "ship nothing to jetson-agx-orin-64gb: it got worse than the baseline, which passes" in worse.output
    assert "ship flat" not in worse.output
    assert "0.15 [0.13, 0.17]" in worse.output
    better = run("compare", bad, good)
    assert (better.exit_code, "nothing got worse" in better.output) == (0, True)
    assert "ship flat as int8, merge-quantize" in better.output
    assert json.loads(run("compare", good, bad, "--json").stdout)["changes"][0]["direction"] == "worse"
    assert (
        "| **worse** | int8 | merge-quantize | endpoint\\_error (adapted) |"
        in run("compare", good, bad, "--markdown").stdout
    )
    assert run("compare", good, bad, "--matrix").exit_code == run("compare", good, bad, bad).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "Invalid JSON"), ('{"schema": "other/1"}', "qcheck-report/2")],
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
        (comparison.changes_markdown(found).partition("####")[0], 7),
        (comparison.matrix_markdown(compare.matrix([(text, odd)])), 6),
    ):
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(shown)
        kinds = [child.type for token in tokens for child in token.children or []]
        assert not {"html_inline", "link_open", "image", "code_inline"} & set(kinds)
        assert not [token for token in tokens if token.type == "html_block"]
        assert sum(token.type == "th_open" for token in tokens) == columns
        rows = sum(token.type == "tr_open" for token in tokens) - 1
        assert sum(token.type == "td_open" for token in tokens) == rows * columns


def test_a_board_vouches_for_its_engine_then_for_numbers_then_for_nothing() -> None:
    def answer(verdict: str, deployed: bool) -> Any:
        return SimpleNamespace(verdict=verdict, runner=SimpleNamespace(deployed=deployed))

    ranked = [answer("FAIL", True), None, answer("PASS", False), answer("PASS", True)]
    standings = [compare._standing(board) for board in ranked]
    assert standings == sorted(set(standings))
    assert compare._standing(answer("INCONCLUSIVE", True)) == compare._standing(None)
    assert compare._standing(answer("FAIL", False)) == compare._standing(answer("FAIL", True))
