"""The JSON Schema of report.json: the file is the generated one, and it takes what is written and nothing else."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from qcheck.core.errors import UserError
from qcheck.core.values import PACKAGE
from qcheck.result import schema, store
from tests import reports
from tests.conftest import Finished

FILE = PACKAGE.parent / "docs" / "report.schema.json"
VALIDATOR = Draft202012Validator(json.loads(FILE.read_text("utf-8")))


def test_the_file_is_the_generated_one() -> None:
    assert FILE.read_text("utf-8") == schema.text(), "python -m qcheck.result.schema > docs/report.schema.json"
    Draft202012Validator.check_schema(VALIDATOR.schema)


def test_a_real_report_is_valid(finished: Finished) -> None:
    VALIDATOR.validate(finished.report)


def test_numbers_that_are_not_finite_are_valid() -> None:
    odd = reports.measurement("psnr", value=float("nan"), low=float("-inf"), high=float("inf"))
    VALIDATOR.validate(json.loads(reports.report(reports.case(measurements=[odd])).to_json()))


@pytest.mark.parametrize(
    ("key", "value"),
    [("verdict", "GOOD"), ("order", None), ("measurements", [{"name": "x"}]), ("unknown", 1), ("seconds", "long")],
)
def test_what_a_report_cannot_hold_is_refused(key: str, value: Any) -> None:
    made = copy.deepcopy(json.loads(reports.report().to_json()))
    made["cases"][0][key] = value
    with pytest.raises(ValidationError):
        VALIDATOR.validate(made)


@pytest.mark.parametrize(
    ("place", "key", "value", "told"),
    [
        ("cases", "scheme", "int9", "the request has no case 'int9' 'merge-quantize'"),
        ("cases", "order", "sideways", "the request has no case 'int8' 'sideways'"),
        ("adapters", None, None, "2 adapters are listed, and the request has 1"),
    ],
)
def test_a_report_whose_cases_are_not_the_requests_is_one_error(
    place: str, key: str | None, value: str | None, told: str, tmp_path: Path
) -> None:
    """By hand, or merged from two: no command may end in a traceback over it."""
    report = json.loads(reports.report(reports.case()).to_json())
    if key is None:
        report[place] *= 2
    else:
        report[place][0][key] = value
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=re.escape(told)):
        store.read(tmp_path)
