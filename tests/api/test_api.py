"""The Python API: what a user writes, typed and without a trace left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qcheck
from qcheck.core.errors import UserError

QUICK = {"steps": 6, "max_probes": 4, "build": False}


@pytest.fixture(scope="module")
def report() -> qcheck.Report:
    return qcheck.check("demo", lora="flat", scheme="int8", **QUICK)  # type: ignore[arg-type]


def test_a_report_answers_by_scheme_and_measurement(report: qcheck.Report) -> None:
    case = report["int8"]
    assert case is report["int8", "merge-quantize"]
    assert str(case.verdict) == case.verdict
    assert case["effect_survival"].arm == "adapted"
    assert case["stratum_sqnr", "base"].arm == "base"
    assert case["stratum_sqnr"].arm == "adapted"
    assert case.why().startswith(f"{case.verdict}: ")
    assert report.passed is (case.verdict == "PASS")
    for wrong in ("int9", ("int8", "refit")):
        with pytest.raises(KeyError, match="int8"):
            report[wrong]  # type: ignore[index]
    with pytest.raises(KeyError, match="effect_survival"):
        case["survival"]


def test_a_scheme_in_two_orders_has_to_be_named_with_its_order(report: qcheck.Report) -> None:
    second = report.cases[0].model_copy(update={"order": "unmerged"})
    both = report.model_copy(update={"cases": [*report.cases, second]})
    assert both["int8", "unmerged"] is second
    with pytest.raises(KeyError, match="names 2 cases"):
        both["int8"]


def test_nothing_is_written_without_out_and_nothing_global_is_changed(
    report: qcheck.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads, grad, state = torch.get_num_threads(), torch.is_grad_enabled(), np.random.get_state()[1].tolist()
    qcheck.check(report.spec)
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled() is grad
    assert np.random.get_state()[1].tolist() == state


def test_a_report_saved_and_loaded_is_the_same(report: qcheck.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "kept")
    assert qcheck.load_report(tmp_path / "kept") == report
    assert not qcheck.compare(tmp_path / "kept", report).changes


def test_a_request_is_taken_whole_or_in_keywords_and_not_both(report: qcheck.Report) -> None:
    with pytest.raises(UserError, match="scheme are given"):
        qcheck.check(report.spec, scheme="fp16")
    with pytest.raises(UserError, match="no adapter is given"):
        qcheck.check("demo")


def test_a_session_measures_and_judges_without_loading_again(report: qcheck.Report) -> None:
    with qcheck.Session("demo", lora="flat", **QUICK) as session:  # type: ignore[arg-type]
        q1 = session.quantize("int8")
        measured = {(seen.name, seen.arm): seen.value for seen in session.measure(q1, probes=4)}
        case = session.judge(q1)
        other = session.quantize("int4-g64", order="unmerged")
        assert session.judge(other).scheme == "int4-g64"
        with pytest.raises(UserError, match="1 probes"):
            session.measure(q1, probes=1)
        with pytest.raises(UserError, match="cannot run on"):
            session.quantize("fp8")
    told = {(seen.name, seen.arm): seen.value for seen in report["int8"].measurements}
    assert measured.items() <= told.items()
    assert case.verdict == report["int8"].verdict
    with pytest.raises(RuntimeError, match="not open"):
        session.judge(q1)


def test_importing_qcheck_imports_no_heavy_library() -> None:
    check = (
        "import qcheck, sys; qcheck.Report, qcheck.check; assert not {'torch', 'onnx', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, env={**os.environ, "PYTHONWARNINGS": "error"})


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'chek'"):
        qcheck.chek  # type: ignore[attr-defined]  # noqa: B018
    assert set(dir(qcheck)) >= {"check", "Session", "load_report"}
