"""The report as JUnit XML, which CI systems show as tests: one test case for each scheme in each order."""

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from qcheck.report.numbers import ARMS, bounds, decided, limit, number
from qcheck.report.wording import line
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Outcome

# a failure is a result about the scheme or the adapter; an error means that there is no result
KINDS: dict[Outcome, Literal["failure", "error"] | None] = {
    "PASS": None,
    "NEEDS-QAT": "failure",
    "FAIL-RECIPE": "failure",
    "FAIL-ADAPTER": "failure",
    "INCONCLUSIVE": "error",
    "INVALID": "error",
}


def render(report: Report) -> str:
    """An XML document in the dialect of Jenkins' ``junit-10.xsd``; times in seconds."""
    kinds = [KINDS[case.outcome] for case in report.cases]
    counts = {
        "tests": str(len(kinds)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
        "time": f"{sum(report.provenance.seconds.values()):.3f}",
    }
    root = Element("testsuites", {"name": "qcheck", **counts})
    name = " + ".join(Path(adapter.source).name for adapter in report.adapters)
    suite = SubElement(
        root,
        "testsuite",
        {"name": line(f"{name} on {report.target}"), **counts, "timestamp": line(report.provenance.created)},
    )
    properties = SubElement(suite, "properties")
    for key, value in _properties(report).items():
        SubElement(properties, "property", {"name": key, "value": line(value)})
    for case in report.cases:
        suite.append(_case(case, line(name)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _properties(report: Report) -> dict[str, str]:
    return {
        "qcheck": report.provenance.qcheck,
        "base": report.base.source,
        "base digest": report.base.digest,
        **{f"adapter {i} digest": adapter.digest for i, adapter in enumerate(report.adapters, 1)},
        "target": report.target,
        "probes digest": report.probes.digest,
        "limits digest": report.provenance.limits_digest,
        "limits": report.limits_grounds,
        "not measured": ", ".join(item.name for item in report.not_measured),
    }


def _case(case: Case, adapter: str) -> Element:
    testcase = Element(
        "testcase",
        {"name": line(f"{case.scheme} {case.order}"), "classname": f"qcheck.{adapter}", "time": f"{case.seconds:.3f}"},
    )
    if (kind := KINDS[case.outcome]) is not None:
        there = () if case.board is None else case.board.reasons
        message = "\n".join(line(text, 2000) for text in (*case.reasons, *there, case.next))
        SubElement(testcase, kind, {"type": case.outcome, "message": line(case.next)}).text = message
    SubElement(testcase, "system-out").text = "\n".join(_lines(case))
    return testcase


def _lines(case: Case) -> list[str]:
    """Lines for a reader of the CI's page: verdict, deciding and gated measurements, warnings and builds."""
    gated = [judged for judged in case.measurements if judged.limit is not None]
    measured = [
        f"{judged.name} ({ARMS[judged.arm]}) {number(judged)}{f' [{ends}]' if (ends := bounds(judged)) else ''}, "
        f"limit {limit(judged)}: {judged.status}"
        for judged in gated
    ]
    warnings = [f"warning: {warning}" for warning in case.warnings]
    builds = [f"build: {build.status} {build.detail}" for build in case.builds]
    boards = [] if case.board is None else [f"the board: {case.board.verdict} on {case.board.title}"]
    texts = (f"verdict: {case.verdict}", *boards, decided(case), *measured, *warnings, *builds)
    return [line(text, 2000) for text in texts if text]
