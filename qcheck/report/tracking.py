"""Results as runs of MLflow, by MLflow's own client: a parent for a check or a sweep, a child for each case."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcheck.core.errors import UserError, install
from qcheck.core.places import Files
from qcheck.judge.fleet import Summary
from qcheck.report import fleet
from qcheck.result.fleet import INDEX, Row
from qcheck.result.report import Case, Report

EXPERIMENT = "qcheck"  # unless MLflow's own MLFLOW_EXPERIMENT_NAME names another
_PAGES = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class Run:
    """One run: what it was asked as ``params``, its verdict as a tag, numbers as ``metrics``, and ``files`` of text."""

    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Tracker:
    """A server, a database or a folder of MLflow that answers.

    Raises:
        UserError: MLflow is not installed, or nothing answers at ``uri``.
    """

    def __init__(self, uri: str) -> None:
        try:
            import mlflow
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError(f"--mlflow {uri}: MLflow is not installed", f"Install it, {install('mlflow')}") from error
        self._failure: type[Exception] = MlflowException
        self._uri = uri
        try:
            self._client = mlflow.MlflowClient(uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            with _few_retries():
                experiment = self._client.get_experiment_by_name(name)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(name)
        except (MlflowException, OSError, ImportError) as error:
            raise self._error(error) from error

    def log(self, parent: Run, children: Iterable[Run]) -> str:
        """Log runs, and return the parent's id.

        Raises:
            UserError: MLflow stopped answering.
        """
        try:
            identity = self._log(parent, {})
            for child in children:
                self._log(child, {"mlflow.parentRunId": identity})
        except (self._failure, OSError) as error:
            raise self._error(error) from error
        return identity

    def _log(self, run: Run, tags: Mapping[str, str]) -> str:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        started = self._client.create_run(self._experiment, now, {**run.tags, **tags}, run.name)
        identity: str = started.info.run_id
        metrics = [Metric(name, value, now, 0) for name, value in run.metrics.items() if value is not None]
        params = [Param(name, str(value)) for name, value in run.params.items()]
        self._client.log_batch(identity, metrics, params)
        for name, text in run.files.items():
            self._client.log_text(identity, text, name)
        self._client.set_terminated(identity)
        return identity

    def _error(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UserError(
            f"--mlflow {self._uri} takes no runs: {reason}",
            "Give the URI of a tracking server, such as http://localhost:5000. What was computed is kept.",
        )


@contextmanager
def _few_retries() -> Iterator[None]:
    """At the first contact, where MLflow's own seven retries of a wrong address take minutes."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    if name in os.environ:
        yield
        return
    os.environ[name] = "2"
    try:
        yield
    finally:
        del os.environ[name]


def of_report(report: Report, folder: Path) -> tuple[Run, list[Run]]:
    """A check below ``folder``, and its cases."""
    adapters = " + ".join(Path(use.source).name for use in report.spec.adapters)
    asked: dict[str, object] = {
        "base": report.spec.base,
        "adapters": adapters,
        "target": report.target,
        "probes": report.probes.name,
    }
    asked |= {"steps": report.probes.steps, "guidance": report.probes.guidance}
    pages = {name: (folder / name).read_text("utf-8") for name in _PAGES if (folder / name).is_file()}
    return Run(adapters, asked, {}, {}, pages), [_of_case(case, asked) for case in report.cases]


def _of_case(case: Case, asked: Mapping[str, Any]) -> Run:
    metrics = {f"{one.name}/{one.arm}": one.value for one in case.measurements}
    return Run(
        f"{case.scheme} {case.order}",
        {**asked, "scheme": case.scheme, "order": case.order},
        {"verdict": case.verdict, "next": case.next},
        {**metrics, "probes": float(case.probes_used), "seconds": case.seconds},
    )


def of_fleet(summary: Summary, place: Files) -> tuple[Run, list[Run]]:
    """A sweep at ``place``, and its cases."""
    counts: dict[str, float | None] = {name: float(count) for name, count in summary.counts.items()}
    counts |= {"certain": float(len(summary.certain)), "expected wrong": summary.expected_wrong}
    files = {name: place.read(name).decode() for name in (fleet.PAGE, fleet.MARKDOWN, fleet.CSV, INDEX)}
    parent = Run(f"sweep {place}", {"place": place, "rate": summary.rate}, {}, counts, files)
    return parent, [_of_row(row, summary) for row in summary.rows]


def _of_row(row: Row, summary: Summary) -> Run:
    tags = {"verdict": row.status, "certain": str(row.case in summary.certain).lower(), "decided": fleet.decided(row)}
    numbers: dict[str, float | None] = {"survival": row.survival, "doubt": row.doubt, "seconds": row.seconds}
    if row.deciding is not None:
        numbers[f"{row.deciding.name}/{row.deciding.arm}"] = row.deciding.value
    names = ("case", "adapter", "weight", "base", "scheme", "order", "target")
    return Run(
        f"{row.title} {row.scheme} {row.order}",
        {name: getattr(row, name) for name in names},
        tags | ({} if row.page is None else {"page": row.page}),
        numbers,
    )
