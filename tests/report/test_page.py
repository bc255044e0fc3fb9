"""What the page says: the sentence, the deciding measurement, the command, and what it does without its data."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcheck.cli.check import parse
from qcheck.core.errors import UserError
from qcheck.report import html
from qcheck.report.html import view
from qcheck.result.measurement import Judged
from qcheck.result.report import Case, LayerShare, Report
from qcheck.result.verdict import Deciding, Outcome
from qcheck.spec import measurement, probe
from qcheck.spec.measurement import Limit
from tests.report import FOLDER


@pytest.fixture(scope="module")
def report() -> Report:
    return html.read(FOLDER).report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored folder that a test may change."""
    return Path(shutil.copytree(FOLDER, tmp_path / "out"))


def judged(value: float, low: float, high: float, limit: Limit, status: str = "pass") -> Judged:
    return Judged.model_validate(
        {"name": "over_smoothing", "arm": "base", "unit": "dB", "value": value, "low": low, "high": high}
        | {"limit": limit, "status": status}
    )


@given(
    st.floats(-1e6, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.sampled_from([Limit(high=1), Limit(low=-3), Limit(low=0.9, high=1.1)]),
)
def test_a_glyph_keeps_order_and_stays_on_its_line(value: float, below: float, above: float, limit: Limit) -> None:
    found = view.glyph(judged(value, value - below, value + above, limit))
    assert found is not None
    assert 0 <= found.allowed[0] <= found.allowed[1] <= 100
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 100


@pytest.mark.parametrize("outcome", Outcome.__args__)  # type: ignore[attr-defined]
def test_the_sentence_names_adapter_scheme_and_outcome(report: Report, outcome: Outcome) -> None:
    case = report.cases[0].model_copy(update={"verdict": outcome})
    said = view.headline(report.model_copy(update={"cases": [case]}))
    adapter = Path(report.adapters[0].source).stem
    assert adapter in said.replace("\u2068", "").replace("\u2069", "") or outcome == "FAIL-RECIPE"
    assert case.scheme in said
    assert (f"{adapter}\u2069 survives" in said and said.startswith("\u2068")) == (outcome == "PASS")


def test_of_many_cases_the_sentence_counts_those_that_pass_and_those_that_are_open(report: Report) -> None:
    made = [report.cases[0].model_copy(update={"verdict": v}) for v in ("PASS", "NEEDS-QAT", "INCONCLUSIVE", "INVALID")]
    assert "survives 1 of the 4 ways" in view.headline(report.model_copy(update={"cases": made}))
    assert "2 are open" in view.headline(report.model_copy(update={"cases": made}))
    assert "survives both ways" in view.headline(report.model_copy(update={"cases": made[:1] * 2}))
    assert "none of the 2" in view.headline(report.model_copy(update={"cases": made[1:3]}))
    assert view.kind(report.model_copy(update={"cases": made[1:2] * 2}))[0] == "bad"


def test_the_overview_shows_what_decided_or_the_reason_where_no_measurement_did(report: Report) -> None:
    near = judged(1.0, 0.9, 1.9, Limit(high=2))
    by = Deciding(name="over_smoothing", arm="base")
    case = report.cases[0].model_copy(update={"measurements": [near], "verdict": "PASS", "deciding": by})
    found = view.overview(case)
    assert found.decided == view.row(near)
    assert (found.why, found.decided.limit) == ("closest to its limit", "≤\N{NO-BREAK SPACE}2")
    assert view.overview(case.model_copy(update={"verdict": "NEEDS-QAT"})).why == "decided"
    told = {"verdict": "FAIL-RECIPE", "reasons": ["the build was refused: no kernel"], "deciding": None}
    refused = view.overview(case.model_copy(update=told))
    assert (refused.decided, refused.why) == (None, "the build was refused: no kernel")


def test_a_measurement_says_in_the_page_what_it_is(folder: Path) -> None:
    text = html.render(html.read(folder))
    assert f'title="survival of the effect: {measurement.find("effect_survival").sentence}"' in text


def test_the_command_asks_for_the_same_check(report: Report) -> None:
    execution = report.spec.execution.model_copy(update={"build": False, "threads": 3})
    asked = report.spec.changed(base="my base", trigger="a 'b'", execution=execution)
    asked = asked.changed(probes=probe.triggered(asked.probes, asked.trigger))
    words = shlex.split(view.again(report.model_copy(update={"spec": asked})))
    assert words[:2] == ["qcheck", "check"]
    assert parse(words[2:]) == asked


def test_not_measured_never_looks_like_passed(report: Report) -> None:
    seen = judged(1.0, 1.0, 1.0, Limit(high=2)).model_copy(update={"value": None, "status": "not measured"})
    shown = view.row(seen)
    assert (shown.kind, shown.word, shown.glyph) == ("open", "not measured", None)
    broken = judged(math.nan, math.nan, math.nan, Limit(high=2), "fail")
    assert view.row(broken).value.startswith("not finite")


def test_a_folder_with_no_evidence_still_has_its_page_and_says_what_is_missing(folder: Path) -> None:
    (folder / "evidence.json").unlink()
    text = html.write(folder).read_text()
    assert "the folder has no evidence.json" in text
    assert "No pictures are stored" in text


TRIED = {
    "kind": "ranges",
    "title": "mse ranges",
    "why": "outliers",
    "verdict": "PASS",
    "bytes": 5_400_000,
    "survival": 0.97,
    "excess_error": 1.2,
    "command": "qcheck check demo --recipe mse",
}


def advised(*tried: dict[str, object]) -> str:
    cases = [{"scheme": "int4", "order": "unmerged", "verdict": "NEEDS-QAT", "cure": 0, "tried": [*tried]}]
    return json.dumps({"schema": "qcheck-advice/1", "cases": cases})


def test_cures_are_shown_where_they_were_tried_and_missing_where_not(folder: Path) -> None:
    assert "none was tried" in html.render(html.read(folder))
    unrun = TRIED | {"title": "wider", "verdict": None, "bytes": None, "survival": None, "excess_error": None}
    (folder / "advice.json").write_text(advised(TRIED, unrun))
    text = html.render(html.read(folder))
    assert "none was tried" not in text
    for shown in ("mse ranges", "0.97", "5.4 MB", "1.2 dB", "not run", "qcheck check demo --recipe mse"):
        assert shown in text
    assert text.count("the cheapest that passes") == 1


def test_layers_have_their_share_of_the_gap_where_a_report_holds_it(report: Report) -> None:
    share = LayerShare(
        name="a.to_v", block="a", kind="attention", share=0.5, standard_error=0.1, weight=0.3, activation=0.1
    )
    case = report.cases[0].model_copy(update={"layers": [share]})
    found = html.panel(html.read(FOLDER), case)
    assert found.layers[0] == {"layer": "a.to_v", "kind": "attention", "share": 0.5, "weight": 0.3, "activation": 0.1}
    assert [plot.title for plot in found.plots["layers"]] == ["Sensitivity by layer", "Delta survival by layer"]


def test_a_page_has_no_more_pictures_than_its_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = html.read(folder)
    budget = sum(map(len, whole.pictures.values())) - 1
    monkeypatch.setattr(html, "BUDGET", budget)
    part = html.read(folder)
    assert 0 < len(part.pictures) < len(whole.pictures)
    assert sum(map(len, part.pictures.values())) <= budget
    assert "left out to keep this page small" in html.render(part)


def test_a_folder_without_a_report_is_a_mistake_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no report\.json"):
        html.read(tmp_path)


@pytest.mark.parametrize("name", ["report.json", "evidence.json", "advice.json"])
def test_a_file_that_is_damaged_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=name):
        html.read(folder)


def test_pictures_come_from_the_folder_alone(folder: Path) -> None:
    seen = json.loads((folder / "evidence.json").read_text())
    seen["cases"][0]["pictures"][0]["reference"][0] = "../../secret.webp"
    (folder / "evidence.json").write_text(json.dumps(seen))
    with pytest.raises(UserError, match="outside its folder"):
        html.read(folder)


def test_the_page_opens_on_the_case_to_ship(report: Report) -> None:
    def like(scheme: str, verdict: Outcome, size: int) -> Case:
        file = report.cases[0].artifact[0].model_copy(update={"bytes": size})
        return report.cases[0].model_copy(update={"scheme": scheme, "verdict": verdict, "artifact": [file]})

    cases = [like("large", "PASS", 9), like("lost", "NEEDS-QAT", 2), like("small", "PASS", 5)]
    schemes = [report.spec.schemes[0].model_copy(update={"name": case.scheme}) for case in cases]
    made = report.model_copy(update={"cases": cases, "spec": report.spec.changed(schemes=schemes)})
    assert [case.scheme for case in view.shown(made)] == ["small", "large", "lost"]
    assert view.best(made) == cases[2]
    text = html.render(html.Source(made, None, [], {}, {}))
    assert '<option value="0">small' in text
    assert view.shown(report.model_copy(update={"cases": cases[1:2]})) == cases[1:2]
