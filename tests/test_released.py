"""Files of every released version: read whole where their schema is today's, else one error that names their reader."""

import json
import re
from pathlib import Path

import pytest

import qcheck
from qcheck.core.errors import UserError
from qcheck.device import bundle
from qcheck.device.errors import CannotVerify
from qcheck.result.report import SCHEMA
from qcheck.tasks import pack
from tests.conftest import run

ROOT = Path(__file__).parents[1]
RELEASED = Path(__file__).parent / "released"
VERSIONS = sorted(path.name for path in RELEASED.iterdir())


def test_every_release_of_the_changelog_has_a_report() -> None:
    named = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_report_of_a_release_is_read_or_names_its_reader(version: str) -> None:
    path = RELEASED / version / "report.json"
    contents = json.loads(path.read_text("utf-8"))
    if contents["schema"] == SCHEMA:
        assert json.loads(qcheck.load_report(path).to_json()) == contents
        return
    with pytest.raises(UserError, match=contents["schema"]) as error:
        qcheck.load_report(path)
    assert f"Read it with qcheck {version.rpartition('.')[0]}," in error.value.fix
    done = run("compare", str(path), str(path))
    assert isinstance(done.exception, UserError)
    assert done.exception.fix == error.value.fix


def test_a_report_of_the_future_asks_for_a_newer_qcheck(tmp_path: Path) -> None:
    number = int(SCHEMA.rpartition("/")[2]) + 1
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": f"qcheck-report/{number}"}))
    with pytest.raises(UserError, match=f"is of qcheck-report/{number}, and this qcheck reads {SCHEMA}") as error:
        qcheck.load_report(path)
    assert "a newer qcheck" in error.value.fix


def test_a_bundle_of_another_schema_names_its_own_verifier(tmp_path: Path) -> None:
    (tmp_path / bundle.NAME).write_text(json.dumps({"schema": "qcheck-bundle/9"}))
    pack.sums(tmp_path)
    with pytest.raises(CannotVerify, match="qcheck-bundle/9") as error:
        bundle.read(tmp_path)
    assert "verify.pyz that lies in the bundle" in str(vars(error.value))


def test_the_page_names_the_schemas_of_today() -> None:
    page = (ROOT / "docs" / "releasing.md").read_text("utf-8")
    assert {SCHEMA, bundle.SCHEMA} <= set(re.findall(r"`(qcheck-\w+/\d+)`", page))
