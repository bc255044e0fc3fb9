"""JUnit XML: valid by the schema that Jenkins' xUnit plug-in publishes, and well-formed whatever names hold."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from qcheck.report import junit
from qcheck.result.report import Report
from tests import reports
from tests.report.test_markdown import HOSTILE

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit-10.xsd")))


def _read(report: Report) -> etree._Element:
    root = etree.fromstring(junit.render(report).encode())
    SCHEMA.assertValid(root)
    return root


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ("PASS", None),
        ("NEEDS-QAT", "failure"),
        ("FAIL-RECIPE", "failure"),
        ("FAIL-ADAPTER", "failure"),
        ("INCONCLUSIVE", "error"),
        ("INVALID", "error"),
    ],
)
def test_a_verdict_is_a_failure_an_error_or_neither(verdict: str, kind: str | None) -> None:
    root = _read(reports.report(reports.case(verdict=verdict, reasons=["too much"], next="Do this.")))
    found = [child for child in root.find(".//testcase") if child.tag in ("failure", "error", "skipped")]
    assert [child.tag for child in found] == ([kind] if kind else [])
    assert [(child.get("type"), child.get("message"), child.text) for child in found] == (
        [(verdict, "Do this.", "too much\nDo this.")] if kind else []
    )
    for level in root, root[0]:
        assert level.get("failures") == str(int(kind == "failure"))
        assert level.get("errors") == str(int(kind == "error"))


def test_every_scheme_in_every_order_is_one_test_case() -> None:
    cases = [reports.case(scheme, order) for scheme in ("int8", "fp8") for order in ("merge-quantize", "unmerged")]
    root = _read(reports.report(*cases))
    names = ["int8 merge-quantize", "int8 unmerged", "fp8 merge-quantize", "fp8 unmerged"]
    assert [found.get("name") for found in root.iter("testcase")] == names
    assert root.get("tests") == root[0].get("tests") == "4"
    shown = root.findtext(".//system-out")
    assert "endpoint_error (LoRA) 0.15 [0.13 .. 0.17], limit <= 0.5: pass" in shown
    assert "closest to its limit: endpoint_error (LoRA) 0.15 [0.13 .. 0.17], limit <= 0.5\n" in shown
    refused = _read(reports.report(reports.case(verdict="FAIL-RECIPE", deciding=None)))
    assert "decided by" not in refused.findtext(".//system-out")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text(text: str) -> None:
    odd = reports.case(text, verdict="INVALID", reasons=[text], next=text, warnings=[text])
    root = _read(reports.report(odd, target=text, base={"source": text, "digest": text}))
    assert len(list(root.iter())) == len(list(_read(reports.report(reports.case(verdict="INVALID"))).iter()))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_makes_it_ill_formed(text: str) -> None:
    _read(reports.report(reports.case(f"s{text}", warnings=[text]), target=text))
