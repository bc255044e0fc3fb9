"""A check that ends at once: what the command line asked for, and a report made in memory."""

from pathlib import Path

import pytest

from qcheck.core.progress import Progress
from qcheck.result.report import Report
from qcheck.spec.check import Job
from qcheck.tasks import check as pipeline
from tests import reports


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were started, instead of running them; their output goes below ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    jobs: list[Job] = []

    def check(job: Job, _: Path, progress: Progress) -> Report:
        jobs.append(job)
        progress.note("1 case ahead")
        with progress.stage("reference", 2) as advance:
            advance(2)
        return reports.report(reports.case(verdict="NEEDS-QAT"))

    monkeypatch.setattr(pipeline, "check", check)
    return jobs
