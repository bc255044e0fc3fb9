"""A check that ends at once: what the command line asked for, and a report made in memory."""

from pathlib import Path

import pytest

from qcheck.core.cache import Cache
from qcheck.core.progress import Progress
from qcheck.result.report import Report
from qcheck.spec.check import CheckSpec
from qcheck.tasks import check as task
from tests import reports


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CheckSpec]:
    """The requests that were started, instead of carrying them out; their output goes below ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    requests: list[CheckSpec] = []

    def check(spec: CheckSpec, _: Path, __: Cache, progress: Progress) -> Report:
        requests.append(spec)
        progress.note("1 case ahead")
        with progress.stage("reference", 2) as advance:
            advance(2)
        return reports.report(reports.case(verdict="NEEDS-QAT"))

    monkeypatch.setattr(task, "check", check)
    return requests
