"""README says what is true: tables come from the data, the capture from a run like the one tested here."""

import re

from benchmarks import readme
from qcheck.result.verdict import Outcome
from qcheck.spec import limits
from tests.conftest import Finished

TEXT = readme.README.read_text("utf-8")


def test_tables_are_the_generated_ones() -> None:
    assert readme.read("table") == readme.schemes_and_targets()
    assert readme.read("training") == readme.training()


def test_the_capture_shows_the_measurements_and_the_verdict_that_a_check_gives(finished: Finished) -> None:
    shown, table = readme.read("capture"), readme.read("measurements")
    case = finished.report["cases"][0]
    assert {m["name"] for m in case["measurements"]} <= set(re.findall(r"\w+", table + shown))
    assert "NEEDS-QAT" in readme.read("lost")
    assert re.search(rf"^{case['verdict']} ", shown, re.MULTILINE)
    assert "limits: set on" in shown


def test_every_verdict_is_explained() -> None:
    for outcome in Outcome.__args__:  # type: ignore[attr-defined]
        assert f"| {outcome} |" in TEXT


def test_every_gate_is_listed_with_its_limit() -> None:
    for gate in limits.find("default").gates:
        row = re.search(rf"^\| {gate.name} \|.*$", TEXT, re.MULTILINE)
        assert row is not None, gate.name
        assert gate.text() in row[0], gate
