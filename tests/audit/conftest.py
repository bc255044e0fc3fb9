from pathlib import Path

import pytest

from qcheck.tasks import trust
from tests import audits

PASSING, LOST = audits.case(0.01), audits.case(1.0)


@pytest.fixture(autouse=True)
def _few_reruns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two reruns in place of a hundred: those of these cases all end alike."""
    monkeypatch.setattr(trust, "RERUNS", 2)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A folder of one case that passes and one that does not."""
    return audits.sound(tmp_path / "out", PASSING, LOST)
