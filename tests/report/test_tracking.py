"""Runs of MLflow: what is logged of a check and of a sweep, through MLflow's own client into a folder of its own."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as Logged

from qcheck.core import places
from qcheck.core.errors import UserError
from qcheck.judge import fleet
from qcheck.report import fleet as pages
from qcheck.report import tracking
from qcheck.report.tracking import Run, Tracker
from qcheck.result import store
from qcheck.result.fleet import Store
from tests.sweep.test_fleet import row


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of runs, which MLflow keeps for tests like these."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "runs").as_uri()


def logged(uri: str) -> list[Logged]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return [*client.search_runs([experiment.experiment_id])]


def test_a_sweep_is_a_run_and_each_case_one_below_it(uri: str, tmp_path: Path) -> None:
    place = places.at(tmp_path / "fleet")
    rows = [row("a", p=1e-9, survival=0.98, page="pages/a/report.html"), row("b", None, None, error="no file")]
    summary = fleet.summary(rows)
    pages.write(summary, place)
    Store(place).index(summary.rows)
    identity = Tracker(uri).log(*tracking.of_fleet(summary, place))
    runs = {run.info.run_name: run for run in logged(uri)}
    parent = runs.pop(f"sweep {place}")
    assert parent.info.run_id == identity
    assert parent.data.metrics == {"PASS": 1, "error": 1, "certain": 1, "expected wrong": 0.05}
    listed = {one.path for one in MlflowClient(uri).list_artifacts(identity)}
    assert listed == {"summary.html", "summary.md", "summary.csv", "index.jsonl"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {identity}
    passed, error = runs["a.safetensors int8 merge-quantize"], runs["b.safetensors int8 merge-quantize"]
    assert (passed.data.tags["verdict"], passed.data.tags["certain"]) == ("PASS", "true")
    assert passed.data.metrics == {"survival": 0.98, "doubt": 1e-9, "seconds": 0}
    assert passed.data.params["adapter"] == "a.safetensors"
    assert passed.data.tags["page"] == "pages/a/report.html"
    assert (error.data.tags["verdict"], error.data.tags["decided"]) == ("error", "no file")
    assert error.data.metrics == {"seconds": 0}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_check_is_a_run_and_each_case_one_with_its_measurements(uri: str) -> None:
    folder = Path(__file__).parent / "folder"
    report = store.read(folder)
    parent, cases = tracking.of_report(report, folder)
    assert "report.json" in parent.files
    assert [case.tags["verdict"] for case in cases] == [case.verdict for case in report.cases]
    first = report.cases[0]
    for one in first.measurements:
        assert cases[0].metrics[f"{one.name}/{one.arm}"] == one.value
    Tracker(uri).log(parent, cases)
    assert len(logged(uri)) == 1 + len(report.cases)


def test_what_was_not_measured_is_no_number(uri: str) -> None:
    Tracker(uri).log(Run("only", {}, {}, {"measured": 0.0, "not measured": None}), [])
    (run,) = logged(uri)
    assert run.data.metrics == {"measured": 0}


def test_the_experiment_is_mlflow_s_own_setting(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "edge")
    Tracker(uri).log(Run("one", {}), [])
    Tracker(uri).log(Run("two", {}), [])
    experiment = MlflowClient(uri).get_experiment_by_name("edge")
    assert len(MlflowClient(uri).search_runs([experiment.experiment_id])) == 2


def test_what_does_not_answer_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with pytest.raises(UserError, match=r"--mlflow http://127\.0\.0\.1:9 takes no runs"):
        Tracker("http://127.0.0.1:9")
    assert dict(os.environ) == before
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(UserError, match="takes no runs"):
        Tracker((tmp_path / "runs").as_uri())
