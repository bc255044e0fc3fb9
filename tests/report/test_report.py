"""Renderings of one report: JSON that comes back, text that says what decided, the right pictures."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import qcheck
from qcheck.demo import library
from qcheck.diagnose.sheet import ROWS, Sheet
from qcheck.judge import next_step
from qcheck.report import contact, text
from qcheck.result.build import Build, Precision
from qcheck.result.report import Report, exit_code
from qcheck.tasks import assemble
from tests import reports
from tests.conftest import Finished


@pytest.fixture
def report(finished: Finished) -> Report:
    return Report.model_validate_json(json.dumps(finished.report))


def _text(report: Report) -> str:
    stream = io.StringIO()
    text.render(report, Path("out"), Console(file=stream, width=100))
    return stream.getvalue()


def test_the_json_has_the_contract_and_comes_back_equal(report: Report, finished: Finished) -> None:
    assert finished.report["schema"] == "qcheck-report/2"
    contract = {
        "schema",
        "spec",
        "base",
        "adapters",
        "changed_layers",
        "unmatched",
        "idle",
        "target",
        "probes",
        "cases",
        "not_measured",
        "provenance",
    }
    assert contract <= set(finished.report)
    case = finished.report["cases"][0]
    assert {
        "scheme",
        "order",
        "verdict",
        "deciding",
        "reasons",
        "probes_used",
        "measurements",
        "artifact",
        "builds",
    } <= set(case)
    fields = {"name", "arm", "value", "unit", "low", "high", "limit", "status", "where", "p", "warns"}
    assert all(fields == set(m) for m in case["measurements"])
    assert {"builder", "capability", "proxy", "status", "realised", "bytes", "seconds"} <= set(case["builds"][0])
    assert json.loads(report.to_json()) == finished.report


def test_a_number_that_is_not_finite_survives_json(report: Report) -> None:
    case = report.cases[0]
    broken = case.measurements[0].model_copy(update={"value": float("nan"), "low": float("nan")})
    changed = report.model_copy(update={"cases": [case.model_copy(update={"measurements": [broken]})]})
    assert json.loads(changed.to_json())["cases"][0]["measurements"][0]["value"] == "NaN"
    back = Report.model_validate_json(changed.to_json())
    assert np.isnan(back.cases[0].measurements[0].value)  # type: ignore[arg-type]


def test_a_report_names_the_request_versions_and_digests(finished: Finished) -> None:
    found, asked = finished.report["provenance"], finished.report["spec"]
    assert [used["source"] for used in asked["adapters"]] == [str(library.ADAPTERS / "flat.safetensors")]
    assert found["versions"]["torch"]
    assert len(finished.report["base"]["digest"]) == 16
    assert set(found["seconds"]) >= {"reference, 8 probes", "int8: base artifact", "int8: base (q0), 8 probes"}


def test_the_text_names_scheme_verdict_bounds_limits_and_what_was_not_measured(report: Report) -> None:
    shown = _text(report)
    for wanted in ("int8", "PASS", "effect_survival", "0.8 .. 1.2", "SM 8.6 (proxy)", "limits: set on"):
        assert wanted in shown
    assert "not measured: latency" in shown
    assert "out/report.json" in shown


@pytest.mark.parametrize(
    ("verdict", "words"), [("PASS", "closest to its limit: endpoint_error"), ("NEEDS-QAT", "decided by endpoint_error")]
)
def test_the_text_names_the_measurement_that_decided(verdict: str, words: str) -> None:
    shown = _text(reports.report(reports.case(verdict=verdict)))
    assert f"{words} (LoRA) 0.15 [0.13 .. 0.17], limit <= 0.5" in shown
    alone = _text(reports.report(reports.case(verdict=verdict, deciding=None)))
    assert "closest to its limit" not in alone
    assert "decided by" not in alone


def test_text_of_builders_and_files_is_never_markup(report: Report) -> None:
    build = report.cases[0].builds[0].model_copy(update={"status": "refused", "detail": "[/conv_in/Conv] [bold]odd"})
    changed = report.model_copy(update={"cases": [report.cases[0].model_copy(update={"builds": [build]})]})
    assert "[/conv_in/Conv]" in "".join(_text(changed).split()).replace("│", "")


@pytest.mark.parametrize(
    ("cases", "first", "last"),
    [
        (
            [{"verdict": "NEEDS-QAT", "next": "Do this."}],
            "NEEDS-QAT  int8 merge-quantize: Do this.",
            "NEEDS-QAT int8 merge",
        ),
        ([{}, {"order": "unmerged", "verdict": "FAIL-RECIPE"}], "scheme", "1 of 2 pass: int8 merge-quantize"),
        ([{"verdict": "INVALID"}, {"order": "unmerged", "verdict": "FAIL-RECIPE"}], "scheme", "0 of 2 pass"),
    ],
    ids=["one", "several", "none"],
)
def test_the_verdict_is_first_and_where_the_terminal_stands(cases: list[dict[str, Any]], first: str, last: str) -> None:
    lines = [
        line for line in _text(reports.report(*(reports.case(**case) for case in cases))).splitlines() if line.strip()
    ]
    assert lines[0].strip().startswith(first)
    verdict = next(number for number, line in enumerate(lines) if line.startswith("verdict  "))
    assert lines[verdict].removeprefix("verdict  ").startswith(last)
    assert all(line.startswith("next ") or number <= verdict for number, line in enumerate(lines))


def test_what_passes_beside_a_case_is_its_next_step_before_any_training() -> None:
    lost = reports.case(verdict="NEEDS-QAT", next="Train.")
    small = reports.case("int4", artifact=[{**reports.case()["artifact"][0], "bytes": 1}])

    def after(*others: dict[str, Any]) -> str:
        return next_step.among(reports.report(lost, *others).cases)[0].next

    assert after() == after(reports.case("bf16", control=True)) == "Train."
    assert after(reports.case(order="unmerged", verdict="INCONCLUSIVE")) == "Train."
    assert after(small, reports.case(order="unmerged")).startswith("int8 in order unmerged passes")
    assert after(small).startswith("int4 in order merge-quantize passes")
    for kept in ("PASS", "FAIL-ADAPTER"):
        only = reports.report(reports.case(verdict=kept), small).cases
        assert next_step.among(only)[0].next == "Ship it."


def test_many_cases_are_one_table_with_what_is_over_marked(report: Report) -> None:
    first = report.cases[0]
    worse = [
        m.model_copy(update={"status": "fail", "value": 0.1}) if m.name == "effect_survival" else m
        for m in first.measurements
    ]
    lost = next_step.next_step("NEEDS-QAT", "quantize-merge", None, [])
    second = first.model_copy(
        update={"order": "quantize-merge", "verdict": "NEEDS-QAT", "next": lost, "measurements": worse}
    )
    shown = _text(report.model_copy(update={"cases": [first, second]}))
    assert "0.10*" in shown
    assert "* outside its limit" in shown
    assert "quantize-merge: Merging into a quantized base loses" in " ".join(shown.split())


def test_the_text_says_why_when_it_does_not_pass(report: Report) -> None:
    told = {"verdict": "NEEDS-QAT", "reasons": ["effect_survival is 0.1"], "next": next_step.NEXT["NEEDS-QAT"]}
    case = report.cases[0].model_copy(update=told)
    shown = _text(report.model_copy(update={"cases": [case]}))
    assert "because effect_survival is 0.1" in shown
    assert next_step.NEXT["NEEDS-QAT"].split(":")[0] in " ".join(shown.split())


def test_the_verdict_of_a_check_follows_from_the_numbers_that_it_kept(finished: Finished) -> None:
    audited = qcheck.audit(finished.folder)
    (folder,) = audited.folders
    (case,) = folder.cases
    assert (case.evidence, case.differences, folder.differences) == (case.stated, [], [])
    assert (audited.code, folder.added) == (0, [])
    content = json.loads((finished.folder / "report.intoto.json").read_text("utf-8"))
    assert content["predicate"]["passedTests"] + content["predicate"]["warnedTests"] == ["int8 merge-quantize"]


def test_the_contact_sheet_has_a_row_a_probe_and_grey_where_nothing_differs(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).random((3, 8, 8, 3))
    same = {"base": pictures, "adapted": pictures}
    contact.draw([Sheet("int8", ("a", "b", "c"), same, same)], tmp_path / "sheet.png")  # type: ignore[arg-type]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 3 * contact._TILE
    column = contact._LABEL + 2 * (contact._TILE + contact._GAP) + contact._TILE // 2
    assert (sheet[contact._TITLE + contact._TILE // 2, column] == 128).all()


def test_the_contact_sheet_of_a_check_is_a_picture_of_every_shown_probe(finished: Finished) -> None:
    picture = Image.open(finished.folder / "contact.png")
    assert picture.height > ROWS * contact._TILE
    assert np.asarray(picture).std() > 20


@pytest.mark.parametrize(
    ("status", "words"), [("built", "Ship artifacts/x.onnx"), ("not run", "nothing has compiled artifacts/x.onnx")]
)
def test_what_nobody_compiled_is_not_shipped(status: str, words: str) -> None:
    made = Build.model_validate({"builder": "b", "capability": "8.6", "proxy": True, "status": status})
    assert words in next_step.next_step("PASS", "merge-quantize", "artifacts/x.onnx", [made])


def test_the_order_that_loses_the_adapter_is_the_first_thing_to_change() -> None:
    assert "merge-quantize or unmerged" in next_step.next_step("NEEDS-QAT", "quantize-merge", None, [])


def test_an_engine_that_could_not_be_read_is_not_measured_with_the_reason(report: Report) -> None:
    silent = Precision(layers=2, products=0, operands={}, fell_back=[], unread=["a", "b"], bytes={}, promised={})
    made = report.cases[0].builds[0].model_copy(update={"status": "built", "realised": silent})
    assert not assemble._read(made)
    found = assemble._unbuilt(report.cases[0], made)
    assert found.name == "realised precision of int8 merge-quantize"
    assert found.reason == "not read: the engine says nothing of its operations, first a"
    assert "could not be read" in next_step.next_step("PASS", "merge-quantize", "artifacts/x.onnx", [made])


@pytest.mark.parametrize(
    ("outcomes", "require", "code"),
    [
        (["PASS"], "all", 0),
        (["PASS", "NEEDS-QAT"], "all", 1),
        (["PASS", "NEEDS-QAT"], "any", 0),
        (["FAIL-RECIPE"], "any", 1),
        (["PASS", "INCONCLUSIVE"], "all", 3),
        (["INVALID"], "all", 3),
        (["INVALID", "FAIL-ADAPTER"], "all", 1),
        (["control PASS", "NEEDS-QAT"], "any", 1),  # `--scheme all`: fp16 passes, and that is not what was asked
        (["control PASS", "INCONCLUSIVE"], "any", 3),
        (["control NEEDS-QAT", "PASS"], "any", 0),
        (["control NEEDS-QAT", "PASS"], "all", 1),
    ],
)
def test_exit_codes(outcomes: list[str], require: str, code: int) -> None:
    cases = [
        reports.case(f"s{place}", verdict=outcome.rpartition(" ")[2], control=outcome.startswith("control"))
        for place, outcome in enumerate(outcomes)
    ]
    report = reports.report(*cases)
    assert exit_code(report.model_copy(update={"spec": report.spec.changed(require=require)})) == code
